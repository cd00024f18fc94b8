// Package keeper keeps descriptors alive when the agent dies. A keeper is a process
// made by clone(CLONE_FILES): it shares the agent's descriptor table, sleeps for
// ever, and maps nothing but one page of code. As long as it lives no userfaultfd
// is closed, so no far page turns into zeros; a new agent takes the descriptors
// from it under the same numbers, which its shared state names.
//
// Numbers from FirstFD on belong to descriptors that outlive an agent; Reserve
// keeps everything else below. The kernel gives a forked child's userfaultfd the
// lowest free number, so it lands there too.
package keeper

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"github.com/farpage/farpage/handler/target"
	"golang.org/x/sys/unix"
)

// FirstFD is the first number that a lasting descriptor can have.
const FirstFD = 64

// name is the keeper's comm, cut by the kernel to 15 bytes.
const name = "farpage-keeper"

// recordFile is the file in the state folder that names the keeper.
const recordFile = "keeper.json"

func spawn(vdsoStart, vdsoEnd uintptr) int

// Record says who keeps what.
type Record struct {
	Pid        int    `json:"pid"`
	Start      uint64 `json:"start"`   // the keeper's start time, clock ticks after boot
	RootFD     int    `json:"root_fd"` // memfd of the agent's table of containers
	Agent      int    `json:"agent"`
	AgentStart uint64 `json:"agent_start"`
	Version    string `json:"version"` // of that agent
}

// Reserve fills the descriptor numbers below FirstFD, and raises RLIMIT_NOFILE as
// far as it goes. To be called before anything is opened that is to last.
func Reserve() error {
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err == nil && lim.Cur < lim.Max {
		lim.Cur = lim.Max
		_ = unix.Setrlimit(unix.RLIMIT_NOFILE, &lim) // what there is will do
	}
	null, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open /dev/null: %w", err)
	}
	for {
		fd, err := unix.FcntlInt(uintptr(null), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return os.NewSyscallError("fcntl", err)
		}
		if fd >= FirstFD {
			return unix.Close(fd)
		}
	}
}

// Lasting moves a descriptor to a number that lasts.
func Lasting(fd int) (int, error) {
	if fd >= FirstFD {
		return fd, nil
	}
	n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, FirstFD)
	if err != nil {
		return -1, os.NewSyscallError("fcntl", err)
	}
	return n, unix.Close(fd)
}

// Spawn makes a keeper of this process's descriptors.
func Spawn() (pid int, err error) {
	start, end, err := vdso()
	if err != nil {
		return 0, err
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	// The child must never run one of the Go runtime's signal handlers.
	var all, old unix.Sigset_t
	for i := range all.Val {
		all.Val[i] = ^uint64(0)
	}
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &all, &old); err != nil {
		return 0, os.NewSyscallError("sigprocmask", err)
	}
	pid, err = spawnNamed(start, end)
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &old, nil); err != nil {
		return 0, os.NewSyscallError("sigprocmask", err)
	}
	return pid, err
}

// spawnNamed spawns a keeper that is born with its name, this thread's for that
// long: End and EndStrays know a keeper by it from its first moment.
func spawnNamed(vdsoStart, vdsoEnd uintptr) (pid int, err error) {
	const comm = "/proc/thread-self/comm"
	old, err := os.ReadFile(comm)
	if err != nil {
		return 0, err
	}
	if err := os.WriteFile(comm, []byte(name), 0); err != nil {
		return 0, err
	}
	pid = spawn(vdsoStart, vdsoEnd)
	_ = os.WriteFile(comm, bytes.TrimSuffix(old, []byte("\n")), 0) // as the write before
	if pid < 0 {
		return 0, os.NewSyscallError("clone", unix.Errno(-pid))
	}
	return pid, nil
}

// vdso finds the kernel's own pages, which may be sealed against munmap.
func vdso() (start, end uintptr, err error) {
	f, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return 0, 0, err
	}
	err = target.Maps(f, func(v target.VMA) {
		if n := string(v.Name); strings.HasPrefix(n, "[vdso") || strings.HasPrefix(n, "[vvar") {
			if start == 0 {
				start = uintptr(v.Start)
			}
			end = uintptr(v.End)
		}
	})
	if err != nil || start == 0 {
		return 0, 0, errors.Join(errors.New("keeper: no vdso in /proc/self/maps"), err)
	}
	return start, end, nil
}

// Publish writes the record of the state folder, at once or not at all.
func Publish(stateDir string, r Record) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	tmp := filepath.Join(stateDir, recordFile+".new")
	err = os.WriteFile(tmp, b, 0o600)
	if err == nil {
		err = os.Rename(tmp, filepath.Join(stateDir, recordFile))
	}
	if err != nil {
		_ = os.Remove(tmp)
		return fmt.Errorf("write the keeper's record: %w", err)
	}
	return nil
}

// Read reads the record of the state folder; ok is false when there is none or
// its keeper is no more.
func Read(stateDir string) (r Record, ok bool, err error) {
	b, err := os.ReadFile(filepath.Join(stateDir, recordFile))
	if errors.Is(err, os.ErrNotExist) {
		return r, false, nil
	}
	if err != nil {
		return r, false, err
	}
	if err := json.Unmarshal(b, &r); err != nil {
		return r, false, fmt.Errorf("%s is no keeper's record (%w): remove it if no %s runs, else choose another --state-dir", filepath.Join(stateDir, recordFile), err, name)
	}
	return r, alive(r.Pid, r.Start) && target.Command(r.Pid) == name, nil
}

func alive(pid int, start uint64) bool {
	return pid > 0 && start != 0 && target.StartTime(pid) == start && !target.Ended(pid)
}

// AgentAlive says whether the agent that wrote the record still runs.
func (r Record) AgentAlive() bool { return alive(r.Agent, r.AgentStart) }

// Remove removes the record.
func Remove(stateDir string) error {
	err := os.Remove(filepath.Join(stateDir, recordFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// Source takes descriptors out of a keeper.
type Source struct{ pidfd int }

// Open opens a keeper. To be called before Reserve.
func Open(r Record) (*Source, error) {
	fd, err := unix.PidfdOpen(r.Pid, 0)
	if err != nil {
		return nil, os.NewSyscallError("pidfd_open", err)
	}
	if !alive(r.Pid, r.Start) {
		_ = unix.Close(fd)
		return nil, errors.New("keeper: it has just ended")
	}
	return &Source{fd}, nil
}

// Take takes the keeper's descriptor fd under the same number. Needs the
// keeper's capabilities, and Yama's ptrace_scope below 3 (pidfd_getfd(2), Linux
// 5.6).
func (s *Source) Take(fd int) error {
	got, err := unix.PidfdGetfd(s.pidfd, fd, 0)
	if err != nil {
		return fmt.Errorf("take descriptor %d of the keeper: %w", fd, os.NewSyscallError("pidfd_getfd", err))
	}
	if got == fd {
		return nil
	}
	if err := unix.Dup3(got, fd, unix.O_CLOEXEC); err != nil {
		_ = unix.Close(got)
		return os.NewSyscallError("dup3", err)
	}
	return unix.Close(got)
}

// Close closes the way to the keeper, which lives on.
func (s *Source) Close() error { return unix.Close(s.pidfd) }

// End ends a keeper. The last copies of descriptors that only it has are closed.
func End(pid int, start uint64) {
	if !alive(pid, start) || target.Command(pid) != name {
		return
	}
	_ = unix.Kill(pid, unix.SIGKILL)
	// It is our child or init's; wait for it if it is ours.
	_, _ = unix.Wait4(pid, nil, unix.WALL, nil)
	removeCgroups()
}

// EndStrays ends keepers of this state folder other than `but`: an agent that died
// between making one and publishing it has left it. mark is a path that every
// agent of this state folder keeps open.
func EndStrays(mark string, but int) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return
	}
	for _, d := range entries {
		pid, err := strconv.Atoi(d.Name())
		if err != nil || pid == but || target.Command(pid) != name {
			continue
		}
		fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
		if err != nil {
			continue
		}
		for _, f := range fds {
			if link, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", pid, f.Name())); err == nil && link == mark {
				End(pid, target.StartTime(pid))
				break
			}
		}
	}
}

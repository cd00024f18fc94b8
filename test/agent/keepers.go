package agent

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// keepers are the processes that share an agent's descriptor table. They are
// nobody's children, so they are looked for while the agent lives, and watched
// until they are gone.
type keepers struct {
	list    []keeper
	cgroups []string // folders made for them
}

type keeper struct {
	pid   int
	pidfd int // ours; tells its end even when the pid is another's by then
}

// find adds those of the agent with this pid.
func (k *keepers) find(agent int) error {
	const kcmpFiles = 2 // KCMP_FILES, linux/kcmp.h
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return fmt.Errorf("look for the agent's keeper: %w", err)
	}
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil || pid == agent || slices.ContainsFunc(k.list, func(k keeper) bool { return k.pid == pid }) {
			continue
		}
		order, _, errno := unix.Syscall6(unix.SYS_KCMP, uintptr(agent), uintptr(pid), kcmpFiles, 0, 0, 0)
		if errno != 0 || order != 0 {
			continue
		}
		pidfd, err := unix.PidfdOpen(pid, 0)
		if errors.Is(err, unix.ESRCH) {
			continue
		}
		if err != nil {
			return fmt.Errorf("watch the agent's keeper: %w", os.NewSyscallError("pidfd_open", err))
		}
		k.list = append(k.list, keeper{pid, pidfd})
		for _, dir := range cgroupsBeside(agent, pid) {
			if !slices.Contains(k.cgroups, dir) {
				k.cgroups = append(k.cgroups, dir)
			}
		}
	}
	return nil
}

// end waits for all of them to be gone, and kills and reports those that stay. A
// cgroup that is left is reported and removed as well.
func (k *keepers) end() error {
	const patience = 3 * time.Second
	var errs []error
	deadline := time.Now().Add(patience)
	for _, one := range k.list {
		if !one.goneBy(deadline) {
			errs = append(errs, fmt.Errorf("the agent left its keeper, process %d, behind; killed now", one.pid))
			_ = unix.PidfdSendSignal(one.pidfd, unix.SIGKILL, nil, 0)
			one.goneBy(time.Now().Add(patience))
		}
		_ = unix.Close(one.pidfd)
	}
	for _, dir := range k.cgroups {
		// Keepers of other agents of this host may be in it.
		procs, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		if err == nil && len(procs) == 0 {
			errs = append(errs, fmt.Errorf("the agent left cgroup %s behind", dir), os.Remove(dir))
		}
	}
	k.list, k.cgroups = nil, nil
	return errors.Join(errs...)
}

// goneBy waits for the process's end.
func (k keeper) goneBy(deadline time.Time) bool {
	for {
		fds := []unix.PollFd{{Fd: int32(k.pidfd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, int(max(0, time.Until(deadline).Milliseconds())))
		if !errors.Is(err, unix.EINTR) {
			return n > 0
		}
	}
}

// cgroupsBeside lists the cgroup folders that a keeper is in and its agent is not.
func cgroupsBeside(agent, keeper int) []string {
	ours, theirs := cgroupsOf(agent), cgroupsOf(keeper)
	var dirs []string
	for controllers, path := range theirs {
		if path == ours[controllers] || path == "/" { // which nobody has made
			continue
		}
		for _, root := range cgroupRoots(controllers) {
			dirs = append(dirs, filepath.Join(root, path))
		}
	}
	return dirs
}

// cgroupsOf maps /proc/PID/cgroup's controllers ("" for v2) to paths.
func cgroupsOf(pid int) map[string]string {
	paths := map[string]string{}
	f, err := os.Open(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return paths
	}
	defer f.Close()
	for sc := bufio.NewScanner(f); sc.Scan(); {
		if parts := strings.SplitN(sc.Text(), ":", 3); len(parts) == 3 {
			paths[parts[1]] = parts[2]
		}
	}
	return paths
}

// cgroupRoots says where a hierarchy is usually mounted.
func cgroupRoots(controllers string) []string {
	const base = "/sys/fs/cgroup"
	if controllers == "" {
		return []string{base, base + "/unified"}
	}
	return []string{base + "/" + strings.TrimPrefix(controllers, "name=")}
}

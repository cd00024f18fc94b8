// Package group runs a command in a cgroup of its own, so that all that comes of
// it can be found and ended, whoever its parent is by then: daemons
// change their parent and their session, redis overwrites its environment.
//
// It uses the cgroup v2 hierarchy without controllers: a name for a set of
// processes and nothing else, so the command runs as it would outside.
package group

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// ErrNoCgroup says that this host has no cgroup v2 hierarchy that can be written.
var ErrNoCgroup = errors.New("group: no writable cgroup v2 hierarchy")

var made atomic.Int64

// Group is a set of processes: those started in it, and all their descendants.
type Group struct {
	path string
	dir  *os.File
}

// New makes an empty group. Close removes it.
func New() (*Group, error) {
	root, err := cgroup2Mount()
	if err != nil {
		return nil, err
	}
	path := filepath.Join(root, fmt.Sprintf("farpage-test-%d-%d", os.Getpid(), made.Add(1)))
	if err := os.Mkdir(path, 0o755); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoCgroup, err)
	}
	dir, err := os.Open(path)
	if err != nil {
		return nil, errors.Join(err, os.Remove(path))
	}
	return &Group{path: path, dir: dir}, nil
}

// Attributes makes a command start inside the group. They are good until Close.
func (g *Group) Attributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(g.dir.Fd())}
}

// Pids are the group's processes now, those included that wait to be reaped.
func (g *Group) Pids() ([]int, error) {
	text, err := os.ReadFile(filepath.Join(g.path, "cgroup.procs"))
	if err != nil {
		return nil, err
	}
	var pids []int
	for field := range strings.FieldsSeq(string(text)) {
		pid, err := strconv.Atoi(field)
		if err != nil {
			return nil, fmt.Errorf("group: %s: %w", g.path, err)
		}
		pids = append(pids, pid)
	}
	return pids, nil
}

// PidsExcept leaves out those that run one of the executables.
func (g *Group) PidsExcept(executables ...string) ([]int, error) {
	pids, err := g.Pids()
	return slices.DeleteFunc(pids, func(pid int) bool {
		exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
		return slices.Contains(executables, strings.TrimSuffix(exe, " (deleted)"))
	}), err
}

// Await waits until the group is empty, and says whether it is in time.
func (g *Group) Await(limit time.Duration) (bool, error) {
	for deadline := time.Now().Add(limit); ; time.Sleep(10 * time.Millisecond) {
		pids, err := g.Pids()
		if err != nil || len(pids) == 0 {
			return err == nil, err
		}
		if time.Now().After(deadline) {
			return false, nil
		}
	}
}

// Kill ends every process of the group, each by its pid, until none is left.
func (g *Group) Kill() error {
	for range 100 {
		pids, err := g.Pids()
		if err != nil || len(pids) == 0 {
			return err
		}
		for _, pid := range pids {
			// It may have ended by itself, which is as good.
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
				return fmt.Errorf("group: kill %d: %w", pid, err)
			}
		}
		if _, err := g.Await(100 * time.Millisecond); err != nil {
			return err
		}
	}
	pids, _ := g.Pids()
	return fmt.Errorf("group: pids %v live on after SIGKILL", pids)
}

// Close ends what is left in the group and removes it.
func (g *Group) Close() error {
	return errors.Join(g.Kill(), g.dir.Close(), removeWhenIdle(g.path))
}

// removeWhenIdle tries again for a moment: a cgroup stays busy a little longer
// than its processes are listed.
func removeWhenIdle(path string) error {
	var err error
	for range 100 {
		if err = os.Remove(path); err == nil || errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return err
}

func cgroup2Mount() (string, error) {
	file, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	defer file.Close()
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		// proc(5): the fields after " - " are type, source and super options;
		// the fifth before it is the mount point.
		before, after, found := strings.Cut(lines.Text(), " - ")
		if fields := strings.Fields(before); found && strings.HasPrefix(after, "cgroup2 ") && len(fields) > 4 {
			return fields[4], nil
		}
	}
	return "", errors.Join(ErrNoCgroup, lines.Err())
}

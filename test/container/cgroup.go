package container

import (
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

// cgroup is one path in all of the host's hierarchies: one with cgroup v2, one
// for each controller with v1, both kinds on a hybrid host.
type cgroup struct {
	dirs []string // the one that accounts memory first
}

// findCgroup says where a cgroup path lies on this host; the folders need not
// exist yet.
func findCgroup(path string) (*cgroup, error) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("look for cgroup mounts: %w", err)
	}
	c := &cgroup{}
	for line := range strings.Lines(string(text)) {
		m, ok := parseMount(line)
		if !ok || m.fstype != "cgroup" && m.fstype != "cgroup2" {
			continue
		}
		dir := filepath.Join(m.point, path)
		if m.fstype == "cgroup" && slices.Contains(strings.Split(m.options, ","), "memory") {
			c.dirs = slices.Insert(c.dirs, 0, dir)
		} else {
			c.dirs = append(c.dirs, dir)
		}
	}
	if len(c.dirs) == 0 {
		return nil, errors.New("no cgroup hierarchy is mounted on this host")
	}
	return c, nil
}

// pids lists the processes in the cgroup; none once it is gone. On a hybrid host
// the first hierarchy that has the path decides.
func (c *cgroup) pids() ([]int, error) {
	for _, dir := range c.dirs {
		text, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list the container's processes: %w", err)
		}
		var pids []int
		for field := range strings.FieldsSeq(string(text)) {
			pid, err := strconv.Atoi(field)
			if err != nil {
				return nil, fmt.Errorf("list the container's processes: %s: %w", dir, err)
			}
			pids = append(pids, pid)
		}
		return pids, nil
	}
	return nil, nil
}

// kill ends what is left in the cgroup and returns when nothing is, or when
// patience is over.
func (c *cgroup) kill(patience time.Duration) error {
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		pids, err := c.pids()
		if err != nil || len(pids) == 0 {
			return err
		}
		if time.Now().After(end) {
			return fmt.Errorf("processes %v are still there after SIGKILL", pids)
		}
		for _, pid := range pids {
			_ = unix.Kill(pid, unix.SIGKILL) // gone by itself is as good
		}
	}
}

// remove takes the folders away. A cgroup stays busy for a moment after its last
// process.
func (c *cgroup) remove(patience time.Duration) error {
	var errs []error
	for _, dir := range c.dirs {
		err := os.Remove(dir)
		for end := time.Now().Add(patience); errors.Is(err, unix.EBUSY) && time.Now().Before(end); err = os.Remove(dir) {
			time.Sleep(10 * time.Millisecond)
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, fmt.Errorf("remove cgroup: %w", err))
		}
	}
	return errors.Join(errs...)
}

// dir is the folder that accounts memory.
func (c *cgroup) dir() string {
	for _, dir := range c.dirs {
		if _, err := os.Stat(dir); err == nil {
			return dir
		}
	}
	return c.dirs[0]
}

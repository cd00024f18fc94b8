// Package proc reads what /proc says of mounts (proc_pid_mountinfo(5)) and of the memory
// cgroups of processes (cgroups(7)), v1, v2 and both at once.
package proc

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// MemoryCgroup returns the folder of the memory cgroup that the process pid is in: an
// absolute path that holds memory.stat, in cgroup v1, v2 and the hybrid of both. It
// refuses a cgroup that the container shares with the process that asks (the runtime's
// hook), because what is counted there is not the container's alone.
func MemoryCgroup(pid int) (string, error) {
	mountinfo, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	cgroups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return "", fmt.Errorf("reading the container's cgroups: %w", err)
	}
	folder, err := memoryFolder(string(cgroups), string(mountinfo))
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(filepath.Join(folder, "memory.stat")); err != nil {
		return "", fmt.Errorf("the container's cgroup counts no memory, enable the memory controller in the cgroups above it (cgroup.subtree_control): %w", err)
	}
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", err
	}
	if runtimes, err := memoryFolder(string(own), string(mountinfo)); err == nil && runtimes == folder {
		return "", fmt.Errorf("the container has no memory cgroup of its own, it is in its runtime's, %s", folder)
	}
	return folder, nil
}

// memoryFolder finds the folder of a memory cgroup. cgroups is the content of a
// /proc/PID/cgroup, mountinfo of /proc/self/mountinfo; see cgroups(7) and
// proc_pid_mountinfo(5). The memory controller is on v1 when a line of cgroups names
// it, and else on v2.
func memoryFolder(cgroups, mountinfo string) (string, error) {
	path, v1 := "", false
	for line := range strings.Lines(cgroups) {
		fields := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(fields) != 3 {
			continue
		}
		if slices.Contains(strings.Split(fields[1], ","), "memory") {
			path, v1 = fields[2], true
			break
		}
		if fields[0] == "0" && fields[1] == "" {
			path = fields[2]
		}
	}
	if path == "" {
		return "", errors.New("the container is in no memory cgroup")
	}
	for line := range strings.Lines(mountinfo) {
		m, ok := ParseMount(line)
		if !ok {
			continue
		}
		memory := m.FSType == "cgroup2"
		if v1 {
			memory = m.FSType == "cgroup" && slices.Contains(m.SuperOptions, "memory")
		}
		if below, ok := pathBelow(m.Root, path); ok && memory {
			return filepath.Join(m.Point, below), nil
		}
	}
	return "", fmt.Errorf("the container's memory cgroup %s is not to be seen from here: no cgroup file system is mounted that holds it", path)
}

// pathBelow returns path relative to root, and whether it lies in it. Both are cgroup
// paths; one that begins with /.. is outside of what the reader's cgroup namespace
// shows.
func pathBelow(root, path string) (string, bool) {
	if slices.Contains(strings.Split(path, "/"), "..") {
		return "", false
	}
	if root == "/" || root == path {
		return strings.TrimPrefix(path, root), true
	}
	return strings.CutPrefix(path, root+"/")
}

// MemoryLimit returns the memory limit of the cgroup that the process pid is in, in
// bytes; 0 when there is none or it cannot be read.
func MemoryLimit(pid int) int64 {
	folder, err := MemoryCgroup(pid)
	if err != nil {
		return 0
	}
	for _, name := range []string{"memory.max", "memory.limit_in_bytes"} { // v2, v1
		text, err := os.ReadFile(filepath.Join(folder, name))
		if err != nil {
			continue
		}
		limitBytes, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
		if err != nil || limitBytes >= unlimitedV1 {
			return 0
		}
		return limitBytes
	}
	return 0
}

// unlimitedV1 is less than what memory.limit_in_bytes shows without a limit,
// 0x7ffffffffffff000, and more than any memory.
const unlimitedV1 = 1 << 62

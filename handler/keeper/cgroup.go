package keeper

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/farpage/farpage/internal/proc"
)

// cgroupName is the cgroup that keepers are in: what ends the agent's cgroup
// (systemd's stop of a unit, cgroup.kill) must not end the keeper too.
const cgroupName = "farpage-keeper"

// hierarchy is a mounted cgroup tree.
type hierarchy struct {
	point string
	// own: service managers end processes by it (cgroup2, and systemd's own of v1), and a
	// keeper gets a cgroup of its own there. It goes to the root of the other ones, the
	// controllers of v1, some of which take no process before they are set up (cpuset).
	own bool
}

// hierarchies reads a /proc/self/mountinfo (proc_pid_mountinfo(5)).
func hierarchies(mountinfo string) []hierarchy {
	var all []hierarchy
	for line := range strings.Lines(mountinfo) {
		m, _ := proc.ParseMount(line)
		switch m.FSType {
		case "cgroup2":
			all = append(all, hierarchy{m.Point, true})
		case "cgroup":
			all = append(all, hierarchy{m.Point, slices.Contains(m.SuperOptions, "name=systemd")})
		}
	}
	return all
}

// mounted are the hierarchies that this process sees.
func mounted() []hierarchy {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil
	}
	return hierarchies(string(b))
}

// Isolate moves a keeper out of the agent's cgroups. An engine ends a container without
// a pid namespace of its own by the processes of its cgroup, in a hierarchy of the
// engine's choice (runc: cgroup2, and devices of v1), and cannot remove a cgroup that
// has one. The error says where that was not possible: there the keeper shares the
// agent's fate.
func Isolate(pid int) error {
	var failed []error
	for _, h := range mounted() {
		dir := h.point
		if h.own {
			dir = filepath.Join(h.point, cgroupName)
			if err := os.Mkdir(dir, 0o755); err != nil && !os.IsExist(err) {
				failed = append(failed, err)
				continue
			}
		}
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0); err != nil {
			failed = append(failed, err)
		}
	}
	keeper, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	failed = append(failed, err)
	agent, err := os.ReadFile("/proc/self/cgroup")
	failed = append(failed, err)
	for _, path := range shared(string(keeper), string(agent), !initialNamespace()) {
		failed = append(failed, fmt.Errorf("it stays in the agent's, %s", path))
	}
	if err := errors.Join(failed...); err != nil {
		return fmt.Errorf("keeper: no cgroup of its own: %s: what ends the agent's cgroup loses the far pages; in a container mount the host's /sys/fs/cgroup", strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	return nil
}

// shared lists the agent's cgroups that the keeper is in too, or below. Both are the
// content of a /proc/PID/cgroup (cgroups(7)). hidden: the agent is in a cgroup
// namespace, whose root, /, is a cgroup like others; what is outside begins with /.. .
// Else / is the one that nobody ends.
func shared(keeper, agent string, hidden bool) []string {
	agents := map[string]string{} // by the hierarchy's number
	for line := range strings.Lines(agent) {
		if f := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3); len(f) == 3 {
			agents[f[0]] = f[2]
		}
	}
	var paths []string
	for line := range strings.Lines(keeper) {
		line = strings.TrimSuffix(line, "\n")
		f := strings.SplitN(line, ":", 3)
		if len(f) < 3 {
			continue
		}
		path, own := f[2]+"/", agents[f[0]]
		switch {
		case own == "" || own == "/" && !hidden:
		case own == "/" && !strings.HasPrefix(path, "/../"), own != "/" && strings.HasPrefix(path, own+"/"):
			paths = append(paths, line)
		}
	}
	return paths
}

// initialNamespace says whether this process sees the cgroups as the host does: the
// first cgroup namespace has a number of its own (CGROUP_NS_INIT_INO, linux/nsfs.h).
func initialNamespace() bool {
	link, err := os.Readlink("/proc/self/ns/cgroup")
	return err != nil || link == "cgroup:[4026531835]"
}

// removeCgroups removes the keepers' cgroup if it is empty.
func removeCgroups() {
	for _, h := range mounted() {
		if h.own {
			_ = os.Remove(filepath.Join(h.point, cgroupName)) // another agent's keeper may be in it
		}
	}
}

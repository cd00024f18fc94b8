package keeper

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// cgroupName is the cgroup that keepers are in: what ends the agent's cgroup
// (systemd's stop of a unit, cgroup.kill) must not end the keeper too.
const cgroupName = "farpage-keeper"

// hierarchies returns the mount points of the cgroup trees that service managers end
// processes by: cgroup2, and systemd's own of v1.
func hierarchies() []string {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil
	}
	var points []string
	for line := range strings.Lines(string(b)) {
		head, tail, ok := strings.Cut(line, " - ")
		f, g := strings.Fields(tail), strings.Fields(head)
		if !ok || len(f) < 3 || len(g) < 5 {
			continue
		}
		if f[0] == "cgroup2" || f[0] == "cgroup" && strings.Contains(f[2], "name=systemd") {
			points = append(points, g[4])
		}
	}
	return points
}

// Isolate moves a keeper into a cgroup of its own in every such tree. The error says
// where that was not possible: there the keeper shares the agent's fate.
func Isolate(pid int) error {
	var failed []string
	for _, point := range hierarchies() {
		dir := filepath.Join(point, cgroupName)
		err := os.Mkdir(dir, 0o755)
		if err == nil || os.IsExist(err) {
			err = os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0)
		}
		if err != nil {
			failed = append(failed, err.Error())
		}
	}
	if len(failed) > 0 {
		return fmt.Errorf("keeper: no cgroup of its own: %s", strings.Join(failed, "; "))
	}
	return nil
}

// removeCgroups removes the keepers' cgroup if it is empty.
func removeCgroups() {
	for _, point := range hierarchies() {
		_ = os.Remove(filepath.Join(point, cgroupName)) // another agent's keeper may be in it
	}
}

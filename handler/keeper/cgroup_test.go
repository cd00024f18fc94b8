package keeper

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/farpage/farpage/internal/need"
)

// into starts a command inside cgroups, whose folders come before the --.
var into = []string{"sh", "-ec", `while [ "$1" != -- ]; do echo $$ >"$1/cgroup.procs"; shift; done; shift; exec "$@"`, "sh"}

// container makes the cgroups that an engine makes for a container: one in each hierarchy.
func container(t *testing.T) []string {
	t.Helper()
	need.Root(t, "cgroups")
	name := fmt.Sprintf("farpage-test-keeper-%d", os.Getpid())
	var folders []string
	for _, h := range mounted() {
		dir := filepath.Join(h.point, name)
		err := os.Mkdir(dir, 0o755)
		if errors.Is(err, fs.ErrPermission) || errors.Is(err, os.ErrExist) { // read-only, or mounted at two places
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { removeWithin(t, dir) })
		folders = append(folders, dir)
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
			above, err := os.ReadFile(filepath.Join(h.point, file))
			if err != nil || h.own {
				continue
			}
			if err := os.WriteFile(filepath.Join(dir, file), above, 0); err != nil {
				t.Fatal(err)
			}
		}
	}
	if len(folders) == 0 {
		need.Skip(t, "no cgroup hierarchy can be written")
	}
	return folders
}

// removeWithin removes a cgroup, which is busy for a moment after its last process.
func removeWithin(t *testing.T, dir string) {
	t.Helper()
	var err error
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if err = os.Remove(dir); err == nil || errors.Is(err, fs.ErrNotExist) {
			return
		}
	}
	left, _ := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	t.Errorf("%v: processes %q are in it", err, left)
}

func TestKeeperLeavesEveryCgroupOfItsAgent(t *testing.T) {
	groups := container(t)
	t.Cleanup(removeCgroups) // after the keeper's end
	dir := t.TempDir()
	a := start(t, "isolate", dir, slices.Concat(into, groups, []string{"--"})...)
	for _, group := range groups {
		if procs, err := os.ReadFile(filepath.Join(group, "cgroup.procs")); err != nil || string(procs) != fmt.Sprintln(a.told.Record.Agent) {
			t.Errorf("%s has the processes %q (%v): want the agent, %d", group, procs, err, a.told.Record.Agent)
		}
	}
	// As an engine ends and removes a container.
	a.kill()
	for _, group := range groups {
		removeWithin(t, group)
	}
	if _, ok, err := Read(dir); !ok || err != nil {
		t.Errorf("the keeper is gone: %v, %v", ok, err)
	}
}

func TestHierarchiesAreReadFromMountinfo(t *testing.T) {
	for name, c := range map[string]struct {
		mountinfo string
		want      []hierarchy
	}{
		"v2": {
			"30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n22 1 8:1 / / rw - ext4 /dev/sda1 rw\n",
			[]hierarchy{{"/sys/fs/cgroup", true}},
		},
		"hybrid": {
			"31 30 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n32 30 0:29 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n33 30 0:30 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
			[]hierarchy{{"/sys/fs/cgroup/memory", false}, {"/sys/fs/cgroup/systemd", true}, {"/sys/fs/cgroup/unified", true}},
		},
		"cut short": {"31 30 0:28 / - cgroup cgroup rw\n31 30 0:28 / /sys rw - cgroup\n", nil},
		"nothing":   {"", nil},
	} {
		if got := hierarchies(c.mountinfo); !slices.Equal(got, c.want) {
			t.Errorf("%s: %+v, want %+v", name, got, c.want)
		}
	}
}

func TestKeeperThatStaysWithItsAgentIsFound(t *testing.T) {
	for name, c := range map[string]struct {
		keeper, agent string
		hidden        bool
		want          []string
	}{
		"on a host":                          {keeper: "0::/farpage-keeper\n", agent: "0::/system.slice/farpage.service\n"},
		"by hand, nobody ends the root":      {keeper: "0::/farpage-keeper\n", agent: "0::/\n"},
		"nothing could be moved":             {keeper: "0::/pods/1\n", agent: "0::/pods/1\n", want: []string{"0::/pods/1"}},
		"below":                              {keeper: "0::/pods/1/farpage-keeper\n", agent: "0::/pods/1\n", want: []string{"0::/pods/1/farpage-keeper"}},
		"beside, by a name that goes on":     {keeper: "0::/pods/12\n", agent: "0::/pods/1\n"},
		"one controller of v1":               {keeper: "9:devices:/pods/1\n5:memory:/\n0::/\n", agent: "9:devices:/pods/1\n5:memory:/pods/1\n0::/\n", want: []string{"9:devices:/pods/1"}},
		"a colon in a name":                  {keeper: "1:name=systemd:/a:/b\n", agent: "1:name=systemd:/a:/b\n", want: []string{"1:name=systemd:/a:/b"}},
		"a namespace that shows all":         {keeper: "0::/../../farpage-keeper\n", agent: "0::/\n", hidden: true},
		"a namespace that shows its own":     {keeper: "0::/farpage-keeper\n", agent: "0::/\n", hidden: true, want: []string{"0::/farpage-keeper"}},
		"a hierarchy that the agent has not": {keeper: "3:cpu:/x\n", agent: "0::/\n"},
	} {
		if got := shared(c.keeper, c.agent, c.hidden); !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

func TestIsolateSaysWhereItIsNotPossible(t *testing.T) {
	need.Root(t, "cgroups")
	if err := Isolate(-1); err == nil || !strings.HasPrefix(err.Error(), "keeper: no cgroup of its own: ") || strings.Contains(err.Error(), "\n") {
		t.Errorf("of no process: %v", err)
	}
	removeCgroups()
}

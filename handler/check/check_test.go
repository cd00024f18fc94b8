package check

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/farpage/farpage/handler/uffd"
)

// good is a host that has everything.
func good(t *testing.T) Host {
	t.Helper()
	root := t.TempDir()
	for name, text := range map[string]string{
		"proc/self/mountinfo":                "30 20 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
		"sys/fs/cgroup/cgroup.controllers":   "cpuset cpu io memory pids",
		"proc/self/uid_map":                  "         0          0 4294967295\n",
		"proc/version":                       "Linux version 6.12.1",
		"proc/sys/kernel/osrelease":          "6.12.1",
		"proc/sys/vm/max_map_count":          "65530",
		"proc/sys/kernel/yama/ptrace_scope":  "1",
		strings.TrimPrefix(uffd.Device, "/"): "",
	} {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	works := func() error { return nil }
	return Host{
		Root: root, Arch: "amd64",
		Uname:        func() (string, string) { return "6.12.1-amd64", "x86_64" },
		UffdFeatures: func(string) (uint64, error) { return uffd.Wanted, nil },
		PagemapScan:  works, WatchMmaps: works, PidfdGetfd: works, RealTime: works,
	}
}

func (h Host) with(t *testing.T, name, text string) Host {
	t.Helper()
	path := filepath.Join(h.Root, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return h
}

func TestHostThatHasEverythingIsUsable(t *testing.T) {
	for _, r := range good(t).Run() {
		if !r.OK || r.Fix != "" || r.Detail == "" {
			t.Errorf("%+v", r)
		}
	}
}

func TestWhatIsMissingIsNamedWithWhatToDo(t *testing.T) {
	refused := func() error { return errors.New("operation not permitted") }
	for _, c := range []struct {
		name   string
		host   func(Host) Host
		result string // the feature that is missing
		detail string
		fix    string
		usable bool
	}{
		{"not root", func(h Host) Host { h.Euid = 1000; return h }, "root", "effective user id 1000", "run it as root", false},
		{"another machine", func(h Host) Host { h.Arch = "arm64"; return h }, "architecture", "arm64", "x86-64 only", false},
		{
			"an old kernel", func(h Host) Host { h.Uname = func() (string, string) { return "6.1.0-28", "x86_64" }; return h },
			"kernel", "Linux 6.1.0-28", "Linux 6.8 or newer", false,
		},
		{
			"no device", func(h Host) Host {
				if err := os.Remove(filepath.Join(h.Root, uffd.Device)); err != nil {
					t.Fatal(err)
				}
				return h
			}, "userfaultfd device", "no such file", "CONFIG_USERFAULTFD", false,
		},
		{
			"a feature less", func(h Host) Host {
				h.UffdFeatures = func(string) (uint64, error) { return uffd.Wanted &^ uffd.FeatureMove, nil }
				return h
			}, "userfaultfd features", "missing: UFFDIO_MOVE (Linux 6.8)", "Linux 6.8 or newer", false,
		},
		{"no scan", func(h Host) Host { h.PagemapScan = refused; return h }, "PAGEMAP_SCAN", "not permitted", "Linux 6.7", false},
		{"Yama", func(h Host) Host { return h.with(t, "proc/sys/kernel/yama/ptrace_scope", "3") }, "take-over", "ptrace_scope is 3", "2 or less", false},
		{"no memory controller", func(h Host) Host { return h.with(t, "sys/fs/cgroup/cgroup.controllers", "cpu pids") }, "memory cgroup", "no cgroup mount", "cgroup_enable=memory", false},
		{"rootless", func(h Host) Host { return h.with(t, "proc/self/uid_map", "0 1000 1") }, "initial user namespace", "0 1000 1", "rootless", false},
		{"gVisor", func(h Host) Host { return h.with(t, "proc/version", "Linux version 4.4.0 gVisor") }, "own kernel", "gVisor", "on the host", false},
		{"SELinux", func(h Host) Host { return h.with(t, "sys/fs/selinux/enforce", "1") }, "SELinux", "enforcing", "label=disable", false},
		{"no perf", func(h Host) Host { h.WatchMmaps = refused; return h }, "mapping events", "not permitted", "CAP_PERFMON", true},
		{"no FIFO", func(h Host) Host { h.RealTime = refused; return h }, "real-time priority", "not permitted", "nice -20", true},
		{"few mappings", func(h Host) Host { return h.with(t, "proc/sys/vm/max_map_count", "1000") }, "mappings per process", "1000", "sysctl", true},
	} {
		results := c.host(good(t)).Run()
		if Usable(results) != c.usable {
			t.Errorf("%s: usable %v, want %v", c.name, !c.usable, c.usable)
		}
		for _, r := range results {
			if r.OK == (r.Name == c.result) {
				t.Errorf("%s: %+v", c.name, r)
			}
			if r.Name == c.result && (!strings.Contains(r.Detail, c.detail) || !strings.Contains(r.Fix, c.fix)) {
				t.Errorf("%s: %q and %q, want %q and %q in them", c.name, r.Detail, r.Fix, c.detail, c.fix)
			}
		}
	}
}

package check

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/farpage/farpage/handler/uffd"
	"golang.org/x/sys/unix"
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

// lacking are hosts that lack one thing.
var lacking = []struct {
	name   string
	host   func(*testing.T, Host) Host
	result string // the feature that is missing
	detail string
	fix    string
	usable bool
	alone  bool // a command can be run within a budget all the same
}{
	{
		name: "not root", host: func(_ *testing.T, h Host) Host { h.Euid = 1000; return h },
		result: "root", detail: "effective user id 1000", fix: "run it as root: sudo farpage check",
	},
	{
		name: "another machine", host: func(_ *testing.T, h Host) Host { h.Arch = "arm64"; return h },
		result: "architecture", detail: "arm64", fix: "farpage runs on x86-64 only",
	},
	{
		name: "an old kernel", host: func(_ *testing.T, h Host) Host {
			h.Uname = func() (string, string) { return "6.7.12-1", "x86_64" }
			return h
		},
		result: "kernel", detail: "Linux 6.7.12-1 x86_64", fix: "boot Linux 6.8 or newer (Debian 13, Ubuntu 24.04, RHEL 10 have it)",
	},
	{
		name: "no device", host: func(t *testing.T, h Host) Host {
			if err := os.Remove(filepath.Join(h.Root, uffd.Device)); err != nil {
				t.Fatal(err)
			}
			return h
		},
		result: "userfaultfd device", detail: "stat ROOT/dev/userfaultfd: no such file or directory",
		fix: "the kernel needs CONFIG_USERFAULTFD; in a container or chroot, bind the host's /dev/userfaultfd",
	},
	{
		name: "another device", host: func(_ *testing.T, h Host) Host {
			h.UffdFeatures = func(string) (uint64, error) { return 0, os.NewSyscallError("USERFAULTFD_IOC_NEW", unix.ENOTTY) }
			return h
		},
		result: "userfaultfd features", detail: "USERFAULTFD_IOC_NEW: inappropriate ioctl for device",
		fix: "what is at /dev/userfaultfd is another device: the kernel needs CONFIG_USERFAULTFD; in a container or chroot, bind the host's /dev/userfaultfd",
	},
	{
		name: "a device that is forbidden", host: func(_ *testing.T, h Host) Host {
			h.UffdFeatures = func(string) (uint64, error) { return 0, os.NewSyscallError("UFFDIO_API", unix.EPERM) }
			return h
		},
		result: "userfaultfd features", detail: "UFFDIO_API: operation not permitted", fix: "run as root, on Linux 6.8 or newer",
	},
	{
		name: "a feature less", host: func(_ *testing.T, h Host) Host {
			h.UffdFeatures = func(string) (uint64, error) { return 0x1ffff &^ uffd.FeatureMove, nil }
			return h
		},
		result: "userfaultfd features", detail: "0xffff, missing: UFFDIO_MOVE (Linux 6.8)",
		fix: "boot Linux 6.8 or newer with CONFIG_USERFAULTFD and CONFIG_HAVE_ARCH_USERFAULTFD_WP",
	},
	{
		name: "no scan", host: func(_ *testing.T, h Host) Host { h.PagemapScan = refused; return h },
		result: "PAGEMAP_SCAN", detail: "operation not permitted", fix: "boot Linux 6.7 or newer",
	},
	{
		name: "no taking of descriptors", host: func(_ *testing.T, h Host) Host { h.PidfdGetfd = refused; return h },
		result: "take-over", detail: "operation not permitted",
		fix: "pidfd_getfd (Linux 5.6) is needed to take over from a dead agent: under systemd it is in @debug",
	},
	{
		name: "Yama", host: func(t *testing.T, h Host) Host {
			t.Helper()
			return h.with(t, "proc/sys/kernel/yama/ptrace_scope", "3")
		},
		result: "take-over", detail: "kernel.yama.ptrace_scope is 3",
		fix: "it forbids pidfd_getfd even to root: set kernel.yama.ptrace_scope to 2 or less and reboot",
	},
	{
		name: "no memory controller", host: func(t *testing.T, h Host) Host {
			t.Helper()
			return h.with(t, "sys/fs/cgroup/cgroup.controllers", "cpu pids")
		},
		result: "memory cgroup", detail: "no cgroup mount has it", alone: true,
		fix: "mount the memory controller: boot with cgroup_enable=memory, or systemd.unified_cgroup_hierarchy=1",
	},
	{
		name: "rootless", host: func(t *testing.T, h Host) Host { t.Helper(); return h.with(t, "proc/self/uid_map", "0 1000 1") },
		result: "initial user namespace", detail: "uid_map: 0 1000 1",
		fix: "rootless engines and user namespaces cannot run the agent: start it as the host's root",
	},
	{
		name: "gVisor", host: func(t *testing.T, h Host) Host {
			t.Helper()
			return h.with(t, "proc/version", "Linux version 4.4.0 gVisor")
		},
		result: "own kernel", detail: "Linux version 4.4.0 gVisor",
		fix: "gVisor has no userfaultfd: run the agent on the host, and containers with runc or crun",
	},
	{
		name: "SELinux", host: func(t *testing.T, h Host) Host { t.Helper(); return h.with(t, "sys/fs/selinux/enforce", "1") },
		result: "SELinux", detail: "enforcing", alone: true,
		fix: "container_t may not create a userfaultfd: a policy module is needed, which farpage does not have yet; without one run containers with --security-opt label=disable",
	},
	{
		name: "AppArmor", host: func(t *testing.T, h Host) Host {
			t.Helper()
			return h.with(t, "sys/module/apparmor/parameters/enabled", "Y\n").with(t, "proc/self/attr/apparmor/current", "farpage (enforce)\n")
		},
		result: "AppArmor", detail: "the profile farpage (enforce) confines this program", usable: true, alone: true,
		fix: "run the agent unconfined: without AppArmorProfile= in its unit",
	},
	{
		name: "no perf", host: func(_ *testing.T, h Host) Host { h.WatchMmaps = refused; return h }, usable: true, alone: true,
		result: "mapping events", detail: "operation not permitted",
		fix: "perf_event_open is refused: budgets are kept less exactly; give the agent CAP_PERFMON (under systemd it is in @debug)",
	},
	{
		name: "no FIFO", host: func(_ *testing.T, h Host) Host { h.RealTime = refused; return h }, usable: true, alone: true,
		result: "real-time priority", detail: "operation not permitted",
		fix: "SCHED_FIFO is refused (a cgroup v1 cpu controller with CONFIG_RT_GROUP_SCHED?): nice -20 is used, faults may wait on a loaded host",
	},
	{
		name: "few mappings", host: func(t *testing.T, h Host) Host { t.Helper(); return h.with(t, "proc/sys/vm/max_map_count", "1000") }, usable: true, alone: true,
		result: "mappings per process", detail: "vm.max_map_count 1000", fix: "sysctl vm.max_map_count=65530 or more",
	},
}

func refused() error { return unix.EPERM }

func TestWhatIsMissingIsNamedWithWhatToDo(t *testing.T) {
	for _, c := range lacking {
		host := c.host(t, good(t))
		results := host.Run()
		if Usable(results) != c.usable {
			t.Errorf("%s: usable %v, want %v", c.name, !c.usable, c.usable)
		}
		detail := strings.ReplaceAll(c.detail, "ROOT", host.Root)
		for _, r := range results {
			if r.OK == (r.Name == c.result) {
				t.Errorf("%s: %+v", c.name, r)
			}
			if r.Name == c.result && (r.Detail != detail || r.Fix != c.fix) {
				t.Errorf("%s: %q and %q, want %q and %q", c.name, r.Detail, r.Fix, detail, c.fix)
			}
		}
	}
}

// TestTryingRealTimePriorityLeavesEachThreadAsItWas: the agent tries it at its start,
// and a thread that stayed SCHED_FIFO would go before what its host runs.
func TestTryingRealTimePriorityLeavesEachThreadAsItWas(t *testing.T) {
	for range 20 {
		if err := realTime(); err != nil {
			t.Log(err) // a host may refuse it, and the threads are as they were there too
		}
	}
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		tid, err := strconv.Atoi(task.Name())
		if err != nil {
			t.Fatal(err)
		}
		attr, err := unix.SchedGetAttr(tid, 0)
		if errors.Is(err, unix.ESRCH) {
			continue // it has ended
		}
		if err != nil {
			t.Fatal(err)
		}
		if attr.Policy != unix.SCHED_NORMAL || attr.Flags != 0 {
			t.Errorf("thread %d has policy %d and flags %#x", tid, attr.Policy, attr.Flags)
		}
	}
}

func TestAgentIsRefusedWhereSomethingIsMissingThatItNeeds(t *testing.T) {
	if err := good(t).Refusal(true); err != nil {
		t.Error(err)
	}
	for _, c := range lacking {
		host := c.host(t, good(t))
		says := "this host cannot run farpage: " + c.result + ": " + strings.ReplaceAll(c.detail, "ROOT", host.Root) + ": " + c.fix + " (`farpage check` shows everything)"
		if err := host.Refusal(true); c.usable && err != nil || !c.usable && (err == nil || err.Error() != says) {
			t.Errorf("%s: %v, want %s", c.name, err, says)
		}
		if err := host.Refusal(false); c.alone && err != nil || !c.alone && (err == nil || err.Error() != says) {
			t.Errorf("%s, for a command: %v, want %s", c.name, err, says)
		}
	}
}

func TestAppArmorIsInNobodysWayWhoIsUnconfined(t *testing.T) {
	for _, profile := range []string{"unconfined", "x (complain)"} {
		h := good(t).with(t, "sys/module/apparmor/parameters/enabled", "Y").with(t, "proc/self/attr/current", profile)
		if r := h.appArmor(); !r.OK || r.Detail != "enabled, this program is "+profile {
			t.Errorf("%+v", r)
		}
	}
}

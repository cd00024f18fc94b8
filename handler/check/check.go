// Package check says whether a host can run farpage, feature by feature, and what to
// do about what is missing. Features are tried, not guessed from versions.
package check

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/farpage/farpage/handler/target"
	"github.com/farpage/farpage/handler/uffd"
	"golang.org/x/sys/unix"
)

// Result is what became of one feature.
type Result struct {
	Name     string `json:"name"`
	OK       bool   `json:"ok"`
	Required bool   `json:"required"` // farpage does not run without it
	Detail   string `json:"detail"`
	Fix      string `json:"fix,omitempty"` // what to do when it is missing
}

// Host is what is looked at; tests put their own in place.
type Host struct {
	Root         string // folder that stands for /
	Euid         int
	Arch         string
	Uname        func() (release, machine string)
	UffdFeatures func(device string) (features uint64, err error)
	PagemapScan  func() error
	WatchMmaps   func() error
	PidfdGetfd   func() error
	RealTime     func() error
}

// ThisHost is the host that the program runs on.
func ThisHost() Host {
	return Host{
		Root: "/", Euid: os.Geteuid(), Arch: runtime.GOARCH, Uname: uname,
		UffdFeatures: uffdFeatures, PagemapScan: pagemapScan, WatchMmaps: watchMmaps, PidfdGetfd: pidfdGetfd, RealTime: realTime,
	}
}

// Usable says whether every required feature is there.
func Usable(results []Result) bool {
	for _, r := range results {
		if r.Required && !r.OK {
			return false
		}
	}
	return true
}

// Refusal says why the agent does not start here: the first of what is missing that
// farpage does not run without. containers is false for the agent of a `farpage run`:
// it counts memory without a cgroup, and no container's policy is in its way.
func (h Host) Refusal(containers bool) error {
	for _, r := range h.Run() {
		if r.OK || !r.Required || !containers && (r.Name == memoryCgroup || r.Name == seLinux) {
			continue
		}
		return fmt.Errorf("this host cannot run farpage: %s: %s: %s (`farpage check` shows everything)", r.Name, r.Detail, r.Fix)
	}
	return nil
}

// Names of results that do not concern every agent.
const (
	memoryCgroup = "memory cgroup"
	seLinux      = "SELinux"
)

// Run looks at everything.
func (h Host) Run() []Result {
	all := []Result{
		h.root(), h.arch(), h.kernel(), h.device(), h.features(), h.pagemapScan(), h.takeOver(), h.cgroup(),
		h.userNamespace(), h.sandbox(), h.selinux(), h.appArmor(), h.perf(), h.priority(), h.maps(),
	}
	for i := range all {
		if all[i].OK {
			all[i].Fix = ""
		}
	}
	return all
}

func (h Host) read(path string) string {
	b, err := os.ReadFile(filepath.Join(h.Root, path))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

func (h Host) root() Result {
	return Result{
		Name: "root", Required: true, OK: h.Euid == 0, Detail: fmt.Sprintf("effective user id %d", h.Euid),
		Fix: "run it as root: sudo farpage check",
	}
}

func (h Host) arch() Result {
	return Result{Name: "architecture", Required: true, OK: h.Arch == "amd64", Detail: h.Arch, Fix: "farpage runs on x86-64 only"}
}

func (h Host) kernel() Result {
	release, machine := h.Uname()
	var major, minor int
	_, err := fmt.Sscanf(release, "%d.%d", &major, &minor)
	return Result{
		Name: "kernel", Required: true, OK: err == nil && (major > 6 || major == 6 && minor >= 8),
		Detail: "Linux " + release + " " + machine, Fix: "boot Linux 6.8 or newer (Debian 13, Ubuntu 24.04, RHEL 10 have it)",
	}
}

// deviceFix is what to do without the kernel's device.
const deviceFix = "the kernel needs CONFIG_USERFAULTFD; in a container or chroot, bind the host's " + uffd.Device

func (h Host) device() Result {
	r := Result{Name: "userfaultfd device", Required: true, Detail: uffd.Device}
	if _, err := os.Stat(filepath.Join(h.Root, uffd.Device)); err != nil {
		r.Detail = err.Error()
		r.Fix = deviceFix
		return r
	}
	r.OK = true
	return r
}

// named are the features of the kernel's userfaultfd, with the version that brought
// each.
var named = []struct {
	bit  uint64
	name string
}{
	{uffd.FeaturePagefaultFlagWP, "write protection (Linux 5.7)"},
	{uffd.FeatureEventFork, "fork events (Linux 4.11)"},
	{uffd.FeatureEventRemap, "remap events (Linux 4.11)"},
	{uffd.FeatureEventRemove, "remove events (Linux 4.11)"},
	{uffd.FeatureEventUnmap, "unmap events (Linux 4.11)"},
	{uffd.FeatureThreadID, "thread ids (Linux 4.14)"},
	{uffd.FeaturePoison, "UFFDIO_POISON (Linux 6.6)"},
	{uffd.FeatureMove, "UFFDIO_MOVE (Linux 6.8)"},
}

func (h Host) features() Result {
	r := Result{Name: "userfaultfd features", Required: true}
	got, err := h.UffdFeatures(filepath.Join(h.Root, uffd.Device))
	if err != nil {
		r.Detail = err.Error()
		switch {
		case errors.Is(err, os.ErrNotExist):
			r.Fix = deviceFix
		case errors.Is(err, unix.ENOTTY), errors.Is(err, unix.ENXIO), errors.Is(err, unix.ENODEV):
			r.Fix = "what is at " + uffd.Device + " is another device: " + deviceFix
		default:
			r.Fix = "run as root, on Linux 6.8 or newer"
		}
		return r
	}
	var missing []string
	for _, f := range named {
		if got&f.bit == 0 {
			missing = append(missing, f.name)
		}
	}
	r.OK, r.Detail = len(missing) == 0, fmt.Sprintf("%#x", got)
	if !r.OK {
		r.Detail += ", missing: " + strings.Join(missing, ", ")
		r.Fix = "boot Linux 6.8 or newer with CONFIG_USERFAULTFD and CONFIG_HAVE_ARCH_USERFAULTFD_WP"
	}
	return r
}

func (h Host) pagemapScan() Result {
	return tried("PAGEMAP_SCAN", true, h.PagemapScan, "boot Linux 6.7 or newer")
}

func (h Host) takeOver() Result {
	r := tried("take-over", true, h.PidfdGetfd, "pidfd_getfd (Linux 5.6) is needed to take over from a dead agent: under systemd it is in @debug")
	if h.read("proc/sys/kernel/yama/ptrace_scope") == "3" {
		r.OK, r.Detail = false, "kernel.yama.ptrace_scope is 3"
		r.Fix = "it forbids pidfd_getfd even to root: set kernel.yama.ptrace_scope to 2 or less and reboot"
	}
	return r
}

func (h Host) cgroup() Result {
	r := Result{Name: memoryCgroup, Required: true, Fix: "mount the memory controller: boot with cgroup_enable=memory, or systemd.unified_cgroup_hierarchy=1"}
	for line := range strings.Lines(h.read("proc/self/mountinfo")) {
		_, tail, ok := strings.Cut(line, " - ")
		if !ok {
			continue
		}
		f := strings.Fields(tail)
		point := strings.Fields(line)[4]
		switch {
		case len(f) > 2 && f[0] == "cgroup" && strings.Contains(","+f[2]+",", ",memory,"):
			r.OK, r.Detail = true, "v1 at "+point
			return r
		case len(f) > 0 && f[0] == "cgroup2" && strings.Contains(" "+h.read(filepath.Join(point, "cgroup.controllers"))+" ", " memory "):
			r.OK, r.Detail = true, "v2 at "+point
			return r
		}
	}
	r.Detail = "no cgroup mount has it"
	return r
}

func (h Host) userNamespace() Result {
	uids := strings.Join(strings.Fields(h.read("proc/self/uid_map")), " ")
	return Result{
		Name: "initial user namespace", Required: true, OK: uids == "0 0 4294967295", Detail: "uid_map: " + uids,
		Fix: "rootless engines and user namespaces cannot run the agent: start it as the host's root",
	}
}

func (h Host) sandbox() Result {
	r := Result{Name: "own kernel", Required: true, OK: true, Detail: "not in a sandbox"}
	if version := h.read("proc/version"); strings.Contains(version, "gVisor") || strings.HasPrefix(h.read("proc/sys/kernel/osrelease"), "4.4.0-gvisor") {
		r.OK, r.Detail, r.Fix = false, version, "gVisor has no userfaultfd: run the agent on the host, and containers with runc or crun"
	}
	return r
}

func (h Host) selinux() Result {
	r := Result{Name: seLinux, Required: true, OK: true, Detail: "not enforcing"}
	if h.read("sys/fs/selinux/enforce") == "1" {
		r.OK, r.Detail = false, "enforcing"
		r.Fix = "container_t may not create a userfaultfd: a policy module is needed, which farpage does not have yet; without one run containers with --security-opt label=disable"
	}
	return r
}

// appArmor looks at what confines this program. What confines a container does not matter:
// who is unconfined may look into everybody (security/apparmor/ipc.c, profile_tracee_perm).
func (h Host) appArmor() Result {
	r := Result{Name: "AppArmor", OK: true, Detail: "not enabled"}
	if h.read("sys/module/apparmor/parameters/enabled") != "Y" {
		return r
	}
	profile := h.read("proc/self/attr/apparmor/current")
	if profile == "" {
		profile = h.read("proc/self/attr/current")
	}
	r.Detail = "enabled, this program is " + profile
	if profile != "" && profile != "unconfined" && !strings.HasSuffix(profile, "(complain)") {
		r.OK, r.Detail = false, "the profile "+profile+" confines this program"
		r.Fix = "run the agent unconfined: without AppArmorProfile= in its unit"
	}
	return r
}

func (h Host) perf() Result {
	return tried("mapping events", false, h.WatchMmaps, "perf_event_open is refused: budgets are kept less exactly; give the agent CAP_PERFMON (under systemd it is in @debug)")
}

func (h Host) priority() Result {
	return tried("real-time priority", false, h.RealTime, "SCHED_FIFO is refused (a cgroup v1 cpu controller with CONFIG_RT_GROUP_SCHED?): nice -20 is used, faults may wait on a loaded host")
}

func (h Host) maps() Result {
	r := Result{Name: "mappings per process", Detail: "vm.max_map_count " + h.read("proc/sys/vm/max_map_count")}
	var n int
	_, err := fmt.Sscan(h.read("proc/sys/vm/max_map_count"), &n)
	r.OK = err == nil && n >= 65530
	if !r.OK {
		r.Fix = "sysctl vm.max_map_count=65530 or more"
	}
	return r
}

// tried makes a result of a trial.
func tried(name string, required bool, try func() error, fix string) Result {
	if err := try(); err != nil {
		return Result{Name: name, Required: required, Detail: err.Error(), Fix: fix}
	}
	return Result{Name: name, Required: required, OK: true, Detail: "works"}
}

func uname() (release, machine string) {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return "", ""
	}
	return unix.ByteSliceToString(u.Release[:]), unix.ByteSliceToString(u.Machine[:])
}

func uffdFeatures(device string) (uint64, error) {
	dev, err := unix.Open(device, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("open %s: %w", device, err)
	}
	defer func() { _ = unix.Close(dev) }()
	fd, errno := uffd.New(dev, unix.O_CLOEXEC|unix.O_NONBLOCK)
	if errno != 0 {
		return 0, os.NewSyscallError("USERFAULTFD_IOC_NEW", errno)
	}
	defer func() { _ = unix.Close(fd) }()
	got, errno := uffd.API(fd, 0) // asks for nothing, answers with what there is
	if errno != 0 {
		return 0, os.NewSyscallError("UFFDIO_API", errno)
	}
	return got, nil
}

func pagemapScan() error {
	fd, err := unix.Open("/proc/self/pagemap", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	var s target.Scanner
	return s.Populated(fd, 0x400000, 0x401000, func(uint64, uint64) {})
}

func watchMmaps() error {
	m, err := target.WatchMmaps(os.Getpid())
	if err == nil {
		m.Close()
	}
	return err
}

func pidfdGetfd() error {
	fd, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		return os.NewSyscallError("pidfd_open", err)
	}
	defer func() { _ = unix.Close(fd) }()
	got, err := unix.PidfdGetfd(fd, fd, 0)
	if err != nil {
		return os.NewSyscallError("pidfd_getfd", err)
	}
	return unix.Close(got)
}

// realTime tries whether a thread may be SCHED_FIFO, and leaves the thread as it was.
// To end the thread instead would not do: the first one of a process cannot end in Go,
// and would stay as it is made here.
func realTime() error {
	runtime.LockOSThread()
	before, err := unix.SchedGetAttr(0, 0)
	if err != nil {
		runtime.UnlockOSThread()
		return os.NewSyscallError("sched_getattr", err)
	}
	attr := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 1, Flags: unix.SCHED_FLAG_RESET_ON_FORK}
	switch err := unix.SchedSetAttr(0, &attr, 0); {
	case errors.Is(err, unix.EPERM):
		runtime.UnlockOSThread()
		return errors.New("sched_setattr(SCHED_FIFO) is refused")
	case err != nil:
		runtime.UnlockOSThread()
		return os.NewSyscallError("sched_setattr", err)
	}
	// No more than the policy: what else sched_getattr says, such as the time slice of
	// Linux 6.12, would become a wish of this thread.
	back := unix.SchedAttr{
		Size: unix.SizeofSchedAttr, Policy: before.Policy, Priority: before.Priority, Nice: before.Nice,
		Flags: before.Flags & unix.SCHED_FLAG_RESET_ON_FORK,
	}
	if err := unix.SchedSetAttr(0, &back, 0); err != nil {
		return os.NewSyscallError("sched_setattr back", err) // the thread stays locked: nothing else runs on it
	}
	runtime.UnlockOSThread()
	return nil
}

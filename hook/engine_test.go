package hook

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/farpage/farpage/api"
	"github.com/farpage/farpage/internal/need"
	"github.com/farpage/farpage/oci/policy"
)

// runtimes are the OCI runtimes that the end-to-end tests use.
var runtimes = []string{"runc", "crun"}

// eachRuntime runs a test with every runtime that is installed.
func eachRuntime(t *testing.T, test func(t *testing.T, runtime string)) {
	for _, runtime := range runtimes {
		t.Run(runtime, func(t *testing.T) {
			needRoot(t)
			for _, program := range []string{runtime, "gcc", "ldd"} {
				need.Program(t, program)
			}
			test(t, runtime)
		})
	}
}

// testContainer is one container of an end-to-end test. Its fields are set before run.
type testContainer struct {
	runtime     string
	id          string
	bundle      string
	script      string // what its shell runs
	annotations map[string]string
	limitBytes  int64    // memory limit; 0: none
	socketDir   string   // where the hook looks for the agent
	stages      []string // at which the hook is called
	change      func(*specs.Spec)
}

// newContainer prepares a bundle whose root file system has a shell and a few programs,
// with the hook asking the agent in socketDir.
func newContainer(t *testing.T, runtime, socketDir, script string) *testContainer {
	t.Helper()
	c := &testContainer{
		runtime:   runtime,
		id:        fmt.Sprintf("farpage-hook-test-%d-%d", os.Getpid(), time.Now().UnixNano()),
		bundle:    socketDirIn(t),
		script:    script,
		socketDir: socketDir,
		stages:    []string{"createRuntime"},
	}
	makeRoot(t, c.root())
	t.Cleanup(func() { c.remove(t) })
	return c
}

// socketDirIn is a folder that everybody may enter: with user namespaces the container's
// root is not the host's.
func socketDirIn(t *testing.T) string {
	dir := socketDir(t)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// remove takes away what is left of the container, whatever became of it. After a run to
// its end there is nothing, and that is checked.
func (c *testContainer) remove(t *testing.T) {
	// The error is that there is no such container any more.
	_ = c.command(context.Background(), "delete", "--force", c.id).Run()
	folders := func() []string {
		folders, err := filepath.Glob("/sys/fs/cgroup/*/" + c.id)
		v2, errV2 := filepath.Glob("/sys/fs/cgroup/" + c.id)
		if err != nil || errV2 != nil {
			t.Error(err, errV2)
		}
		return append(folders, v2...)
	}
	left := folders()
	if len(left) > 0 {
		t.Errorf("cgroups are left: %q", left)
	}
	for end := time.Now().Add(10 * time.Second); len(left) > 0 && time.Now().Before(end); left = folders() {
		for _, folder := range left {
			pids, _ := os.ReadFile(filepath.Join(folder, "cgroup.procs"))
			for _, text := range strings.Fields(string(pids)) {
				if pid, err := strconv.Atoi(text); err == nil {
					_ = unix.Kill(pid, unix.SIGKILL)
				}
			}
			_ = os.Remove(folder) // busy until the processes are gone
		}
		time.Sleep(50 * time.Millisecond)
	}
	mountinfo, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || strings.Contains(string(mountinfo), c.bundle) {
		t.Errorf("mounts are left on the host: %v\n%s", err, mountinfo)
	}
}

func (c *testContainer) root() string { return filepath.Join(c.bundle, "rootfs") }

// command is a call of the runtime.
func (c *testContainer) command(ctx context.Context, args ...string) *exec.Cmd {
	args = append([]string{c.runtime, "--root", filepath.Join(c.bundle, "state")}, args...)
	if c.runtime == "crun" {
		// crun (1.8.1) does not accept a v2 hierarchy beside v1.
		args = append([]string{"unshare", "-m", "sh", "-c", `umount /sys/fs/cgroup/unified 2>/dev/null; exec "$@"`, "sh"}, args...)
	}
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	// The hook is the runtime's child, and has to go with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// run runs the container to its end.
func (c *testContainer) run(t *testing.T) (stdout, stderr string, err error) {
	t.Helper()
	c.writeConfig(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := c.command(ctx, "run", "--bundle", c.bundle, c.id)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = cmd.Run()
	said, _ := os.ReadFile(filepath.Join(c.bundle, "hook.log"))
	return out.String(), errs.String() + string(said), err
}

// mustRun is run for a container that has to succeed without a word.
func (c *testContainer) mustRun(t *testing.T) string {
	t.Helper()
	stdout, stderr, err := c.run(t)
	if err != nil || stderr != "" {
		t.Fatalf("%v\nstandard output: %s\nstandard error: %s", err, stdout, stderr)
	}
	return stdout
}

// writeConfig writes the bundle's config.json.
func (c *testContainer) writeConfig(t *testing.T) {
	t.Helper()
	spec := &specs.Spec{
		Version:     "1.0.2", // crun 1.8.1 takes none newer
		Root:        &specs.Root{Path: "rootfs"},
		Annotations: c.annotations,
		Process: &specs.Process{
			Cwd: "/", Args: []string{"/bin/sh", "-e", "-c", c.script}, Env: []string{"PATH=/bin"},
		},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		},
		Linux: &specs.Linux{
			CgroupsPath: "/" + c.id,
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace}, {Type: specs.MountNamespace},
			},
		},
	}
	if c.runtime == "crun" {
		// crun throws away what hooks print, but for this.
		spec.Annotations = maps.Clone(c.annotations)
		spec.Annotations["run.oci.hooks.stderr"] = filepath.Join(c.bundle, "hook.log")
	}
	if c.limitBytes > 0 {
		spec.Linux.Resources = &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &c.limitBytes}}
	}
	spec.Hooks = c.hooks(t)
	if c.change != nil {
		c.change(spec)
	}
	text, err := json.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(c.bundle, "config.json"), text, 0o644); err != nil {
		t.Fatal(err)
	}
}

// hooks has this test program called as the hook at each of the container's stages.
func (c *testContainer) hooks(t *testing.T) *specs.Hooks {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	hooks := &specs.Hooks{}
	for _, stage := range c.stages {
		hook := specs.Hook{
			Path: self, Args: []string{"farpage-hook", "--socket-dir", c.socketDir, stage},
			Env: []string{asHook + "=1", "GORACE=atexit_sleep_ms=0"}, // a race build sleeps a second at its end
		}
		if stage == "prestart" {
			hooks.Prestart = append(hooks.Prestart, hook) //nolint:staticcheck // deprecated, and what Docker and older configurations use
		} else {
			hooks.CreateRuntime = append(hooks.CreateRuntime, hook)
		}
	}
	return hooks
}

// makeRoot fills a root file system with a few programs of the host and the libraries
// that they need.
func makeRoot(t *testing.T, root string) {
	t.Helper()
	shell(t, root, `
		mkdir -p "$root/bin" "$root/etc" "$root/dev" "$root/proc" "$root/tmp"
		for program in sh cat ls readlink env; do
			path=$(command -v $program)
			cp -L "$path" "$root/bin/$program"
			for library in $(ldd "$path" | grep -o '/[^ ]*'); do
				mkdir -p "$root$(dirname "$library")"
				cp -L "$library" "$root$library"
			done
		done
		chmod -R a+rX "$root"`)
}

// newLibrary makes a container's folder with a library whose constructor leaves a trace:
// it says PRELOADED on standard error of programs that have $SHOW set.
func newLibrary(t *testing.T) string {
	t.Helper()
	folder := socketDirIn(t)
	cmd := exec.Command("gcc", "-shared", "-fPIC", "-O2", "-x", "c", "-o", filepath.Join(folder, libraryName), "-")
	cmd.Stdin = strings.NewReader(`
		#include <stdlib.h>
		#include <unistd.h>
		__attribute__((constructor)) static void loaded(void)
		{
			if (getenv("SHOW") && write(1, "PRELOADED\n", 10) < 0)
				_exit(99);
		}`)
	if output, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building a library: %v\n%s", err, output)
	}
	return folder
}

func TestAnOptedInContainerIsSetUp(t *testing.T) {
	eachRuntime(t, func(t *testing.T, runtime string) {
		folder := newLibrary(t)
		agent := startAgent(t, folder)
		var seen []string
		agent.onAdd = func(request api.AddRequest) {
			if _, err := os.Stat(filepath.Join(request.Cgroup, "memory.stat")); err != nil {
				seen = append(seen, err.Error())
			}
			procs, _ := os.ReadFile(filepath.Join(request.Cgroup, "cgroup.procs"))
			if !slices.Contains(strings.Fields(string(procs)), fmt.Sprint(request.Pid)) {
				seen = append(seen, fmt.Sprintf("process %d is not in %s, which has %q", request.Pid, request.Cgroup, procs))
			}
		}
		c := newContainer(t, runtime, agent.socketDir, `
			ls /dev/farpage
			cat /etc/ld.so.preload
			if echo x 2>/dev/null > /dev/farpage/new; then echo the folder is writable; fi
			if echo x 2>/dev/null > /etc/ld.so.preload; then echo the preload file is writable; fi
			SHOW=1 /bin/cat /dev/null`)
		c.annotations = map[string]string{policy.KeyLocal: "25%", policy.KeyStore: "fast"}
		c.limitBytes = 256 << 20
		if got, want := c.mustRun(t), "ld.so.preload\nlibfarpage.so\n"+libraryPath+"\nPRELOADED\n"; got != want {
			t.Errorf("the container saw\n%swant\n%s", got, want)
		}
		asked := agent.asked()
		if len(asked) != 1 {
			t.Fatalf("the agent was asked for %+v", asked)
		}
		want := policy.Policy{LocalBytes: 64 << 20, FarBytes: 192 << 20, Store: "fast", LowPercent: 85, HighPercent: 95, OnFailure: "open"}
		if got := asked[0]; got.ID != c.id || got.Unmanaged != "" || fmt.Sprint(got.Policy) != fmt.Sprint(want) || !strings.HasSuffix(got.Cgroup, "/"+c.id) {
			t.Errorf("the agent was asked for %+v", got)
		}
		if len(seen) > 0 {
			t.Errorf("when the agent was asked: %q", seen)
		}
	})
}

func TestBothStagesSetAContainerUp(t *testing.T) {
	eachRuntime(t, func(t *testing.T, runtime string) {
		agent := startAgent(t, newLibrary(t))
		for _, stages := range [][]string{{"prestart"}, {"createRuntime"}, {"prestart", "createRuntime"}} {
			c := newContainer(t, runtime, agent.socketDir, `cat /etc/ld.so.preload /proc/self/mountinfo`)
			c.annotations = map[string]string{policy.KeyLocal: "64Mi"}
			c.stages = stages
			got := c.mustRun(t)
			if !strings.HasPrefix(got, libraryPath+"\n") || strings.Count(got, " /dev/farpage ") != 1 || strings.Count(got, " /etc/ld.so.preload ") != 1 {
				t.Errorf("%s: the container saw\n%s", stages, got)
			}
		}
		for _, request := range agent.asked() {
			if request.Unmanaged != "" {
				t.Errorf("the agent was told %+v", request)
			}
		}
	})
}

func TestTheImagesOwnPreloadFileStaysInForce(t *testing.T) {
	eachRuntime(t, func(t *testing.T, runtime string) {
		folder := newLibrary(t)
		agent := startAgent(t, folder)
		c := newContainer(t, runtime, agent.socketDir, `cat /etc/ld.so.preload; SHOW=1 /bin/cat /dev/null`)
		c.annotations = map[string]string{policy.KeyLocal: "64Mi"}
		// A library of the image's own, the same as ours under another name.
		shell(t, c.root(), `cp `+folder+`/libfarpage.so "$root/own.so"; printf /own.so > "$root/etc/ld.so.preload"`)
		if got, want := c.mustRun(t), "/own.so\n"+libraryPath+"\nPRELOADED\nPRELOADED\n"; got != want {
			t.Errorf("the container saw\n%swant\n%s", got, want)
		}
		if own, err := os.ReadFile(filepath.Join(c.root(), "etc/ld.so.preload")); string(own) != "/own.so" {
			t.Errorf("the image's file holds %q now: %v", own, err)
		}
	})
}

func TestAReadOnlyRootIsNoObstacle(t *testing.T) {
	eachRuntime(t, func(t *testing.T, runtime string) {
		agent := startAgent(t, newLibrary(t))
		c := newContainer(t, runtime, agent.socketDir, `
			cat /etc/ld.so.preload
			if echo x 2>/dev/null > /etc/new; then echo the root is writable; fi
			SHOW=1 /bin/cat /dev/null`)
		c.annotations = map[string]string{policy.KeyLocal: "64Mi"}
		c.change = func(spec *specs.Spec) { spec.Root.Readonly = true }
		if got, want := c.mustRun(t), libraryPath+"\nPRELOADED\n"; got != want {
			t.Errorf("the container saw\n%swant\n%s", got, want)
		}
	})
}

func TestAnImageCannotMakeTheHookLeaveItsRoot(t *testing.T) {
	eachRuntime(t, func(t *testing.T, runtime string) {
		agent := startAgent(t, newLibrary(t))
		outside := socketDirIn(t)
		before := tree(t, outside)
		c := newContainer(t, runtime, agent.socketDir, `SHOW=1 /bin/cat /proc/self/mountinfo`)
		c.annotations = map[string]string{policy.KeyLocal: "64Mi"}
		shell(t, c.root(), `rmdir "$root/etc"; ln -s `+outside+` "$root/etc"`)
		stdout, stderr, err := c.run(t)
		reason := "/etc in the container is a symbolic link to nothing"
		if err != nil || strings.Contains(stdout, "PRELOADED") || strings.Contains(stdout, "farpage ") {
			t.Errorf("%v\nstandard output: %s\nstandard error: %s", err, stdout, stderr)
		}
		if after := tree(t, outside); after != before {
			t.Errorf("the folder on the host holds\n%snow", after)
		}
		asked := agent.asked()
		if len(asked) != 2 || asked[0].Unmanaged != "" || asked[1].Unmanaged != reason {
			t.Errorf("the agent was asked for %+v", asked)
		}
	})
}

// mappedRoot is the host's id of root in containers with a user namespace.
const mappedRoot = 200000

func TestAContainerWithAUserNamespaceIsSetUp(t *testing.T) {
	eachRuntime(t, func(t *testing.T, runtime string) {
		for _, readOnly := range []bool{false, true} {
			agent := startAgent(t, newLibrary(t))
			c := newContainer(t, runtime, agent.socketDir, `
				cat /etc/ld.so.preload
				if echo x 2>/dev/null > /dev/farpage/new; then echo the folder is writable; fi
				SHOW=1 /bin/cat /dev/null
				ls -ld /dev/farpage/../farpage | { read mode links owner group rest; echo "$mode $owner $group"; }`)
			c.annotations = map[string]string{policy.KeyLocal: "64Mi"}
			c.change = func(spec *specs.Spec) {
				spec.Root.Readonly = readOnly
				spec.Linux.Namespaces = append(spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
				mapping := []specs.LinuxIDMapping{{ContainerID: 0, HostID: mappedRoot, Size: 65536}}
				spec.Linux.UIDMappings, spec.Linux.GIDMappings = mapping, mapping
			}
			shell(t, c.root(), fmt.Sprintf(`chown -R %[1]d:%[1]d "$root"`, mappedRoot))
			got := c.mustRun(t)
			if want := libraryPath + "\nPRELOADED\n"; !strings.HasPrefix(got, want) || strings.Contains(got, "writable") {
				t.Errorf("read-only %v: the container saw\n%swant\n%s", readOnly, got, want)
			}
			var point unix.Stat_t
			if err := unix.Stat(filepath.Join(c.root(), preloadPath), &point); err != nil {
				t.Fatal(err)
			}
			if point.Uid != mappedRoot || point.Size != 0 {
				t.Errorf("the mount point in the image is of user %d and has %d bytes", point.Uid, point.Size)
			}
		}
	})
}

// TestWithoutAnnotationNothingChanges compares what a container sees of itself with the
// hook and without.
func TestWithoutAnnotationNothingChanges(t *testing.T) {
	eachRuntime(t, func(t *testing.T, runtime string) {
		agent := startAgent(t, newLibrary(t))
		seen := func(hook bool) (string, string) {
			c := newContainer(t, runtime, agent.socketDir, `cat /proc/self/mountinfo; ls -lR /dev /etc; env; ls -l /proc/self/fd; cat /proc/self/status`)
			c.annotations = map[string]string{"com.example.team": "far"}
			if !hook {
				c.stages = nil
			}
			out := strings.ReplaceAll(c.mustRun(t), c.bundle, "BUNDLE")
			return withoutNumbers(out), tree(t, c.root())
		}
		sawWith, filesWith := seen(true)
		sawWithout, filesWithout := seen(false)
		if sawWith != sawWithout {
			t.Errorf("with the hook the container sees\n%s\nwithout it\n%s", sawWith, sawWithout)
		}
		if filesWith != filesWithout {
			t.Errorf("with the hook the image holds\n%s\nafterwards, without it\n%s", filesWith, filesWithout)
		}
		if asked := agent.asked(); len(asked) > 0 {
			t.Errorf("the agent was asked for %+v", asked)
		}
	})
}

// withoutNumbers takes out what differs from one container to the next: ids of mounts,
// devices, processes and descriptors, times and counters.
func withoutNumbers(text string) string {
	var kept []string
	for line := range strings.Lines(text) {
		if strings.Contains(line, "ctxt_switches") || strings.HasPrefix(line, "Vm") || strings.HasPrefix(line, "Rss") {
			continue
		}
		kept = append(kept, line)
	}
	return regexp.MustCompile(`[0-9]+`).ReplaceAllString(strings.Join(kept, ""), "N")
}

func TestATypoStopsTheContainerAndTheRuntimeShowsWhy(t *testing.T) {
	eachRuntime(t, func(t *testing.T, runtime string) {
		agent := startAgent(t, newLibrary(t))
		for annotation, want := range map[string]string{
			"io.farpage.locl":       "there is no such annotation",
			"io.farpage.on-failure": "io.farpage.local is missing, and only it opts a container in",
			"io.farpage.local":      "not a size",
		} {
			c := newContainer(t, runtime, agent.socketDir, `echo started`)
			c.annotations = map[string]string{annotation: "open"}
			stdout, stderr, err := c.run(t)
			if err == nil || strings.Contains(stdout, "started") {
				t.Errorf("the container started: %v, %q", err, stdout)
			}
			// runc quotes what the hook said, quotation marks and all.
			said := strings.ReplaceAll(stderr, `\`, "")
			if want := fmt.Sprintf(`annotation %s="open": %s; allowed: `, annotation, want); !strings.Contains(said, want) {
				t.Errorf("the runtime said\n%swant\n%s", stderr, want)
			}
		}
		if asked := agent.asked(); len(asked) > 0 {
			t.Errorf("the agent was asked for %+v", asked)
		}
	})
}

func TestWithoutAnAgentOnFailureDecides(t *testing.T) {
	eachRuntime(t, func(t *testing.T, runtime string) {
		away := socketDirIn(t)
		const script = `cat /proc/self/mountinfo; ls -a /dev /etc; SHOW=1 /bin/cat /dev/null`
		open := newContainer(t, runtime, away, script)
		open.annotations = map[string]string{policy.KeyLocal: "64Mi"}
		stdout, stderr, err := open.run(t)
		if err != nil || strings.Contains(stdout, "PRELOADED") || strings.Contains(stdout, "farpage\n") || strings.Contains(stdout, "ld.so.preload") {
			t.Errorf("open: %v\nstandard output: %s\nstandard error: %s", err, stdout, stderr)
		}
		closed := newContainer(t, runtime, away, script)
		closed.annotations = map[string]string{policy.KeyLocal: "64Mi", policy.KeyOnFailure: policy.OnFailureClosed}
		stdout, stderr, err = closed.run(t)
		if want := "the agent is not running (no answer on " + away + "/agent.sock): start it with `systemctl start farpage` or `farpage agent`"; err == nil || stdout != "" || !strings.Contains(stderr, want) {
			t.Errorf("closed: %v\nstandard output: %s\nstandard error: %s", err, stdout, stderr)
		}
	})
}

func TestARefusalOfTheAgentIsTheReason(t *testing.T) {
	eachRuntime(t, func(t *testing.T, runtime string) {
		agent := startAgent(t, newLibrary(t))
		agent.refuse = "no store is called fast"
		c := newContainer(t, runtime, agent.socketDir, `SHOW=1 /bin/cat /dev/null; echo started`)
		c.annotations = map[string]string{policy.KeyLocal: "64Mi", policy.KeyStore: "fast"}
		if stdout, stderr, err := c.run(t); err != nil || stdout != "started\n" {
			t.Errorf("%v\nstandard output: %s\nstandard error: %s", err, stdout, stderr)
		}
		if asked := agent.asked(); len(asked) != 2 || asked[1].Unmanaged != agent.refuse {
			t.Errorf("the agent was asked for %+v", asked)
		}
		c = newContainer(t, runtime, agent.socketDir, `echo started`)
		c.annotations = map[string]string{policy.KeyLocal: "64Mi", policy.KeyStore: "fast", policy.KeyOnFailure: "closed"}
		if stdout, stderr, err := c.run(t); err == nil || stdout != "" || !strings.Contains(stderr, agent.refuse) {
			t.Errorf("closed: %v\nstandard output: %s\nstandard error: %s", err, stdout, stderr)
		}
	})
}

func TestAnAgentThatDoesNotAnswerIsNotWaitedForLong(t *testing.T) {
	eachRuntime(t, func(t *testing.T, runtime string) {
		agent := startAgent(t, newLibrary(t))
		release := make(chan struct{})
		agent.onAdd = func(api.AddRequest) { <-release }
		defer close(release)
		c := newContainer(t, runtime, agent.socketDir, `echo started`)
		c.annotations = map[string]string{policy.KeyLocal: "64Mi"}
		start := time.Now()
		stdout, stderr, err := c.run(t)
		if took := time.Since(start); err != nil || stdout != "started\n" || took > AgentTimeout+10*time.Second {
			t.Errorf("%v after %v\nstandard output: %s\nstandard error: %s", err, took, stdout, stderr)
		}
		if asked := agent.asked(); len(asked) != 1 {
			t.Errorf("the agent was asked %d times", len(asked))
		}
	})
}

// TestASharedRootGetsTheMountsOnce is for containers whose mounts are to reach the host
// (rootfsPropagation, what Kubernetes makes of Bidirectional volumes).
func TestASharedRootGetsTheMountsOnce(t *testing.T) {
	eachRuntime(t, func(t *testing.T, runtime string) {
		agent := startAgent(t, newLibrary(t))
		c := newContainer(t, runtime, agent.socketDir, `cat /etc/ld.so.preload /proc/self/mountinfo`)
		c.annotations = map[string]string{policy.KeyLocal: "64Mi"}
		c.change = func(spec *specs.Spec) { spec.Linux.RootfsPropagation = "rshared" }
		// The bundle is on a shared mount, as everything is under systemd; newContainer
		// looks for mounts that are left when it is gone.
		shell(t, c.bundle, `mount --bind "$root" "$root"; mount --make-shared "$root"`)
		t.Cleanup(func() {
			mountinfo, _ := os.ReadFile("/proc/self/mountinfo")
			if strings.Contains(string(mountinfo), c.root()+"/") {
				t.Errorf("mounts of farpage are left on the host:\n%s", mountinfo)
			}
			shell(t, c.bundle, `umount -R "$root"`)
		})
		got := c.mustRun(t)
		if !strings.HasPrefix(got, libraryPath+"\n") || strings.Count(got, " /dev/farpage ") != 1 || strings.Count(got, " /etc/ld.so.preload ") != 1 {
			t.Errorf("the container saw\n%s", got)
		}
	})
}

func TestAContainerOfAPodGetsItsOwnPolicyAndName(t *testing.T) {
	eachRuntime(t, func(t *testing.T, runtime string) {
		agent := startAgent(t, newLibrary(t))
		pod := map[string]string{
			policy.KeyLocal: "1G", policy.KeyLocal + "/redis": "64Mi", policy.KeyStore + "/other": "fast",
			"io.kubernetes.cri.sandbox-name": "cache-0", "io.kubernetes.cri.sandbox-namespace": "shop",
		}
		redis := newContainer(t, runtime, agent.socketDir, `:`)
		redis.annotations = maps.Clone(pod)
		redis.annotations["io.kubernetes.cri.container-name"] = "redis"
		redis.annotations["io.kubernetes.cri.container-type"] = "container"
		redis.mustRun(t)
		pause := newContainer(t, runtime, agent.socketDir, `:`)
		pause.annotations = maps.Clone(pod)
		pause.annotations["io.kubernetes.cri.container-type"] = "sandbox"
		pause.mustRun(t)
		asked := agent.asked()
		if len(asked) != 1 || asked[0].Name != "shop/cache-0/redis" || asked[0].Policy.LocalBytes != 64<<20 || asked[0].Policy.Store != "default" {
			t.Errorf("the agent was asked for %+v", asked)
		}
	})
}

package engines

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/farpage/farpage/api"
	"github.com/farpage/farpage/test/container"
	"golang.org/x/sys/unix"
)

// docker is a dockerd of Debian 13 with farpage's runtime.
type docker struct {
	*debian
	*cli
	daemon *os.Process
}

// dockerSocket is where dockerd listens, seen from inside and from here.
const dockerSocket = "/srv/test/docker.sock"

// ownSettings are what daemon.json has said before.
const ownSettings = "{\n    \"features\": { \"cdi\": true }\n}\n"

func startDocker(t *testing.T, unpacked *debian, flags ...string) *docker {
	t.Helper()
	d := &docker{debian: unpacked}
	h := unpacked.host
	run := []string{"run", "--network", "none", "--runtime", "farpage"}
	d.cli = &cli{h: h, try: d.try, imports: d.imports, run: run, runMusl: run, without: []string{"users of its own"}}
	// A setting of the user's own: without it Docker 26 takes no CDI devices.
	if err := os.WriteFile(d.root+"/etc/docker/daemon.json", []byte(ownSettings), 0o644); err != nil {
		t.Fatal(err)
	}
	said := h.farpage("install", "docker", "--root", d.root, "--socket-dir", h.SocketDir())
	contains(t, "install", said, "changed /etc/docker/daemon.json", "systemctl reload docker")
	h.farpage("install", "cdi", "--root", d.root, "--socket-dir", h.SocketDir())
	d.daemon = d.start(t, filepath.Join(t.TempDir(), "dockerd.log"), append([]string{
		"dockerd", "--host", "unix://" + dockerSocket,
		"--iptables=false", "--ip6tables=false", "--bridge=none", "--storage-driver=overlay2",
	}, flags...)...)
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		if _, err := d.try("version"); err == nil {
			return d
		}
		if time.Now().After(deadline) {
			t.Fatal("dockerd does not answer")
		}
	}
}

func (d *docker) try(args ...string) (string, error) {
	out, err := d.chroot(append([]string{"docker", "--host", "unix://" + dockerSocket}, args...)...).CombinedOutput()
	return string(out), err
}

// imports makes an image of a root file system.
func (d *docker) imports(name, dir string) {
	d.t.Helper()
	out, err := exec.CommandContext(d.t.Context(), "tar", "-C", dir, "-cf", filepath.Join(d.root, "srv/test/image.tar"), ".").CombinedOutput()
	if err != nil {
		d.t.Fatalf("tar: %v\n%s", err, out)
	}
	d.must("import", "/srv/test/image.tar", name)
}

const annotated = "io.farpage.local=32Mi"

func TestDocker(t *testing.T) {
	h := startHost(t)
	d := startDocker(t, h.unpackDebian(t))
	d.importImages(t)
	h.inOrder(t, []part{
		{"programs with what an engine takes away from them", d.testPrograms},
		{"a container's life", d.testLife},
		{"redis", d.testRedis},
		{"twenty at once", d.testMany},
		{"without annotation", d.testPlain},
		{"a static program", d.testStatic},
		{"images of other kinds", d.testImages},
		{"a device", d.testDevice},
		{"as the default runtime", d.testDefault},
		{"uninstalled", d.testUninstall},
	})
}

func (d *docker) stats(t *testing.T, name string) api.Container {
	t.Helper()
	s, err := d.Stats(t.Context(), d.id(name))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (d *docker) testRedis(t *testing.T) {
	d.imports("redis", redisImage(t))
	const folder = "/srv/test/redis"
	redisFolder(t, d.root+folder)
	d.must(slices.Concat([]string{
		"run", "--detach", "--name", "redis", "--network", "none", "--runtime", "farpage", "--annotation", annotated,
		"--volume", folder + ":/data", "redis",
	}, redisCommand)...)
	d.redisByValue(t, d.id("redis"), d.root+folder)
	d.must("rm", "--force", "redis")
	d.expectEmpty(t)
}

// What a container sees, and the configuration that its runtime gets, is the same with
// farpage's runtime as with runc.
func (d *docker) testPlain(t *testing.T) {
	const look = "cat /proc/self/mountinfo | while read id parent device root point rest; do echo $root $point $rest; done; env; ls /dev /etc; " +
		"cat /proc/self/status | while read key value; do case $key in Cap*|NoNew*|Seccomp*|Uid*) echo $key $value;; esac; done; echo end"
	see := func(runtime string) string {
		d.must("run", "--detach", "--hostname", "same", "--name", "plain", "--network", "none", "--runtime", runtime, "glibc", "sh", "-c", look+"; sleep 600")
		var out string
		for deadline := time.Now().Add(20 * time.Second); !strings.HasSuffix(out, "end") && time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
			out = d.must("logs", "plain")
		}
		id := d.id("plain")
		d.must("rm", "--force", "plain")
		var kept []string
		for line := range strings.Lines(strings.ReplaceAll(out, id, "ID")) {
			if !strings.Contains(line, " overlay ") { // its layers have names of their own
				kept = append(kept, line)
			}
		}
		return strings.Join(kept, "")
	}
	with, without := see("farpage"), see("runc")
	same(t, "a container without annotation", with, without)
	if strings.Contains(with, "farpage") || !strings.Contains(with, "/proc") || !strings.Contains(with, "NoNewPrivs") {
		t.Errorf("it sees\n%s", with)
	}
}

func (d *docker) testStatic(t *testing.T) {
	d.must("run", "--detach", "--name", "static", "--network", "none", "--runtime", "farpage", "--annotation", annotated, "glibc", "sh", "-c", "static-threads8 512; sleep 600")
	var listed []api.Process
	found := func() bool {
		listed = d.stats(t, "static").ProcessList
		return slices.ContainsFunc(listed, func(p api.Process) bool {
			return p.State == "unmanaged" && strings.Contains(p.Reason, "static program")
		})
	}
	for deadline := time.Now().Add(30 * time.Second); !found(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Errorf("it is listed as %+v", listed)
			break
		}
	}
	d.expectLog(t, "static", "131072 pages right")
	d.must("rm", "--force", "static")
	d.expectEmpty(t)
}

// pythonSum fills twice its budget, forks, and sums up in both.
const pythonSum = `
import os, zlib
pages = [os.urandom(2048) + bytes(2048) for _ in range(16000)]
want = zlib.crc32(b"".join(pages[:100]))
child = os.fork()
ok = zlib.crc32(b"".join(pages[:100])) == want and all(p[2048:] == bytes(2048) for p in pages[::8])
if child == 0:
    os._exit(0 if ok else 1)
print("child", os.waitpid(child, 0)[1], "parent", ok, flush=True)
`

// goProgram is a static program that stays.
const goProgram = `package main

import ("fmt"; "time")

func main() {
	b := make([]byte, 64<<20)
	for i := range b {
		b[i] = byte(i)
	}
	fmt.Println("filled", b[1<<20+7])
	time.Sleep(10 * time.Minute)
}
`

func (d *docker) testImages(t *testing.T) {
	root := filepath.Join(t.TempDir(), "python")
	if err := container.WriteRootfs(root, container.Config{Python: true}); err != nil {
		t.Fatal(err)
	}
	d.imports("python3", root)
	d.must("run", "--detach", "--name", "python3", "--network", "none", "--runtime", "farpage", "--annotation", annotated, "python3", container.PythonPath, "-c", pythonSum+"import time; time.sleep(600)")
	d.expectLog(t, "python3", "child 0 parent True")
	if s := d.stats(t, "python3"); s.EvictedPages == 0 || s.Forks != 1 {
		t.Errorf("python3: %+v", s)
	}
	d.must("rm", "--force", "python3")

	// No shell, nothing but the program and what it needs.
	root = filepath.Join(t.TempDir(), "distroless")
	if err := container.WriteRootfs(root, container.Config{Files: map[string]string{"/app": guest(t, "threads8")}}); err != nil {
		t.Fatal(err)
	}
	d.imports("distroless", root)
	out, err := d.runs("--annotation", annotated, "--user", "65532", "distroless", "/app", "64")
	if err != nil {
		t.Errorf("distroless: %v", err)
	}
	contains(t, "distroless", out, "16384 pages right")

	source, program := filepath.Join(t.TempDir(), "main.go"), filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(source, []byte(goProgram), 0o644); err != nil {
		t.Fatal(err)
	}
	build := exec.CommandContext(t.Context(), "go", "build", "-o", program, source)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	root = filepath.Join(t.TempDir(), "go")
	if err := container.WriteRootfs(root, container.Config{Files: map[string]string{"/app": program}}); err != nil {
		t.Fatal(err)
	}
	d.imports("go", root)
	d.must("run", "--detach", "--name", "go", "--network", "none", "--runtime", "farpage", "--annotation", annotated, "go", "/app")
	d.expectLog(t, "go", "filled 7")
	d.expectUnmanaged(t, d.id("go"), "it is a static program: no library can be preloaded into it")
	d.must("rm", "--force", "go")
	d.expectEmpty(t)
}

// expectLog waits until a container has written something.
func (d *docker) expectLog(t *testing.T, name, text string) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !strings.Contains(d.must("logs", name), text); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s has not written %q:\n%s", name, text, d.must("logs", name))
		}
	}
}

// With userns-remap a container's root is nobody on the host.
func TestDockerWithUserNamespaces(t *testing.T) {
	h := startHost(t)
	unpacked := h.unpackDebian(t)
	for file, line := range map[string]string{
		"passwd": "dockremap:x:999:999::/:/usr/sbin/nologin\n", "group": "dockremap:x:999:\n",
		"subuid": "dockremap:100000:65536\n", "subgid": "dockremap:100000:65536\n",
	} {
		f, err := os.OpenFile(filepath.Join(unpacked.root, "etc", file), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteString(line); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	d := startDocker(t, unpacked, "--userns-remap=dockremap")
	d.imports("glibc", imageOf(t, "threads8"))
	d.imports("musl", imageOf(t, "musl-threads8"))
	for image, program := range map[string]string{"glibc": "threads8", "musl": "musl-threads8"} {
		out, err := d.runs("--annotation", annotated, image, "sh", "-c", program+" 64 && cat /proc/self/uid_map /etc/ld.so.preload")
		if err != nil {
			t.Errorf("%s: %v", image, err)
		}
		contains(t, image, out, "16384 pages right", "100000      65536", "/dev/farpage/libfarpage.so\n")
	}
	d.must("run", "--detach", "--name", "life", "--network", "none", "--runtime", "farpage", "--annotation", annotated, "glibc", "sleep", "600")
	contains(t, "docker exec", d.must("exec", "life", "/bin/threads8", "64"), "16384 pages right")
	if s := d.alone(t, d.id("life")); s.EvictedPages == 0 {
		t.Errorf("after docker exec: %+v", s)
	}
	d.must("rm", "--force", "life")
	d.expectEmpty(t)
}

// A CDI device does it without annotation and runtime, and gives way to an annotation.
func (d *docker) testDevice(t *testing.T) {
	out := d.must("run", "--rm", "--network", "none", "--device", "farpage.io/local=32Mi", "glibc", "sh", "-c", "threads8 64 && cat /etc/ld.so.preload")
	contains(t, "docker run --device", out, "16384 pages right", "/dev/farpage/libfarpage.so")
	d.must("run", "--detach", "--name", "device", "--network", "none", "--device", "farpage.io/local=32Mi", "--annotation", "io.farpage.local=16Mi", "glibc", "sleep", "600")
	if s := d.stats(t, "device"); s.BudgetBytes != 16<<20 {
		t.Errorf("the budget is %d bytes, the annotation says 16 MiB", s.BudgetBytes)
	}
	d.must("rm", "--force", "device")
	d.expectEmpty(t)
}

// The annotation alone does it, after what `farpage install` says: a reload.
func (d *docker) testDefault(t *testing.T) {
	d.farpage("install", "docker", "--default", "--root", d.root, "--socket-dir", d.SocketDir())
	if err := d.daemon.Signal(unix.SIGHUP); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(20 * time.Second); d.must("info", "--format", "{{.DefaultRuntime}}") != "farpage"; time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("dockerd's default runtime is another one")
		}
	}
	out := d.must("run", "--rm", "--network", "none", "--annotation", annotated, "glibc", "sh", "-c", "threads8 64 && cat /etc/ld.so.preload")
	contains(t, "docker run --annotation", out, "16384 pages right", "/dev/farpage/libfarpage.so")
	d.expectEmpty(t)
}

func (d *docker) testUninstall(t *testing.T) {
	var info struct{ Runtimes map[string]json.RawMessage }
	if err := json.Unmarshal([]byte(d.must("info", "--format", "{{json .}}")), &info); err != nil || info.Runtimes["farpage"] == nil {
		t.Errorf("dockerd's runtimes: %v (%v)", info.Runtimes, err)
	}
	contains(t, "uninstall", d.farpage("uninstall", "docker", "--root", d.root), "changed /etc/docker/daemon.json")
	if left, err := os.ReadFile(d.root + "/etc/docker/daemon.json"); err != nil || string(left) != ownSettings {
		t.Errorf("daemon.json is %q (%v), it was %q", left, err, ownSettings)
	}
	contains(t, "uninstall", d.farpage("uninstall", "cdi", "--root", d.root), "removed /etc/cdi/farpage.json")
	if _, err := os.Stat(d.root + "/etc/cdi"); err == nil {
		t.Error("/etc/cdi is left")
	}
}

package engines

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/farpage/farpage/internal/need"
)

// runtimeScript is farpage-runtime for this host's agent.
func (h *host) runtimeScript(t *testing.T, options ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "farpage-runtime")
	script := "#!/bin/sh\nexec " + h.bin + "/farpage-runtime --farpage-socket-dir " + h.SocketDir() + " " + strings.Join(options, " ") + " \"$@\"\n"
	if err := os.WriteFile(path, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// startContainerd starts a containerd of the test's own and returns its socket.
func (h *host) startContainerd(t *testing.T, config string) string {
	t.Helper()
	dir := filepath.Join(scratch, "containerd")
	socket := filepath.Join(dir, "s")
	if err := os.MkdirAll(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(need.Program(t, "containerd"), "--root", dir+"/root", "--state", dir+"/state", "--address", socket, "--config", config)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = h.group.Attributes()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			text, _ := os.ReadFile(filepath.Join(dir, "log"))
			t.Logf("containerd's log:\n%s", text)
		}
	})
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if _, err := h.ctr(t, socket, "version"); err == nil {
			return socket
		}
		if time.Now().After(deadline) {
			t.Fatal("containerd does not answer")
		}
	}
}

func (h *host) ctr(t *testing.T, socket string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "ctr", append([]string{"--address", socket}, args...)...)
	cmd.SysProcAttr = h.group.Attributes()
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func TestCtrTakesInWhatIsAnnotated(t *testing.T) {
	h := startHost(t)
	socket := h.startContainerd(t, "/dev/null")
	image := imageOf(t, "threads8", "musl-threads8")
	for _, name := range []string{"threads8", "musl-threads8"} {
		out, err := h.ctr(t, socket, "run", "--rm", "--runc-binary", h.runtimeScript(t), "--annotation", "io.farpage.local=32Mi",
			"--rootfs", image, name, "/bin/sh", "-c", name+" 64 && cat /etc/ld.so.preload")
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		contains(t, name, out, "16384 pages right", "/dev/farpage/libfarpage.so")
	}
	out, err := h.ctr(t, socket, "run", "--rm", "--runc-binary", h.runtimeScript(t), "--annotation", "io.farpage.local=much", "--rootfs", image, "typo", "threads8", "16")
	if err == nil {
		t.Error("a typo starts")
	}
	contains(t, "a typo", out, `annotation io.farpage.local="much": not a size`)
	h.expectEmpty(t)
}

// A container that farpage-runtime cannot set up runs all the same, and is listed.
func TestContainerThatTheRuntimeCannotSetUpIsListed(t *testing.T) {
	h := startHost(t)
	socket := h.startContainerd(t, "/dev/null")
	out, err := h.ctr(t, socket, "run", "--detach", "--runc-binary", h.runtimeScript(t, "--farpage-hook", "/no/hook"), "--annotation", "io.farpage.local=32Mi",
		"--rootfs", imageOf(t), "nohook", "/bin/sleep", "600")
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	h.expectUnmanaged(t, "nohook", "the container starts unmanaged: farpage's hook is not there (stat /no/hook: no such file or directory)")
	for _, args := range [][]string{{"task", "kill", "--signal", "KILL", "nohook"}, {"task", "delete", "nohook"}, {"container", "delete", "nohook"}} {
		if out, err := h.ctr(t, socket, args...); err != nil {
			t.Errorf("ctr %q: %v\n%s", args, err, out)
		}
	}
	h.expectEmpty(t)
}

// The file that `farpage install` makes is one that containerd takes.
func TestContainerdReadsWhatIsInstalled(t *testing.T) {
	h := startHost(t)
	root := t.TempDir()
	said := h.farpage("install", "containerd", "--root", root)
	contains(t, "install", said, "made /etc/containerd/config.toml", "systemctl restart containerd")
	out, err := exec.CommandContext(t.Context(), need.Program(t, "containerd"), "--config", root+"/etc/containerd/config.toml", "config", "dump").Output()
	if err != nil {
		t.Fatal(err)
	}
	contains(t, "containerd config dump", string(out), `runtimes.farpage]`, `pod_annotations = ["io.farpage.*", "io.farpage.*/*"]`, `BinaryName = "`+h.bin+`/farpage-runtime"`)
	h.farpage("uninstall", "containerd", "--root", root)
	if left, err := os.ReadDir(root + "/etc/containerd"); err != nil || len(left) > 0 {
		t.Errorf("left: %v (%v)", left, err)
	}
}

package container

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/farpage/farpage/internal/need"
	"golang.org/x/sys/unix"
)

// needContainers skips where containers cannot run, and says why.
func needContainers(t *testing.T, programs ...string) {
	t.Helper()
	if err := Missing(programs...); err != nil {
		need.Skip(t, err.Error())
	}
}

// start runs a shell in a container and, when the test is over, checks that Close
// leaves nothing behind.
func start(t *testing.T, cfg Config) *Container {
	t.Helper()
	cfg.Dir = t.TempDir()
	cfg.Programs = append(cfg.Programs, "sh", "sleep", "cat", "ls")
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	c, err := Start(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		checkNothingLeft(t, c, cfg.Dir)
	})
	return c
}

func checkNothingLeft(t *testing.T, c *Container, dir string) {
	t.Helper()
	for _, d := range c.cgroup.dirs {
		if _, err := os.Stat(d); err == nil {
			t.Errorf("cgroup %s is left", d)
		}
	}
	if points, err := MountsUnder(dir); err != nil || len(points) > 0 {
		t.Errorf("mounts left: %v %v", points, err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
		t.Errorf("files left: %v %v", entries, err)
	}
	if c.pid != 0 && unix.Kill(c.pid, 0) == nil {
		t.Errorf("process %d is left", c.pid)
	}
}

func wait(t *testing.T, c *Container) int {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	status, err := c.Wait(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return status
}

func TestExitStatusAndOutputComeThrough(t *testing.T) {
	needContainers(t)
	var stdout, stderr bytes.Buffer
	c := start(t, Config{
		Args: []string{"/bin/sh", "-c", "echo out; echo err >&2; exit 7"}, Stdout: &stdout, Stderr: &stderr,
	})
	if status := wait(t, c); status != 7 {
		t.Errorf("status %d, want 7", status)
	}
	if stdout.String() != "out\n" || stderr.String() != "err\n" {
		t.Errorf("stdout %q, stderr %q", stdout.String(), stderr.String())
	}
}

func TestContainerIsConfined(t *testing.T) {
	needContainers(t)
	var stdout bytes.Buffer
	c := start(t, Config{
		Args:   []string{"/bin/sh", "-c", "cat /proc/self/status; ls /sys/class/net"},
		Stdout: &stdout,
	})
	if status := wait(t, c); status != 0 {
		t.Fatalf("status %d: %s", status, c.Output())
	}
	for _, want := range []string{
		"Uid:\t1000\t1000\t1000\t1000\n", "CapEff:\t0000000000000000\n", "CapBnd:\t0000000000000000\n",
		"NoNewPrivs:\t1\n", "Seccomp:\t2\n",
	} {
		if !strings.Contains(stdout.String(), want) {
			t.Errorf("%q is not in /proc/self/status", want)
		}
	}
	if !strings.HasSuffix(stdout.String(), "\nlo\n") {
		t.Error("there is another network device than lo")
	}
}

func TestSeccompRefusesUserfaultfd(t *testing.T) {
	needContainers(t, "python3")
	const call = `
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall(int(os.environ["CALL"]), 1) # UFFD_USER_MODE_ONLY
print(ctypes.get_errno())
`
	var stdout bytes.Buffer
	c := start(t, Config{
		Args: []string{PythonPath, "-c", call}, Python: true, Stdout: &stdout,
		Env: []string{fmt.Sprintf("CALL=%d", unix.SYS_USERFAULTFD)},
	})
	if status := wait(t, c); status != 0 {
		t.Fatalf("status %d: %s", status, c.Output())
	}
	if want := fmt.Sprintln(int(unix.EPERM)); stdout.String() != want {
		t.Errorf("errno %q, want %q", stdout.String(), want)
	}
}

func TestPidsListsAllProcesses(t *testing.T) {
	needContainers(t)
	c := start(t, Config{Args: []string{"/bin/sh", "-c", "sleep 60 & sleep 60 & wait"}})
	var pids []int
	for end := time.Now().Add(10 * time.Second); len(pids) != 3 && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		var err error
		if pids, err = c.Pids(); err != nil {
			t.Fatal(err)
		}
	}
	if len(pids) != 3 || !slices.Contains(pids, c.Pid()) {
		t.Errorf("pids %v, want 3 with %d among them", pids, c.Pid())
	}
}

func TestKillEndsTheContainer(t *testing.T) {
	needContainers(t)
	c := start(t, Config{Args: []string{"/bin/sleep", "60"}})
	if err := c.Kill(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if status := wait(t, c); status != 128+int(syscall.SIGKILL) {
		t.Errorf("status %d, want 137", status)
	}
	if pids, err := c.Pids(); err != nil || len(pids) != 0 {
		t.Errorf("pids %v %v after the end", pids, err)
	}
}

func TestExecRunsBesideTheFirstProcess(t *testing.T) {
	needContainers(t)
	c := start(t, Config{Args: []string{"/bin/sleep", "60"}, Env: []string{"WHO=me"}})
	out, err := c.Exec(t.Context(), "/bin/sh", "-c", "echo $WHO")
	if err != nil || string(out) != "me\n" {
		t.Errorf("%q, %v", out, err)
	}
}

func TestFailedStartLeavesNothing(t *testing.T) {
	needContainers(t)
	dir := t.TempDir()
	_, err := Start(t.Context(), Config{Args: []string{"/no/such/program"}, Dir: dir})
	if err == nil || !strings.Contains(err.Error(), "/no/such/program") {
		t.Errorf("error %v does not name the program", err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
		t.Errorf("files left: %v %v", entries, err)
	}
}

func TestFailingHookStopsTheContainer(t *testing.T) {
	needContainers(t)
	dir := t.TempDir()
	_, err := Start(t.Context(), Config{
		Args: []string{"/bin/sleep", "60"}, Programs: []string{"sleep"}, Dir: dir,
		Prestart: []string{"/bin/sh", "-c", "echo no such agent >&2; exit 3"},
	})
	if err == nil || !strings.Contains(err.Error(), "no such agent") {
		t.Errorf("error %v does not say what the hook said", err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
		t.Errorf("files left: %v %v", entries, err)
	}
}

func TestHookGetsAnnotationsAndState(t *testing.T) {
	needContainers(t)
	state := filepath.Join(t.TempDir(), "state")
	start(t, Config{
		Args:        []string{"/bin/sleep", "60"},
		Annotations: map[string]string{"io.farpage.local": "64Mi"},
		Prestart:    []string{"/bin/sh", "-c", "cat > " + state},
	})
	text, err := os.ReadFile(state)
	if err != nil || !strings.Contains(string(text), `"io.farpage.local":"64Mi"`) {
		t.Errorf("state %s, %v", text, err)
	}
}

func TestStartGivesUpWithItsContext(t *testing.T) {
	needContainers(t)
	dir := t.TempDir()
	pidFile := filepath.Join(t.TempDir(), "pid")
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	began := time.Now()
	_, err := Start(ctx, Config{
		Args: []string{"/bin/sleep", "60"}, Programs: []string{"sleep"}, Dir: dir,
		Prestart: []string{"/bin/sh", "-c", "echo $$ > " + pidFile + "; exec sleep 60"},
	})
	if err == nil || time.Since(began) > 4*time.Second {
		t.Errorf("error %v after %v", err, time.Since(began))
	}
	text, err := os.ReadFile(pidFile)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	// Its parent is dead: whoever adopts it may take a moment to reap it.
	if stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); err == nil && !strings.Contains(string(stat), ") Z ") {
		t.Errorf("the hook is left: %s", stat)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
		t.Errorf("files left: %v %v", entries, err)
	}
}

func TestBindIsSeenInside(t *testing.T) {
	needContainers(t)
	host := t.TempDir()
	if err := os.Chmod(host, 0o777); err != nil {
		t.Fatal(err)
	}
	c := start(t, Config{
		Args:  []string{"/bin/sh", "-c", "echo hello > /shared/greeting"},
		Binds: []Bind{{Host: host, Inside: "/shared"}},
	})
	if status := wait(t, c); status != 0 {
		t.Fatalf("status %d: %s", status, c.Output())
	}
	if text, err := os.ReadFile(filepath.Join(host, "greeting")); err != nil || string(text) != "hello\n" {
		t.Errorf("%q, %v", text, err)
	}
}

func TestRedisAnswersOverItsSocket(t *testing.T) {
	needContainers(t, "redis-server")
	host := t.TempDir()
	if err := os.Chown(host, UID, GID); err != nil {
		t.Fatal(err)
	}
	start(t, Config{
		Args:     []string{"/usr/bin/redis-server", "--port", "0", "--unixsocket", "/run/redis/sock", "--save", ""},
		Programs: []string{"/usr/bin/redis-server"},
		Binds:    []Bind{{Host: host, Inside: "/run/redis"}},
	})
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if _, err := os.Stat(filepath.Join(host, "sock")); err == nil {
			return
		} else if time.Now().After(end) {
			t.Fatal(err)
		}
	}
}

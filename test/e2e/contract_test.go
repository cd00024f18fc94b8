package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/farpage/farpage/internal/need"
)

func TestRunEndsWithTheStatusOfItsCommand(t *testing.T) {
	requireFarpage(t)
	notExecutable := filepath.Join(t.TempDir(), "data")
	if err := os.WriteFile(notExecutable, []byte("data"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name   string
		argv   []string
		status int
	}{
		{"success", []string{"true"}, 0},
		{"its own", []string{"sh", "-c", "exit 3"}, 3},
		{"a signal", []string{"sh", "-c", "kill -TERM $$"}, 128 + int(syscall.SIGTERM)},
		{"killed", []string{"sh", "-c", "kill -KILL $$"}, 128 + int(syscall.SIGKILL)},
		{"not executable", []string{notExecutable}, 126},
		{"not found", []string{"/nonexistent/command"}, 127},
		{"that of its only thread, by exit(2)", []string{guest(t, "bareexit"), "48"}, 7},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := startFarWithoutStats(t, "--local", "32Mi", "--", test.argv)
			if far := r.wait(time.Minute); far.status != test.status {
				t.Errorf("exit status %d, want %d\nstderr:\n%s", far.status, test.status, far.stderr)
			}
		})
	}
}

func startFarWithoutStats(t *testing.T, flag, value, end string, argv []string) *running {
	t.Helper()
	return start(t, t.TempDir(), "", append([]string{farpagePath(), "run", flag, value, end}, argv...))
}

func TestRunOfItsOwnFailureEndsWith125AndSaysWhatToDo(t *testing.T) {
	requireFarpage(t)
	far := startFarWithoutStats(t, "--local", "much", "--", []string{"true"}).wait(time.Minute)
	if far.status != 125 || !strings.Contains(string(far.stderr), "much") {
		t.Errorf("exit status %d, stderr %q: want 125 and the bad value", far.status, far.stderr)
	}
}

// What a program can see of how it was started. LD_PRELOAD has ours appended, so
// it is left out here; values may be secrets, so only their sum is printed.
const surroundings = `
pwd
ulimit -a
env | grep -v -e '^LD_PRELOAD=' -e '^_=' | sort >environment
cut -d= -f1 environment
cksum environment
ls -l /proc/self/fd | sed -n 's/.* \([0-9]*\) -> .*/\1/p' | sort -n
umask
cat /proc/self/oom_score_adj
grep -e SigPnd -e SigBlk -e SigIgn -e SigCgt -e Cap -e NoNewPrivs -e Seccomp /proc/self/status
`

func TestCommandSeesItsSurroundingsAsWithoutFarpage(t *testing.T) {
	requireFarpage(t)
	dir := t.TempDir()
	native := startNative(t, dir, "sh", "-c", surroundings).wait(time.Minute)
	far := startFar(t, dir, "sh", "-c", surroundings).wait(time.Minute)
	far.expectSame(t, native)
}

func TestPresetPreloadIsKeptInFrontOfOurs(t *testing.T) {
	requireFarpage(t)
	libraries, _ := filepath.Glob("/lib/*/libm.so.6")
	if len(libraries) == 0 {
		need.Skip(t, "no libm.so.6 to preload")
	}
	t.Setenv("LD_PRELOAD", libraries[0])
	far := startFar(t, t.TempDir(), "sh", "-c", `echo "$LD_PRELOAD"`).wait(time.Minute)
	rest, kept := strings.CutPrefix(string(far.stdout), libraries[0])
	if !kept || strings.TrimSpace(rest) == "" {
		t.Errorf("LD_PRELOAD %q: want %s and then ours\nstderr:\n%s", far.stdout, libraries[0], far.stderr)
	}
}

func TestSignalReachesTheCommand(t *testing.T) {
	requireFarpage(t)
	r := startFar(t, t.TempDir(), "sh", "-c", `trap 'echo told; exit 7' TERM; echo >ready; while :; do sleep 0.05; done`)
	awaitFile(t, filepath.Join(r.command.Dir, "ready"))
	if err := r.command.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if far := r.wait(time.Minute); far.status != 7 || string(far.stdout) != "told\n" {
		t.Errorf("exit status %d, stdout %q: want 7, \"told\"\nstderr:\n%s", far.status, far.stdout, far.stderr)
	}
}

// The daemon is left behind by a command that has ended, and keeps its bytes.
func TestDaemonLeftBehindStaysManaged(t *testing.T) {
	requireFarpage(t)
	r := startFar(t, t.TempDir(), "sh", "-c",
		fmt.Sprintf(`setsid sh -c 'sleep 0.5; %s 48 >daemon.new; mv daemon.new daemon' </dev/null >/dev/null 2>&1 & exit 5`, guest(t, "forktree")))
	far := r.waitForAll(time.Minute, 3*time.Minute)
	if far.status != 5 {
		t.Errorf("exit status %d, want 5\nstderr:\n%s", far.status, far.stderr)
	}
	text, err := os.ReadFile(filepath.Join(r.command.Dir, "daemon"))
	if err != nil || !strings.HasSuffix(string(text), "right\n") {
		t.Errorf("the daemon says %q, error %v\nstderr:\n%s", text, err, far.stderr)
	}
}

func awaitFile(t *testing.T, path string) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(path); err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s did not appear", path)
		}
	}
}

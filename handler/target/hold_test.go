package target

import (
	"errors"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/farpage/farpage/internal/need"
)

// A held thread stops, goes on as if nothing had been, also with a signal that came
// meanwhile, and one that has ended holds nobody up.
func TestHeldThreadGoesOnAsIfNothingHadBeen(t *testing.T) {
	need.Root(t, "ptrace")
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	until := func(what string, f func() bool) {
		t.Helper()
		for deadline := time.Now().Add(20 * time.Second); !f(); time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("still not: %s", what)
			}
		}
	}
	for _, signal := range []unix.Signal{0, unix.SIGUSR1, unix.SIGKILL} {
		t.Logf("signal %v", signal)
		command := exec.Command("sh", "-c", `trap 'echo got' USR1; echo ready; for i in 1 2 3 4 5; do sleep 0.1; done; echo done`)
		var out strings.Builder
		ready, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		command.Stdout = w
		if err := command.Start(); err != nil {
			t.Fatal(err)
		}
		_ = w.Close()
		buf := make([]byte, 64)
		if n, err := ready.Read(buf); err != nil || string(buf[:n]) != "ready\n" {
			t.Fatal(string(buf[:n]), err)
		}
		tid := int32(command.Process.Pid)
		dir, err := unix.Open("/proc/"+strconv.Itoa(int(tid))+"/task", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		if InEvent(dir, tid) {
			t.Error("sh is said to wait in an event")
		}
		_ = unix.Close(dir)
		if err := Hold(tid); err != nil {
			t.Fatal(err)
		}
		until("it has stopped", func() bool {
			stat, err := os.ReadFile("/proc/" + strconv.Itoa(int(tid)) + "/stat")
			return err == nil && strings.Contains(string(stat), ") t ")
		})
		if signal != 0 {
			if err := unix.Kill(int(tid), signal); err != nil {
				t.Fatal(err)
			}
		}
		until("it is released", func() bool { return Release(tid) })
		for {
			n, err := ready.Read(buf)
			out.Write(buf[:n])
			if err != nil {
				break
			}
		}
		_ = ready.Close()
		err = command.Wait()
		want := map[unix.Signal]string{0: "done\n", unix.SIGUSR1: "got\ndone\n", unix.SIGKILL: ""}[signal]
		var exit *exec.ExitError
		if killed := errors.As(err, &exit); out.String() != want || killed != (signal == unix.SIGKILL) {
			t.Errorf("signal %v: %q, %v; want %q", signal, out.String(), err, want)
		}
	}
	if !Release(1 << 22) {
		t.Error("a thread that is no more is still held")
	}
}

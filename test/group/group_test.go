package group_test

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/farpage/farpage/test/group"
)

func newGroup(t *testing.T) *group.Group {
	t.Helper()
	g, err := group.New()
	if errors.Is(err, group.ErrNoCgroup) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Close(); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Error(err)
		}
	})
	return g
}

func start(t *testing.T, g *group.Group, script string) *exec.Cmd {
	t.Helper()
	command := exec.Command("sh", "-c", script)
	command.SysProcAttr = g.Attributes()
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	return command
}

func TestProcessesOfAnotherSessionWhoseParentsAreGoneAreFoundAndEnded(t *testing.T) {
	g := newGroup(t)
	command := start(t, g, "setsid sh -c 'sleep 600 & exec sleep 600' & exit 0")
	if err := command.Wait(); err != nil {
		t.Fatal(err)
	}
	if empty, err := g.Await(50 * time.Millisecond); empty || err != nil {
		t.Fatalf("empty %v, error %v: the background processes are not found", empty, err)
	}
	if err := g.Kill(); err != nil {
		t.Fatal(err)
	}
	if pids, err := g.Pids(); len(pids) != 0 || err != nil {
		t.Fatalf("pids %v, error %v after Kill", pids, err)
	}
}

func TestPeakIsTheMemoryOfTheProcessesThatAreNotExcepted(t *testing.T) {
	shell, err := exec.LookPath("sh")
	if err != nil {
		t.Fatal(err)
	}
	if shell, err = filepath.EvalSymlinks(shell); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name        string
		except      []string
		least, most int64
	}{
		{"measured", nil, 16 << 20, 64 << 20},
		{"excepted", []string{shell}, 0, 8 << 20},
	} {
		t.Run(test.name, func(t *testing.T) {
			g := newGroup(t)
			// The shell holds 16 MiB in a variable while it sleeps.
			command := start(t, g, `big=$(head -c 16777216 /dev/zero | tr '\0' x); sleep 0.5; echo ${#big} >/dev/null`)
			stop := make(chan struct{})
			go func() {
				_ = command.Wait()
				close(stop)
			}()
			peak, err := g.Sample(stop, 20*time.Millisecond, test.except...)
			if err != nil {
				t.Fatal(err)
			}
			if peak.Bytes < test.least || peak.Bytes > test.most {
				t.Errorf("peak %v: want between %d and %d bytes", peak, test.least, test.most)
			}
		})
	}
}

func TestStateNamesTheCommandThatHangs(t *testing.T) {
	g := newGroup(t)
	command := start(t, g, "exec sleep 600")
	deadline := time.Now().Add(5 * time.Second)
	for !bytes.Contains([]byte(g.State()), []byte("sleep")) {
		if time.Now().After(deadline) {
			t.Fatalf("state %q does not name sleep", g.State())
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err := g.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = command.Wait()
}

func TestClosedGroupLeavesNoCgroup(t *testing.T) {
	g := newGroup(t)
	command := start(t, g, "exec sleep 600")
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	_ = command.Wait()
	if _, err := g.Pids(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error %v: the cgroup is still there", err)
	}
}

package group_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/farpage/farpage/internal/need"
	"github.com/farpage/farpage/test/group"
)

func newGroup(t *testing.T) *group.Group {
	t.Helper()
	g, err := group.New()
	if errors.Is(err, group.ErrNoCgroup) {
		need.Skip(t, err.Error())
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

func TestProcessesThatRunAnExecutableCanBeLeftOut(t *testing.T) {
	g := newGroup(t)
	command := start(t, g, "sleep 600 & wait")
	shell, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", command.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		all, err := g.Pids()
		if err != nil {
			t.Fatal(err)
		}
		rest, err := g.PidsExcept(shell)
		if err != nil {
			t.Fatal(err)
		}
		if len(all) == 2 && len(rest) == 1 && rest[0] != command.Process.Pid {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("pids %v, without %s %v: want two and the other one", all, shell, rest)
		}
	}
	if err := g.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = command.Wait()
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

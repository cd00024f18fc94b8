// Package engines runs containers by the engines that people have, set up by `farpage
// install` as a user would: podman and containerd of the host, and dockerd of a Debian 13
// that is unpacked for it and lives in a mount namespace of its own.
package engines

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/farpage/farpage/api"
	"github.com/farpage/farpage/internal/need"
	"github.com/farpage/farpage/test/agent"
	"github.com/farpage/farpage/test/container"
	"github.com/farpage/farpage/test/group"
)

// scratch is where all that the tests make is.
var scratch string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		var err error
		if scratch, err = os.MkdirTemp("/var/tmp", "farpage-engines-"); err != nil {
			fmt.Fprintln(os.Stderr, "FAIL:", err)
			return 1
		}
		status := m.Run()
		if err := container.RemoveTree(scratch); err != nil {
			fmt.Fprintln(os.Stderr, "FAIL:", err)
			status = max(status, 1)
		}
		return status
	}())
}

// binDir is where the programs under test are.
func binDir(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../../bin")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// host is an agent of the test's own, and the group of the engines' processes.
type host struct {
	*agent.Agent
	t     *testing.T
	bin   string
	group *group.Group
}

func startHost(t *testing.T, before ...string) *host {
	t.Helper()
	need.Root(t, "an agent")
	g := newGroup(t)
	folder, err := os.MkdirTemp("/run", "fp-") // short: engines have long ids, and there is a socket in it
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(folder, 0o711); err != nil {
		t.Fatal(err)
	}
	attributes := g.Attributes()
	attributes.Setpgid = true
	a, err := agent.Start(t.Context(), agent.Config{
		Bin: binDir(t), Folder: folder, LogFile: filepath.Join(folder, "log"), Attributes: attributes, Before: before,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the agent's log ends with:\n%s", a.Log())
		}
		if err := a.Stop(); err != nil {
			t.Error(err)
		}
		if err := os.RemoveAll(folder); err != nil {
			t.Error(err)
		}
	})
	return &host{Agent: a, t: t, bin: binDir(t), group: newGroup(t)}
}

// newGroup makes a group whose processes are ended with the test.
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
		if err := g.Close(); err != nil {
			t.Error(err)
		}
	})
	return g
}

// farpage runs the command line and returns what it prints.
func (h *host) farpage(args ...string) string {
	h.t.Helper()
	out, err := exec.CommandContext(h.t.Context(), filepath.Join(h.bin, "farpage"), args...).CombinedOutput()
	if err != nil {
		h.t.Fatalf("farpage %q: %v\n%s", args, err, out)
	}
	return string(out)
}

// expectEmpty waits until the agent knows no container any more.
func (h *host) expectEmpty(t *testing.T) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		all, err := h.List(context.WithoutCancel(t.Context())) // a test's clean-up calls it too
		if err != nil {
			t.Fatal(err)
		}
		if len(all) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the agent still lists %+v", all)
		}
	}
}

// alone waits until a container has only its first process left, and returns what the
// agent says of it.
func (h *host) alone(t *testing.T, id string) api.Container {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		s, err := h.Stats(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		if s.Processes.Managed == 1 && s.Processes.Unmanaged == 0 {
			return s
		}
		if time.Now().After(deadline) {
			t.Fatalf("container %s still has %+v", id, s.ProcessList)
		}
	}
}

var guestsOnce = sync.OnceValues(func() (string, error) {
	dir := filepath.Join(scratch, "guests")
	targets := []string{}
	for _, name := range []string{"threads8", "musl-threads8", "static-threads8"} {
		targets = append(targets, filepath.Join(dir, name))
	}
	out, err := exec.Command("make", append([]string{"-s", "-C", "../guest", "BUILD=" + dir}, targets...)...).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("make the guests: %w\n%s", err, out)
	}
	return dir, err
})

// guest is a program of test/guest.
func guest(t *testing.T, name string) string {
	t.Helper()
	dir, err := guestsOnce()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, name)
}

// imageOf lays out a root file system with a shell, cat, sleep and programs of test/guest,
// which are in /bin.
func imageOf(t *testing.T, guests ...string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "image")
	files := map[string]string{}
	for _, name := range guests {
		files["/usr/bin/"+name] = guest(t, name)
	}
	cfg := container.Config{Programs: []string{"/bin/sh", "/bin/cat", "/bin/sleep", "/bin/ls", "/usr/bin/env", "/usr/bin/id"}, Files: files}
	if err := container.WriteRootfs(dir, cfg); err != nil {
		t.Fatal(err)
	}
	return dir
}

// same compares what two containers see, without what is another each time.
func same(t *testing.T, what, with, without string) {
	t.Helper()
	if with != without {
		t.Errorf("%s: with farpage installed\n%s\nwithout it\n%s", what, with, without)
	}
}

// contains checks for all of the texts.
func contains(t *testing.T, what, text string, wanted ...string) {
	t.Helper()
	for _, w := range wanted {
		if !strings.Contains(text, w) {
			t.Errorf("%s: want %q in\n%s", what, w, text)
		}
	}
}

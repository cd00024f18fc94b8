package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/farpage/farpage/internal/need"
	"github.com/farpage/farpage/test/agent"
	"github.com/farpage/farpage/test/container"
)

// host is an agent of the test's own, for containers. It is a host's agent as it
// is, but for where its sockets and its state are.
type host struct {
	*agent.Agent
	t *testing.T
}

// hostFolders is what the paths of this test process's hosts begin with. They are
// short, because there are sockets in them.
var hostFolders = fmt.Sprintf("/run/farpage-test-%d-", os.Getpid())

// startHost starts the agent, with more flags where they are given. When the test ends,
// it is stopped and must leave nothing behind.
func startHost(t *testing.T, flags ...string) *host {
	t.Helper()
	requireFarpage(t)
	if err := container.Missing(); err != nil {
		need.Skip(t, err.Error())
	}
	folder, err := os.MkdirTemp(filepath.Dir(hostFolders), filepath.Base(hostFolders))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(folder); err != nil {
			t.Error(err)
		}
	})
	// Processes in containers pass through.
	if err := os.Chmod(folder, 0o711); err != nil {
		t.Fatal(err)
	}
	group := groups.open(t)
	attributes := group.Attributes()
	attributes.Setpgid = true
	a, err := agent.Start(t.Context(), agent.Config{
		Bin: filepath.Dir(farpagePath()), Folder: folder, LogFile: filepath.Join(folder, "log"), Flags: flags,
		Attributes: attributes,
	})
	if err != nil {
		t.Fatal(err)
	}
	h := &host{Agent: a, t: t}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the agent's log ends with:\n%s", h.Log())
		}
		if err := h.Stop(); err != nil {
			t.Error(err)
		}
		if empty, err := group.Await(time.Second); !empty || err != nil {
			t.Errorf("the agent has left processes (%v):\n%s", err, group.State())
		}
	})
	return h
}

// expectForgotten waits until the agent no longer knows a container that has ended.
func (h *host) expectForgotten(t *testing.T, id string) {
	t.Helper()
	for deadline := time.Now().Add(endLimit); ; time.Sleep(20 * time.Millisecond) {
		all, err := h.List(t.Context())
		if err != nil {
			t.Errorf("list containers: %v", err)
			return
		}
		ids := make([]string, 0, len(all))
		for _, c := range all {
			ids = append(ids, c.ID)
		}
		if !slices.Contains(ids, id) {
			return
		}
		if time.Now().After(deadline) {
			t.Errorf("the agent still lists container %s, which has ended", id)
			return
		}
	}
}

// descriptors counts what the agent has open.
func (h *host) descriptors() int {
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", h.Pid()))
	if err != nil {
		h.t.Error(err)
	}
	return len(entries)
}

// removeHostFolders is for the end of the whole program, after their agents'.
func removeHostFolders() {
	folders, _ := filepath.Glob(hostFolders + "*")
	for _, folder := range folders {
		if err := os.RemoveAll(folder); err != nil {
			fmt.Fprintln(os.Stderr, "FAIL:", err)
		}
	}
}

package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/farpage/farpage/api"
	"github.com/farpage/farpage/oci/policy"
	"github.com/farpage/farpage/test/container"
	"github.com/farpage/farpage/test/group"
	"golang.org/x/sys/unix"
)

// contained is a program in a container, whose folder has the same path inside as
// outside. A shell stays behind the program until its statistics have been read: an
// agent forgets a container with its last process.
type contained struct {
	t              *testing.T
	host           *host
	container      *container.Container
	dir            string
	budget         int64 // bytes
	started        time.Time
	watched        func() container.Resident
	stdout, stderr bytes.Buffer
}

// Files in the program's folder: its exit status, and the fifo that says that the
// shell may end.
const (
	statusName = ".status"
	goName     = ".go"
)

// Without exec: the shell is to remain.
const holdScript = `"$@"; status=$?; echo $status >.status; read go <.go; exit $status`

// startContained runs argv in dir, in a container as strict as engines make them:
// uid 1000, no capabilities, no new privileges, seccomp, a root file system that is
// read-only. It has the one annotation and the one hook, and what contents adds.
func (h *host) startContained(t *testing.T, dir, local string, contents func(*container.Config), argv ...string) *contained {
	t.Helper()
	budget, err := policy.ParseSize(local)
	if err != nil {
		t.Fatal(err)
	}
	c := &contained{t: t, host: h, dir: dir, budget: budget}
	if err := unix.Mkfifo(filepath.Join(dir, goName), 0o666); err != nil {
		t.Fatal(err)
	}
	cfg := container.Config{
		Args:        append([]string{"/bin/sh", "-c", holdScript, "sh"}, argv...),
		Env:         []string{"TMPDIR=" + dir},
		Cwd:         dir,
		Programs:    []string{"/bin/sh"},
		Binds:       []container.Bind{{Host: dir, Inside: dir}},
		Annotations: map[string]string{policy.KeyLocal: local},
		Prestart:    container.Hook(filepath.Dir(farpagePath()), h.SocketDir()),
		ReadOnly:    true,
		Stdout:      &c.stdout, Stderr: &c.stderr,
		Dir: t.TempDir(),
	}
	if argv[0] != "sh" && argv[0] != container.PythonPath {
		cfg.Programs = append(cfg.Programs, argv[0])
	}
	if contents != nil {
		contents(&cfg)
	}
	giveAway(t, dir)
	c.started = time.Now()
	c.container = containers.start(t, cfg)
	c.watched = watch(t, c.container.Pids)
	return c
}

// giveAway makes the container's user the owner of a folder.
func giveAway(t *testing.T, dir string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, container.UID, container.GID)
	})
	if err != nil {
		t.Fatal(err)
	}
}

func (c *contained) wait(limit time.Duration) outcome {
	c.t.Helper()
	status := c.awaitProgram(limit)
	result := outcome{duration: time.Since(c.started), budget: c.budget, stats: c.stats().Stats}
	c.letGo()
	ctx, cancel := context.WithTimeout(c.t.Context(), endLimit)
	defer cancel()
	var err error
	if result.status, err = c.container.Wait(ctx); err != nil {
		c.giveUp(err.Error())
	}
	if text := fmt.Sprintln(result.status); text != status {
		c.t.Errorf("the container ended with status %d, its program with %q", result.status, status)
	}
	result.peak = c.watched()
	result.stdout, result.stderr = c.stdout.Bytes(), c.stderr.Bytes()
	c.host.expectForgotten(c.t, c.container.ID())
	return result
}

// awaitProgram returns what the shell wrote about the program's end.
func (c *contained) awaitProgram(limit time.Duration) string {
	c.t.Helper()
	deadline := time.After(limit)
	for {
		text, _ := os.ReadFile(filepath.Join(c.dir, statusName))
		if bytes.HasSuffix(text, []byte("\n")) {
			return string(text)
		}
		select {
		case <-c.container.Ended():
			c.giveUp("ended before its program")
		case <-deadline:
			c.giveUp("did not end within " + limit.String())
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// letGo ends the shell.
func (c *contained) letGo() {
	c.t.Helper()
	fifo, err := os.OpenFile(filepath.Join(c.dir, goName), os.O_RDWR, 0)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { _ = fifo.Close() })
	if _, err := fifo.WriteString("\n"); err != nil {
		c.t.Fatal(err)
	}
}

// stats are the agent's, now.
func (c *contained) stats() api.Container {
	c.t.Helper()
	stats, err := c.host.Stats(c.t.Context(), c.container.ID())
	if err != nil {
		c.giveUp(err.Error())
	}
	return stats
}

func (c *contained) giveUp(why string) {
	c.t.Helper()
	c.watched()
	pids, err := c.container.Pids()
	if err != nil {
		c.t.Error(err)
	}
	state := group.Threads(pids)
	if err := c.container.Close(); err != nil {
		c.t.Error(err)
	}
	c.t.Fatalf("container %s %s\n%s\nstdout:\n%s\nstderr:\n%s\nthe agent's log:\n%s", c.container.ID(), why, state,
		tail(c.stdout.Bytes()), tail(c.stderr.Bytes()), c.host.Log())
}

// openContainers are those that may still run.
type openContainers struct {
	mu  sync.Mutex
	all map[*container.Container]bool // guarded by mu
}

var containers = openContainers{all: map[*container.Container]bool{}}

// start starts a container that is removed with the test.
func (o *openContainers) start(t *testing.T, cfg container.Config) *container.Container {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	o.mu.Lock()
	defer o.mu.Unlock()
	c, err := container.Start(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	o.all[c] = true
	t.Cleanup(func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		delete(o.all, c)
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// closeAll is for the end of the whole program. It keeps the lock: no test goes on
// to start another.
func (o *openContainers) closeAll() {
	o.mu.Lock()
	for _, c := range slices.Collect(maps.Keys(o.all)) {
		if err := c.Close(); err != nil {
			fmt.Fprintln(os.Stderr, "FAIL:", err)
		}
	}
}

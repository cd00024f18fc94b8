package engine_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/farpage/farpage/api"
	"github.com/farpage/farpage/handler/engine"
	"github.com/farpage/farpage/handler/handoff"
	"github.com/farpage/farpage/handler/target"
	"github.com/farpage/farpage/handler/uffd"
	"github.com/farpage/farpage/internal/need"
	"github.com/farpage/farpage/oci/policy"
	"github.com/farpage/farpage/shim/lib"
	"github.com/farpage/farpage/store"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
)

// patience is how long anything may take: the machine may be busy.
const patience = 30 * time.Second

// Where the guest's pages are. Policies that name it leave the guest's stacks and
// its libc alone, so that only what a test asks for is far.
const region = 0x600000000000

const pageSize = 4096

// guests is testdata/guest.c, compiled once.
var guests guestProgram

type guestProgram struct {
	once sync.Once
	dir  string
	path string
	err  error
}

func (g *guestProgram) build() {
	var compiler string
	if compiler, g.err = exec.LookPath("gcc"); g.err != nil {
		return
	}
	if g.dir, g.err = os.MkdirTemp("", "farpage-engine-"); g.err != nil {
		return
	}
	g.path = filepath.Join(g.dir, "guest")
	if out, err := exec.Command(compiler, "-O1", "-Wall", "-Werror", "-pthread", "-o", g.path, "testdata/guest.c").CombinedOutput(); err != nil {
		g.err = fmt.Errorf("gcc: %w\n%s", err, out)
	}
}

func (g *guestProgram) remove() {
	if g.dir != "" {
		_ = os.RemoveAll(g.dir)
	}
}

// logBuffer is written by engines and read by tests.
type logBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer // guarded by mu
}

func (l *logBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// container is an engine of its own and what it serves.
type container struct {
	t      *testing.T
	engine *engine.Engine
	dir    string
	log    *logBuffer
	guests []*guest
	// lossy: pages may be lost, and errors are expected.
	lossy bool
}

// inRegion is a policy for the guest's region alone.
func inRegion(p *policy.Policy) { p.Regions = []policy.Range{{Start: region, End: region + 1<<36}} }

// newContainer makes and runs an engine. Its budget is 8 MiB and its far limit
// none, unless change says otherwise.
func newContainer(t *testing.T, st store.Store, change ...func(p *policy.Policy)) *container {
	t.Helper()
	if os.Geteuid() != 0 {
		need.Skip(t, "userfaultfd with fork events needs root: run `sudo make test`")
	}
	device, err := unix.Open(uffd.Device, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		need.Skip(t, fmt.Sprintf("%s: %v", uffd.Device, err))
	}
	t.Cleanup(func() { _ = unix.Close(device) })
	if guests.once.Do(guests.build); guests.err != nil {
		need.Skip(t, fmt.Sprintf("the guest needs gcc and libc's headers: %v", guests.err))
	}
	c := &container{t: t, dir: t.TempDir(), log: &logBuffer{}}
	library, err := lib.Library(c.dir)
	if err != nil {
		t.Fatal(err)
	}
	// The constructor waits until its process is armed.
	bell := make([]byte, pageSize)
	bell[0] = handoff.BellRungWait
	for name, b := range map[string][]byte{"libfarpage.so": library, "bell": bell} {
		if err := os.WriteFile(filepath.Join(c.dir, name), b, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	p := policy.Policy{LocalBytes: 8 << 20, FarBytes: policy.Unlimited, LowPercent: 85, HighPercent: 95}
	for _, f := range change {
		f(&p)
	}
	log := logrus.New()
	log.SetOutput(c.log)
	c.engine, err = engine.New(engine.Config{
		ID: t.Name(), Pid: os.Getpid(), Start: target.StartTime(os.Getpid()), Dir: c.dir, Policy: p,
	}, st, device, logrus.NewEntry(log))
	if err != nil {
		t.Fatal(err)
	}
	go c.engine.Run()
	t.Cleanup(c.end)
	return c
}

func (c *container) end() {
	for _, g := range c.guests {
		g.kill()
	}
	s := c.stats()
	if !c.lossy && (s.Faults.Unexplained > 0 || s.Errors.Checksum > 0 || s.Errors.Store > 0) {
		c.t.Errorf("unexplained faults %d, errors %+v", s.Faults.Unexplained, s.Errors)
	}
	c.within("no process is left", func() bool { return c.stats().Processes.Managed == 0 })
	if s := c.stats(); s.FarBytes != 0 {
		c.t.Errorf("%d bytes are far and no process is left", s.FarBytes)
	}
	if err := c.engine.Abandon(); err != nil {
		c.t.Fatal(err)
	}
	if err := c.engine.Close(); err != nil {
		c.t.Error(err)
	}
	if c.t.Failed() {
		c.t.Logf("log of the engine:\n%s", c.log)
	}
}

func (c *container) stats() (s api.Container) {
	c.t.Helper()
	s, err := engine.Ask(c.engine, c.engine.Stats)
	if err != nil {
		c.t.Fatal(err)
	}
	return s
}

// within waits for something that takes a moment.
func (c *container) within(what string, f func() bool) {
	c.t.Helper()
	for deadline := time.Now().Add(patience); !f(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			c.t.Errorf("after %v still not: %s; statistics %+v", patience, what, c.stats())
			return
		}
	}
}

// evict evicts all that can be, and wants at least n pages of that.
func (c *container) evict(n int64) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	// A mapping is registered, and its pages are found, when it is looked at next.
	var sum int64
	c.within(fmt.Sprintf("%d pages evicted", n), func() bool {
		got, err := c.engine.EvictAndWait(ctx, -1)
		if err != nil {
			c.t.Error(err)
		}
		sum += got
		return err != nil || sum >= n
	})
}

// nobodyIsHeld waits until no thread of the guests is traced.
func (c *container) nobodyIsHeld() {
	c.t.Helper()
	c.within("all threads go on", func() bool {
		for _, g := range c.guests {
			statuses, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", g.command.Process.Pid))
			if err != nil || len(statuses) == 0 {
				c.t.Fatal(statuses, err)
			}
			for _, path := range statuses {
				text, err := os.ReadFile(path)
				if err == nil && !strings.Contains(string(text), "\nTracerPid:\t0\n") {
					return false
				}
			}
		}
		return true
	})
}

// guest is a process in a container.
type guest struct {
	t       *testing.T
	name    string
	command *exec.Cmd
	input   io.WriteCloser
	lines   chan string
	stderr  bytes.Buffer
	ended   bool
}

// start starts a guest with arguments; it is managed before its main runs.
func (c *container) start(args ...string) *guest {
	c.t.Helper()
	g := &guest{t: c.t, name: strings.Join(args, " "), command: exec.Command(guests.path, args...), lines: make(chan string, 64)}
	g.command.Env = []string{"LD_PRELOAD=" + filepath.Join(c.dir, "libfarpage.so")}
	g.command.Stderr = &g.stderr
	var err error
	if g.input, err = g.command.StdinPipe(); err != nil {
		c.t.Fatal(err)
	}
	out, err := g.command.StdoutPipe()
	if err != nil {
		c.t.Fatal(err)
	}
	if err := g.command.Start(); err != nil {
		c.t.Fatal(err)
	}
	c.guests = append(c.guests, g)
	go func() {
		defer close(g.lines)
		for s := bufio.NewScanner(out); s.Scan(); {
			g.lines <- s.Text()
		}
	}()
	return g
}

// interpreter starts a guest that takes commands.
func (c *container) interpreter() *guest {
	c.t.Helper()
	g := c.start()
	if s := g.reply(); s != "ready" {
		c.t.Fatalf("the guest says %q", s)
	}
	return g
}

func (g *guest) send(format string, args ...any) {
	g.t.Helper()
	g.name = fmt.Sprintf(format, args...)
	if _, err := fmt.Fprintln(g.input, g.name); err != nil {
		g.t.Fatal(err)
	}
}

// reply is the next line that the guest writes.
func (g *guest) reply() string {
	g.t.Helper()
	select {
	case s, ok := <-g.lines:
		if !ok {
			g.t.Fatalf("guest (%s): it has ended: %s", g.name, &g.stderr)
		}
		return s
	case <-time.After(patience):
		g.t.Fatalf("guest (%s): no answer after %v:\n%s", g.name, patience, g.state())
	}
	return ""
}

// state says where the guest's threads are in the kernel.
func (g *guest) state() string {
	var text strings.Builder
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", g.command.Process.Pid))
	for _, task := range tasks {
		for _, f := range []string{"comm", "wchan", "syscall"} {
			b, _ := os.ReadFile(filepath.Join(task, f))
			text.WriteString(strings.TrimSpace(string(b)) + " ")
		}
		text.WriteByte('\n')
	}
	return text.String()
}

// does sends a command that is answered with ok.
func (g *guest) does(format string, args ...any) {
	g.t.Helper()
	if g.send(format, args...); g.reply() != "ok" {
		g.t.Fatalf("guest (%s): not ok", g.name)
	}
}

// found is what the guest found in pages that it looked at.
type found struct{ Wrong, Bus, First uint64 }

func (g *guest) found() found {
	g.t.Helper()
	line := g.reply()
	var f found
	if _, err := fmt.Sscanf(line, "wrong=%d bus=%d first=%v", &f.Wrong, &f.Bus, &f.First); err != nil {
		g.t.Fatalf("guest (%s): %q: %v", g.name, line, err)
	}
	return f
}

func (g *guest) finds(format string, args ...any) found {
	g.t.Helper()
	g.send(format, args...)
	return g.found()
}

// right is a command after which every page must be right.
func (g *guest) right(format string, args ...any) {
	g.t.Helper()
	if f := g.finds(format, args...); f != (found{}) {
		g.t.Errorf("guest (%s): %d wrong pages, %d lost, %#x", g.name, f.Wrong, f.Bus, f.First)
	}
}

// wait waits for the guest's end by itself.
func (g *guest) wait() {
	g.t.Helper()
	_ = g.input.Close()
	ended := make(chan error, 1)
	go func() { ended <- g.command.Wait() }()
	select {
	case err := <-ended:
		g.ended = true
		if err != nil {
			g.t.Errorf("guest (%s): %v: %s", g.name, err, &g.stderr)
		}
	case <-time.After(patience):
		_ = g.command.Process.Kill()
		g.ended = true
		g.t.Fatalf("guest (%s): no end after %v (%v):\n%s", g.name, patience, <-ended, g.state())
	}
}

func (g *guest) kill() {
	if !g.ended {
		g.ended = true
		_ = g.command.Process.Kill() // it may be gone already
		_ = g.command.Wait()
	}
	for range g.lines { // until its other end is closed
	}
}

// memory is a store in RAM that is closed after the container.
func memory(t *testing.T) store.Store {
	t.Helper()
	m := store.NewMem()
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

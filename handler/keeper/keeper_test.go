package keeper

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/farpage/farpage/handler/target"
	"github.com/farpage/farpage/internal/need"
	"golang.org/x/sys/unix"
)

// TestMain makes the keepers whose agents have died this process's children:
// where nobody reaps orphans they would stay as zombies.
func TestMain(m *testing.M) {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		fmt.Fprintln(os.Stderr, os.NewSyscallError("prctl", err))
		os.Exit(1)
	}
	status := m.Run()
	if program.dir != "" {
		_ = os.RemoveAll(program.dir)
	}
	os.Exit(status)
}

// agent is a process of testdata/keep.
type agent struct {
	command *exec.Cmd
	told    struct {
		Record                       Record
		Early, Before, After, Closed int
	}
}

// program is testdata/keep, built as agents are, without cgo: with it (and the race
// detector brings it) the C library has the kernel write to a page of each thread,
// which a keeper has unmapped, and it dies at its first SIGCONT.
var program struct {
	once sync.Once
	dir  string
	path string
	err  error
}

func build(t *testing.T) string {
	t.Helper()
	program.once.Do(func() {
		compiler, err := exec.LookPath("go")
		if err != nil {
			program.err = err
			return
		}
		if program.dir, program.err = os.MkdirTemp("", "farpage-keeper-"); program.err != nil {
			return
		}
		program.path = filepath.Join(program.dir, "keep")
		c := exec.Command(compiler, "build", "-o", program.path, "./testdata/keep")
		c.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := c.CombinedOutput(); err != nil {
			program.err = fmt.Errorf("go build: %w\n%s", err, out)
		}
	})
	if program.err != nil {
		t.Fatal(program.err)
	}
	return program.path
}

// start starts an agent; before are the words of what it is started by, which becomes it.
func start(t *testing.T, how, dir string, before ...string) *agent {
	t.Helper()
	need.Root(t, "pidfd_getfd of a keeper")
	words := append(slices.Clone(before), build(t), how, dir)
	a := &agent{command: exec.Command(words[0], words[1:]...)}
	a.command.Stderr = os.Stderr
	out, err := a.command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := a.command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		a.kill()
		end(t, a.told.Record)
	})
	line := make(chan string, 1)
	go func() {
		// One line only: the keeper holds the pipe's other end.
		s, _ := bufio.NewReader(out).ReadString('\n')
		line <- s
	}()
	select {
	case s := <-line:
		if err := json.Unmarshal([]byte(s), &a.told); err != nil {
			t.Fatalf("%q: %v", s, err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("the agent says nothing")
	}
	return a
}

// kill ends the agent, not its keeper, at once.
func (a *agent) kill() {
	_ = a.command.Process.Kill() // it may be gone already
	_ = a.command.Wait()
}

// end makes sure that a keeper is gone, whatever the test did.
func end(t *testing.T, r Record) {
	t.Helper()
	if r.Pid == 0 {
		return
	}
	if alive(r.Pid, r.Start) {
		pidfd, err := unix.PidfdOpen(r.Pid, 0)
		if err == nil {
			_ = unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0)
			_ = unix.Close(pidfd)
		}
	}
	_, _ = unix.Wait4(r.Pid, nil, unix.WALL, nil)
	if alive(r.Pid, r.Start) {
		t.Errorf("keeper %d is left", r.Pid)
	}
}

// status is a field of /proc/PID/status.
func status(t *testing.T, pid int, name string) string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, name+":"); ok {
			return strings.TrimSpace(rest)
		}
	}
	return ""
}

// within waits for something that takes a moment.
func within(t *testing.T, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("after 10 s still not: %s", what)
		}
	}
}

func TestDescriptorsOutliveTheAgentUnderTheirNumbers(t *testing.T) {
	dir := t.TempDir()
	a := start(t, "publish", dir)
	for _, fd := range []int{a.told.Early, a.told.Before, a.told.After} {
		if fd < FirstFD {
			t.Errorf("descriptor %d is below %d", fd, FirstFD)
		}
	}
	a.kill()
	r, ok, err := Read(dir)
	if err != nil || !ok || r != a.told.Record {
		t.Fatalf("record %+v, there %v, %v: want %+v", r, ok, err, a.told.Record)
	}
	if r.AgentAlive() {
		t.Error("the agent is dead and is taken for alive")
	}
	from, err := Open(r)
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	for name, fd := range map[string]int{"early": a.told.Early, "before": a.told.Before, "after": a.told.After} {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); !errors.Is(err, unix.EBADF) {
			t.Fatalf("descriptor %d is in use by the test itself: %v", fd, err)
		}
		if err := from.Take(fd); err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		buf := make([]byte, 16)
		n, err := unix.Pread(fd, buf, 0)
		if err != nil || string(buf[:n]) != name {
			t.Errorf("descriptor %d holds %q, %v: want %q", fd, buf[:max(n, 0)], err, name)
		}
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
			t.Errorf("descriptor %d: flags %#x, %v", fd, flags, err)
		}
	}
	// The table is shared: what the agent had closed is not held open.
	if err := from.Take(a.told.Closed); !errors.Is(err, unix.EBADF) || !strings.Contains(err.Error(), strconv.Itoa(a.told.Closed)) {
		t.Errorf("a descriptor that was closed: %v", err)
	}
}

func TestKeeperIsSmallAndOnItsOwn(t *testing.T) {
	a := start(t, "publish", t.TempDir())
	pid := a.told.Record.Pid
	// The clone is told its pid before it has done its part.
	within(t, "named and asleep", func() bool {
		return target.Command(pid) == "farpage-keeper" && strings.HasPrefix(status(t, pid, "State"), "S") && rss(t, pid) <= 64
	})
	if dir, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid)); err != nil || dir != "/" {
		t.Errorf("its folder is %q, %v: it would keep a file system busy", dir, err)
	}
	session, err := unix.Getsid(pid)
	if err != nil || session != pid {
		t.Errorf("its session is %d, %v: the terminal's signals reach it", session, err)
	}
	if s := status(t, pid, "Threads"); s != "1" {
		t.Errorf("it has %s threads", s)
	}
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		t.Fatal(err)
	}
	writable := 0
	if err := target.Maps(maps, func(v target.VMA) {
		if v.Writable {
			writable++
		}
	}); err != nil || writable > 0 {
		t.Errorf("%d writable mappings, %v:\n%s", writable, err, maps)
	}
}

// rss is in KiB.
func rss(t *testing.T, pid int) int {
	t.Helper()
	n, err := strconv.Atoi(strings.TrimSuffix(status(t, pid, "VmRSS"), " kB"))
	if err != nil {
		return 1 << 30
	}
	return n
}

func TestKeeperOutlivesEverySignalButKill(t *testing.T) {
	dir := t.TempDir()
	a := start(t, "publish", dir)
	a.kill()
	pid := a.told.Record.Pid
	within(t, "asleep", func() bool { return strings.HasPrefix(status(t, pid, "State"), "S") })
	for _, s := range []unix.Signal{unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1, unix.SIGALRM, unix.SIGCHLD, unix.SIGTSTP} {
		signal(t, pid, s)
	}
	for range 20 {
		signal(t, pid, unix.SIGSTOP)
		within(t, "stopped", func() bool { return strings.HasPrefix(status(t, pid, "State"), "T") })
		signal(t, pid, unix.SIGCONT)
		within(t, "going on", func() bool { return strings.HasPrefix(status(t, pid, "State"), "S") })
	}
	if _, ok, err := Read(dir); !ok || err != nil {
		t.Errorf("it is gone: %v, %v", ok, err)
	}
}

func signal(t *testing.T, pid int, s unix.Signal) {
	t.Helper()
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pidfd)
	if err := unix.PidfdSendSignal(pidfd, s, nil, 0); err != nil {
		t.Fatalf("signal %v: %v", s, err)
	}
}

func TestEndEndsAKeeperAndNobodyElse(t *testing.T) {
	a := start(t, "publish", t.TempDir())
	a.kill()
	r := a.told.Record
	End(r.Pid, r.Start+1) // the pid is somebody else's by now
	within(t, "asleep", func() bool { return strings.HasPrefix(status(t, r.Pid, "State"), "S") })
	End(r.Pid, r.Start)
	within(t, "ended", func() bool { return !alive(r.Pid, r.Start) })
	if _, err := Open(r); err == nil {
		t.Error("a keeper that has ended can be opened")
	}

	// A process that is no keeper, by a record that names it rightly.
	c := exec.Command("sleep", "600")
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = c.Process.Kill()
		_ = c.Wait()
	}()
	End(c.Process.Pid, target.StartTime(c.Process.Pid))
	time.Sleep(50 * time.Millisecond)
	if s := status(t, c.Process.Pid, "State"); s == "" || strings.HasPrefix(s, "Z") {
		t.Errorf("a process that is no keeper was ended: state %q", s)
	}
}

func TestKeeperHasItsNameFromItsFirstMoment(t *testing.T) {
	for range 20 {
		a := start(t, "publish", t.TempDir())
		r := a.told.Record
		if n := target.Command(r.Pid); n != name {
			t.Fatalf("it is named %q", n)
		}
		if n := target.Command(r.Agent); n == name {
			t.Fatal("its agent has the keeper's name")
		}
		a.kill()
		End(r.Pid, r.Start)
	}
}

func TestKeeperWhoseAgentLivesIsEndedToo(t *testing.T) {
	dir := t.TempDir()
	a := start(t, "publish", dir)
	// It is not this process's child: nobody waits for it before its agent ends.
	r := a.told.Record
	End(r.Pid, r.Start)
	within(t, "no longer running", func() bool {
		s := status(t, r.Pid, "State")
		return s == "" || strings.HasPrefix(s, "Z")
	})
}

func TestStrayKeeperIsEndedAndThePublishedOneIsNot(t *testing.T) {
	dir, other := t.TempDir(), t.TempDir()
	stray, kept, foreign := start(t, "stray", dir), start(t, "publish", dir), start(t, "publish", other)
	stray.kill()
	EndStrays(dir, kept.told.Record.Pid)
	r := stray.told.Record
	within(t, "the stray one ended", func() bool { return !alive(r.Pid, r.Start) })
	for _, a := range []*agent{kept, foreign} {
		if s := status(t, a.told.Record.Pid, "State"); !strings.HasPrefix(s, "S") {
			t.Errorf("keeper %d is in state %q", a.told.Record.Pid, s)
		}
	}
	if _, ok, err := Read(dir); !ok || err != nil {
		t.Errorf("the published keeper: %v, %v", ok, err)
	}
}

func TestRecordOfAPidThatIsSomebodyElsesIsNotTakenForAlive(t *testing.T) {
	dir := t.TempDir()
	a := start(t, "publish", dir)
	self, selfStart := os.Getpid(), target.StartTime(os.Getpid())
	good := a.told.Record
	for _, c := range []struct {
		name         string
		change       func(r *Record)
		there, agent bool
	}{
		{"as it was", func(*Record) {}, true, true},
		{"another start time", func(r *Record) { r.Start++ }, false, true},
		{"no start time", func(r *Record) { r.Start = 0 }, false, true},
		{"no pid", func(r *Record) { r.Pid = 0 }, false, true},
		{"all processes", func(r *Record) { r.Pid = -1 }, false, true},
		{"a process that is no keeper", func(r *Record) { r.Pid, r.Start = self, selfStart }, false, true},
		{"a pid of nobody", func(r *Record) { r.Pid = 1 << 22 }, false, true},
		{"an agent with another start time", func(r *Record) { r.AgentStart++ }, true, false},
		{"an agent without start time", func(r *Record) { r.AgentStart = 0 }, true, false},
		{"an agent that is nobody", func(r *Record) { r.Agent, r.AgentStart = 1<<22, 0 }, true, false},
	} {
		r := good
		c.change(&r)
		if err := Publish(dir, r); err != nil {
			t.Fatal(err)
		}
		got, there, err := Read(dir)
		if err != nil || got != r {
			t.Fatalf("%s: %+v, %v: want %+v", c.name, got, err, r)
		}
		if there != c.there || got.AgentAlive() != c.agent {
			t.Errorf("%s: keeper there %v, agent alive %v: want %v and %v", c.name, there, got.AgentAlive(), c.there, c.agent)
		}
	}
}

func TestRecordIsThereAsAWholeOrNotAtAll(t *testing.T) {
	dir := t.TempDir()
	if _, ok, err := Read(dir); ok || err != nil {
		t.Errorf("without a record: %v, %v", ok, err)
	}
	if err := Remove(dir); err != nil {
		t.Errorf("removing none: %v", err)
	}
	if err := Publish(dir, Record{Pid: 1}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	published := make(chan error)
	go func() {
		var err error
		for i := 0; ctx.Err() == nil && err == nil; i++ {
			err = Publish(dir, Record{Pid: i, Start: 1 << 60, RootFD: i})
		}
		published <- err
	}()
	for range 3000 {
		if r, _, err := Read(dir); err != nil || r.RootFD != 0 && r.RootFD != r.Pid {
			t.Errorf("read while it is written: %+v, %v", r, err)
			break
		}
	}
	cancel()
	if err := <-published; err != nil {
		t.Error(err)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 1 {
		t.Errorf("files %v, %v: want the record only", left, err)
	}
	if err := Remove(dir); err != nil {
		t.Fatal(err)
	}
	if _, ok, err := Read(dir); ok || err != nil {
		t.Errorf("after Remove: %v, %v", ok, err)
	}
	if err := os.WriteFile(filepath.Join(dir, recordFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, ok, err := Read(dir); ok || err == nil || !strings.Contains(err.Error(), recordFile) {
		t.Errorf("a broken record: %v, %v: want an error that names the file", ok, err)
	}
	if err := Publish(filepath.Join(dir, "none"), Record{}); err == nil {
		t.Error("published into a folder that is not there")
	}
}

func TestLastingMovesADescriptorAndKeepsOneThatLasts(t *testing.T) {
	fd, err := unix.MemfdCreate("low", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	if fd >= FirstFD {
		t.Fatalf("descriptor %d: all below %d are in use", fd, FirstFD)
	}
	moved, err := Lasting(fd)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(moved)
	if moved < FirstFD {
		t.Errorf("moved to %d", moved)
	}
	if flags, err := unix.FcntlInt(uintptr(moved), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("flags %#x, %v", flags, err)
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); !errors.Is(err, unix.EBADF) {
		t.Errorf("the low number is still open: %v", err)
	}
	if again, err := Lasting(moved); err != nil || again != moved {
		t.Errorf("one that lasts became %d, %v", again, err)
	}
	if fd, err := Lasting(-1); err == nil || fd != -1 {
		t.Errorf("no descriptor became %d", fd)
	}
}

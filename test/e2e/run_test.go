package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/farpage/farpage/api"
	"github.com/farpage/farpage/test/container"
	"github.com/farpage/farpage/test/group"
)

const (
	budgetBytes    = 32 << 20
	sampleInterval = 20 * time.Millisecond
	// What the agent takes to end after the last of its processes.
	endLimit = 15 * time.Second
)

// job is a program on its way, in a group or in a container.
type job interface {
	// wait gives it a limit. It fails the test when the program hangs.
	wait(limit time.Duration) outcome
	// giveUp reports what hangs, ends it, and fails the test.
	giveUp(why string)
}

// outcome is how a command ended and what it said.
type outcome struct {
	status   int // exit status, or 128 + the signal's number
	stdout   []byte
	stderr   []byte
	duration time.Duration
	peak     container.Resident
	stats    api.Stats // only under farpage
	budget   int64     // bytes; 0: not under farpage
}

// running is a command that was started in a group of its own.
type running struct {
	t         *testing.T
	group     *group.Group
	command   *exec.Cmd
	started   time.Time
	ended     chan struct{} // closed when the command was waited for
	waitErr   error         // valid when ended is closed
	watched   func() container.Resident
	statsFile string // empty: not under farpage
	stdout    bytes.Buffer
	stderr    bytes.Buffer
}

// startNative starts a command as it is; startFar under the local budget. Both
// work in dir, and have nothing left behind when the test ends.
func startNative(t *testing.T, dir string, argv ...string) *running {
	t.Helper()
	return start(t, dir, "", argv)
}

func startFar(t *testing.T, dir string, argv ...string) *running {
	t.Helper()
	requireFarpage(t)
	stats := filepath.Join(t.TempDir(), "stats.json")
	return start(t, dir, stats, append([]string{farpagePath(), "run", "--local", "32Mi", "--stats", stats, "--"}, argv...))
}

func start(t *testing.T, dir, statsFile string, argv []string) *running {
	t.Helper()
	r := &running{
		t: t, group: groups.open(t), statsFile: statsFile, started: time.Now(), command: exec.Command(argv[0], argv[1:]...),
		ended: make(chan struct{}),
	}
	r.command.Dir = dir
	r.command.Stdout = &r.stdout
	r.command.Stderr = &r.stderr
	// A daemon may hold the output open after the command has ended.
	r.command.WaitDelay = endLimit
	r.command.SysProcAttr = r.group.Attributes()
	if err := r.command.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		r.waitErr = r.command.Wait()
		close(r.ended)
	}()
	// The agent is no part of what it serves.
	r.watched = watch(t, func() ([]int, error) { return r.group.PidsExcept(farpagePath()) })
	return r
}

// wait gives the command until limit, and what it left behind a little more.
func (r *running) wait(limit time.Duration) outcome {
	r.t.Helper()
	return r.waitForAll(limit, endLimit)
}

// waitForAll gives what the command left behind a limit of its own.
func (r *running) waitForAll(limit, leftBehind time.Duration) outcome {
	r.t.Helper()
	select {
	case <-r.ended:
	case <-time.After(limit):
		r.giveUp("did not end within " + limit.String())
	}
	duration := time.Since(r.started)
	if errors.Is(r.waitErr, exec.ErrWaitDelay) {
		r.t.Errorf("%v has ended, but something it left behind holds its output open", r.command.Args)
	}
	result := outcome{
		status: exitStatus(r.command.ProcessState), duration: duration, peak: r.watched(),
		stdout: r.stdout.Bytes(), stderr: r.stderr.Bytes(),
	}
	empty, err := r.group.Await(leftBehind)
	if err != nil {
		r.t.Fatal(err)
	}
	if !empty {
		r.giveUp("left processes behind")
	}
	if r.statsFile != "" {
		result.budget = budgetBytes
		result.stats = readStats(r.t, r.statsFile, result.stderr)
	}
	return result
}

// giveUp reports what hangs before the test's clean-up ends it.
func (r *running) giveUp(why string) {
	r.t.Helper()
	r.watched()
	state := r.group.State() + r.agentState()
	if err := end(r.group); err != nil {
		r.t.Error(err)
	}
	<-r.ended
	r.t.Fatalf("%v %s\n%s\nstdout:\n%s\nstderr:\n%s", r.command.Args, why, state, tail(r.stdout.Bytes()), tail(r.stderr.Bytes()))
}

// agentState is what the private agent knows and has logged.
func (r *running) agentState() string {
	var text strings.Builder
	pids, _ := r.group.Pids()
	for _, dir := range privateDirs(pids) {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		all, err := api.NewClientIn(dir).List(ctx)
		cancel()
		log, _ := os.ReadFile(filepath.Join(dir, "agent.log"))
		fmt.Fprintf(&text, "the agent knows: %+v %v\nthe agent's log:\n%s\n", all, err, tail(log))
	}
	return text.String()
}

// watch samples what the processes keep resident, until the returned function is
// called, or the test's clean-up comes to it.
func watch(t *testing.T, pids func() ([]int, error)) func() container.Resident {
	t.Helper()
	watcher := container.Watch(pids, sampleInterval)
	stop := sync.OnceValue(func() container.Resident {
		seen := watcher.Stop()
		if seen.Err != nil {
			t.Errorf("sample: %v", seen.Err)
		}
		return seen
	})
	t.Cleanup(func() { stop() })
	return stop
}

func exitStatus(state *os.ProcessState) int {
	status, ok := state.Sys().(syscall.WaitStatus)
	if ok && status.Signaled() {
		return 128 + int(status.Signal())
	}
	return state.ExitCode()
}

func readStats(t *testing.T, path string, stderr []byte) api.Stats {
	t.Helper()
	var stats api.Stats
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("no statistics: %v\nstderr:\n%s", err, tail(stderr))
	}
	if err := json.Unmarshal(text, &stats); err != nil {
		t.Fatalf("statistics %q: %v", text, err)
	}
	return stats
}

// tail keeps a report readable.
func tail(text []byte) []byte {
	const most = 8 << 10
	if len(text) > most {
		return append([]byte("...\n"), text[len(text)-most:]...)
	}
	return text
}

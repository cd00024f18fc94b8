package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/farpage/farpage/api"
	"github.com/farpage/farpage/test/group"
)

const (
	budgetBytes    = 32 << 20
	sampleInterval = 20 * time.Millisecond
	// What the agent takes to end after the last of its processes.
	endLimit = 15 * time.Second
)

// outcome is how a command ended and what it said.
type outcome struct {
	status   int // exit status, or 128 + the signal's number
	stdout   []byte
	stderr   []byte
	duration time.Duration
	peak     group.Peak
	stats    api.Stats // only under farpage
}

// running is a command that was started in a group of its own.
type running struct {
	t            *testing.T
	group        *group.Group
	command      *exec.Cmd
	started      time.Time
	ended        chan struct{} // closed when the command was waited for
	waitErr      error         // valid when ended is closed
	stopSampling chan struct{}
	sampled      chan struct{} // closed when the sampling has ended
	peak         group.Peak    // valid when sampled is closed
	sampleErr    error         // the same
	stop         func()        // ends the sampling; may be called again
	statsFile    string        // empty: not under farpage
	stdout       bytes.Buffer
	stderr       bytes.Buffer
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
		ended: make(chan struct{}), stopSampling: make(chan struct{}), sampled: make(chan struct{}),
	}
	r.stop = sync.OnceFunc(func() { close(r.stopSampling) })
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
	go func() {
		r.peak, r.sampleErr = r.group.Sample(r.stopSampling, sampleInterval, farpagePath())
		close(r.sampled)
	}()
	// Before the group is closed, which the sampling reads.
	t.Cleanup(func() {
		r.stop()
		<-r.sampled
	})
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
	r.stop()
	<-r.sampled
	if r.sampleErr != nil {
		r.t.Errorf("sample: %v", r.sampleErr)
	}
	result := outcome{
		status: exitStatus(r.command.ProcessState), duration: duration, peak: r.peak,
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
		result.stats = readStats(r.t, r.statsFile, result.stderr)
	}
	return result
}

// giveUp reports what hangs before the test's clean-up ends it.
func (r *running) giveUp(why string) {
	r.t.Helper()
	r.stop()
	<-r.sampled
	state := r.group.State()
	if err := end(r.group); err != nil {
		r.t.Error(err)
	}
	<-r.ended
	r.t.Fatalf("%v %s\n%s\nstdout:\n%s\nstderr:\n%s", r.command.Args, why, state, tail(r.stdout.Bytes()), tail(r.stderr.Bytes()))
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

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/farpage/farpage/api"
)

// agent is a `farpage agent` of the demo's own.
type agent struct {
	socketDir string
	logFile   string
	cmd       *exec.Cmd
	ended     context.Context // done when the process has ended
	client    *api.Client
	keepers   *keepers
}

// startAgent runs the agent and waits until it answers.
func startAgent(ctx context.Context, bin, logFile string, place *place) (*agent, error) {
	for _, program := range []string{"farpage", "farpage-hook"} {
		if _, err := exec.LookPath(filepath.Join(bin, program)); err != nil {
			return nil, fmt.Errorf("farpage is not built, `make build` does it: %w", err)
		}
	}
	a := &agent{
		socketDir: filepath.Join(place.sockets, "agent"),
		logFile:   logFile,
		keepers:   &keepers{},
	}
	stateDir := filepath.Join(place.sockets, "state")
	for dir, mode := range map[string]os.FileMode{a.socketDir: 0o711, stateDir: 0o700} {
		if err := os.Mkdir(dir, mode); err != nil {
			return nil, fmt.Errorf("start the agent: %w", err)
		}
	}
	a.client = api.NewClientIn(a.socketDir)
	// A file: a pipe would stay open as long as the keeper lives.
	log, err := os.Create(a.logFile)
	if err != nil {
		return nil, fmt.Errorf("start the agent: %w", err)
	}
	defer log.Close()
	a.cmd = exec.Command(filepath.Join(bin, "farpage"), "agent", "--socket-dir", a.socketDir,
		"--state-dir", stateDir, "--store", "mem:")
	a.cmd.Stdout, a.cmd.Stderr = log, log
	// An interrupt from the terminal is for us, who end it after the container.
	a.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := a.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the agent: %w", err)
	}
	ended, end := context.WithCancel(context.Background())
	a.ended = ended
	go func() {
		defer end()
		_ = a.cmd.Wait() // stop reads the status
	}()
	if err := a.ready(ctx); err != nil {
		place.leave(a.stop())
		return nil, fmt.Errorf("wait for the agent: %w", err)
	}
	// Once now: if the agent dies, they cannot be found any more.
	if err := a.keepers.find(a.cmd.Process.Pid); err != nil {
		place.leave(a.stop())
		return nil, err
	}
	return a, nil
}

func (a *agent) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 10*time.Second, errors.New("it does not answer"))
	defer cancel()
	for {
		_, err := a.client.List(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(context.Cause(ctx), err)
		case <-a.ended.Done():
			return fmt.Errorf("it ended (%s)", a.cmd.ProcessState)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// stats are a container's statistics and processes.
func (a *agent) stats(ctx context.Context, id string) (api.Container, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	c, err := a.client.Get(ctx, id)
	if err != nil {
		return c, fmt.Errorf("ask the agent for statistics: %w", err)
	}
	return c, nil
}

// log is the end of what the agent wrote.
func (a *agent) log() string {
	text, err := os.ReadFile(a.logFile)
	if err != nil {
		return err.Error()
	}
	const most = 4 << 10
	if len(text) == 0 {
		return "(it wrote nothing)"
	}
	return strings.TrimSpace(string(text[max(0, len(text)-most):]))
}

// stop ends the agent and sees to it that its keeper is gone too. To have to use
// force is an error, and so is a status that is not 0.
func (a *agent) stop() error {
	const patience = 10 * time.Second
	var errs []error
	a.client.Close()
	if a.ended.Err() == nil {
		errs = append(errs, a.keepers.find(a.cmd.Process.Pid))
		_ = a.cmd.Process.Signal(syscall.SIGTERM) // it may end by itself just now
	}
	select {
	case <-a.ended.Done():
		if !a.cmd.ProcessState.Success() {
			errs = append(errs, fmt.Errorf("the agent ended with %s: %s", a.cmd.ProcessState, a.log()))
		}
	case <-time.After(patience):
		errs = append(errs, fmt.Errorf("the agent did not end on SIGTERM within %v: %s", patience, a.log()))
		_ = a.cmd.Process.Kill()
		<-a.ended.Done()
	}
	errs = append(errs, a.keepers.end())
	return errors.Join(errs...)
}

package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/farpage/farpage/api"
)

// Config says where an agent's things are.
type Config struct {
	Bin     string // folder of the farpage programs
	Folder  string // sockets and state are made in it; a short path
	LogFile string
	Flags   []string // more of `farpage agent`
	Before  []string // what it is started by, which becomes it in the end
	// Attributes of its process; nil: a process group of its own, because an
	// interrupt from the terminal is for us, who end it after its containers.
	Attributes *syscall.SysProcAttr
}

// Agent is a running agent, or a killed one that can be started again.
type Agent struct {
	cfg     Config
	cmd     *exec.Cmd
	ended   context.Context // done when the process has ended
	killed  bool            // by Kill: its end is in order
	client  *api.Client
	keepers keepers
}

// Start runs an agent and waits until it answers. The caller ends it with Stop.
func Start(ctx context.Context, cfg Config) (*Agent, error) {
	for _, program := range []string{"farpage", "farpage-hook"} {
		if _, err := exec.LookPath(filepath.Join(cfg.Bin, program)); err != nil {
			return nil, fmt.Errorf("farpage is not built, `make build` does it: %w", err)
		}
	}
	a := &Agent{cfg: cfg}
	for dir, mode := range map[string]os.FileMode{a.SocketDir(): 0o711, a.stateDir(): 0o700} {
		if err := os.Mkdir(dir, mode); err != nil {
			return nil, fmt.Errorf("start the agent: %w", err)
		}
	}
	a.client = api.NewClientIn(a.SocketDir())
	if err := a.Again(ctx); err != nil {
		return nil, errors.Join(err, a.Stop())
	}
	return a, nil
}

// Again starts the agent anew after Kill, and waits until it answers: then it has
// taken over what the last one left.
func (a *Agent) Again(ctx context.Context) error {
	// A file: a pipe would stay open as long as the keeper lives.
	log, err := os.OpenFile(a.cfg.LogFile, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("start the agent: %w", err)
	}
	defer log.Close()
	argv := slices.Concat(a.cfg.Before, []string{
		filepath.Join(a.cfg.Bin, "farpage"), "agent", "--socket-dir", a.SocketDir(), "--state-dir", a.stateDir(), "--store", "mem:",
	}, a.cfg.Flags)
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	if cmd.SysProcAttr = a.cfg.Attributes; cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the agent: %w", err)
	}
	ended, end := context.WithCancel(context.Background())
	go func() {
		defer end()
		_ = cmd.Wait() // Stop reads the status
	}()
	a.cmd, a.ended, a.killed = cmd, ended, false
	if err := a.ready(ctx); err != nil {
		return fmt.Errorf("wait for the agent: %w", err)
	}
	// Now: if the agent dies, they cannot be found any more.
	return a.keepers.find(a.Pid())
}

func (a *Agent) ready(ctx context.Context) error {
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
			return fmt.Errorf("it ended (%s): %s", a.cmd.ProcessState, a.Log())
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// SocketDir is where its sockets are.
func (a *Agent) SocketDir() string { return filepath.Join(a.cfg.Folder, "agent") }

func (a *Agent) stateDir() string { return filepath.Join(a.cfg.Folder, "state") }

// Pid is the process of the agent started last.
func (a *Agent) Pid() int { return a.cmd.Process.Pid }

// Ended is done when the process started last has ended.
func (a *Agent) Ended() context.Context { return a.ended }

// Stats are a container's statistics and processes.
func (a *Agent) Stats(ctx context.Context, id string) (api.Container, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	c, err := a.client.Get(ctx, id)
	if err != nil {
		return c, fmt.Errorf("ask the agent for statistics: %w", err)
	}
	return c, nil
}

// List are all containers that it serves.
func (a *Agent) List(ctx context.Context) ([]api.Container, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return a.client.List(ctx)
}

// Log is the end of what it wrote.
func (a *Agent) Log() string {
	text, err := os.ReadFile(a.cfg.LogFile)
	if err != nil {
		return err.Error()
	}
	const most = 4 << 10
	if len(text) == 0 {
		return "(it wrote nothing)"
	}
	return strings.TrimSpace(string(text[max(0, len(text)-most):]))
}

// Kill ends it in the middle of whatever it does. What it served waits for Again.
func (a *Agent) Kill() error {
	if a.ended.Err() != nil {
		return fmt.Errorf("the agent has ended by itself (%s): %s", a.cmd.ProcessState, a.Log())
	}
	if err := a.cmd.Process.Kill(); err != nil {
		return fmt.Errorf("kill the agent: %w", err)
	}
	<-a.ended.Done()
	a.killed = true
	return nil
}

// Stop ends it and sees to it that no keeper and no folder is left. To have to use
// force is an error, and so is a status that is not 0.
func (a *Agent) Stop() error {
	const patience = 10 * time.Second
	var errs []error
	a.client.Close()
	if a.cmd == nil {
		return a.nothingLeft()
	}
	if a.ended.Err() == nil {
		errs = append(errs, a.keepers.find(a.Pid()))
		_ = a.cmd.Process.Signal(syscall.SIGTERM) // it may end by itself just now
	}
	select {
	case <-a.ended.Done():
		if !a.killed && !a.cmd.ProcessState.Success() {
			errs = append(errs, fmt.Errorf("the agent ended with %s: %s", a.cmd.ProcessState, a.Log()))
		}
	case <-time.After(patience):
		errs = append(errs, fmt.Errorf("the agent did not end on SIGTERM within %v: %s", patience, a.Log()))
		_ = a.cmd.Process.Kill()
		<-a.ended.Done()
	}
	errs = append(errs, a.keepers.end(), a.nothingLeft())
	return errors.Join(errs...)
}

// nothingLeft removes the folders of its sockets and its state, and says when that
// was not done by the agent.
func (a *Agent) nothingLeft() error {
	var errs []error
	for _, dir := range []string{a.SocketDir(), a.stateDir()} {
		entries, err := os.ReadDir(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		for _, entry := range entries {
			errs = append(errs, fmt.Errorf("the agent left %s behind", filepath.Join(dir, entry.Name())))
		}
		errs = append(errs, err, os.RemoveAll(dir))
	}
	return errors.Join(errs...)
}

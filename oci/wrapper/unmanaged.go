package wrapper

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"github.com/farpage/farpage/api"
	"github.com/farpage/farpage/oci/bundle"
	"github.com/farpage/farpage/oci/policy"
	"golang.org/x/sys/unix"
)

// How long a runtime may take to say what it knows of a container, and the agent to answer.
const (
	stateMax = 10 * time.Second
	tellMax  = 5 * time.Second
)

// createUnmanaged has the runtime create a container without farpage, and tells the agent
// why. The runtime is a child then: a container has a process only when it has ended. It
// returns the runtime's exit status.
func (c *call) createUnmanaged(path string, reason error) int {
	runtime.LockOSThread() // a child ends with the thread that started it (PR_SET_PDEATHSIG(2const))
	defer runtime.UnlockOSThread()
	cmd := exec.CommandContext(context.Background(), path, c.args...)
	cmd.Args[0] = path
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	err := cmd.Run()
	var status *exec.ExitError
	switch {
	case errors.As(err, &status) && status.ExitCode() > 0:
		return status.ExitCode()
	case err != nil:
		c.fail(fmt.Errorf("%s: %w", path, err))
		return statusFailed
	}
	if err := c.tell(reason); err != nil && !errors.Is(err, api.ErrNotRunning) {
		c.say("the agent could not be told that the container is unmanaged: %v", err)
	}
	return 0
}

// tell tells the agent of the container that was created.
func (c *call) tell(reason error) error {
	id := c.args[len(c.args)-1]
	about, err := c.state(id)
	if err != nil {
		return err
	}
	name := ""
	if config, err := bundle.Read(filepath.Join(about.Bundle, "config.json")); err == nil {
		name = policy.PodOf(config.Annotations()).DisplayName()
	}
	dir := c.SocketDir
	if dir == "" {
		dir = api.DefaultSocketDir
	}
	agent := api.NewClientIn(dir)
	defer agent.Close()
	ctx, cancel := context.WithTimeout(context.Background(), tellMax)
	defer cancel()
	_, err = agent.Add(ctx, api.AddRequest{ID: id, Name: name, Pid: about.Pid, Unmanaged: reason.Error()})
	return err
}

// containerState is what a runtime says of a container (runtime-spec, runtime.md "State").
type containerState struct {
	Bundle string `json:"bundle"`
	Pid    int    `json:"pid"`
}

// state asks the runtime for a container's state.
func (c *call) state(id string) (about containerState, err error) {
	globals := c.args[:indexOf(c.args)]
	ctx, cancel := context.WithTimeout(context.Background(), stateMax)
	defer cancel()
	state := exec.CommandContext(ctx, c.Runtime, append(append([]string{}, globals...), "state", id)...)
	out, err := state.Output()
	if err == nil {
		err = json.Unmarshal(out, &about)
	}
	if err != nil {
		err = fmt.Errorf("%s state %s: %w", c.Runtime, id, err)
	}
	return about, err
}

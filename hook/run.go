package hook

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/farpage/farpage/api"
	"github.com/farpage/farpage/internal/proc"
	"github.com/farpage/farpage/internal/syslog"
	"github.com/farpage/farpage/oci/policy"
)

// AgentTimeout is how long the hook talks to the agent, all calls together. A
// container's start waits for it, and engines have timeouts of their own.
const AgentTimeout = 5 * time.Second

// Options are what an operator can set.
type Options struct {
	SocketDir    string        // where the agent's control socket is
	AgentTimeout time.Duration // 0: AgentTimeout
	SyslogSocket string        // where what is said to stderr is logged too; empty: nowhere
	// Annotations of containers that do not say the same key themselves: who calls the
	// hook for a container may know what it is to have (CDI devices).
	Annotations map[string]string
}

// container is what the hook knows of the container that is being created.
type container struct {
	state
	name      string
	rootPath  string // on the host; empty: rootError says why
	rootError error
	policy    policy.Policy
	cgroup    string // folder of its memory cgroup, once found

	environment map[string]string // what its environment would say, as annotations
	limitBytes  int64             // its memory limit, 0: none
}

// Run is the hook. It reads the container's state from stdin, sets the container up if
// it is opted in, and returns the exit status: 0 lets the container start, 1 does not.
// What it has to say goes to stderr and to the host's log.
func Run(ctx context.Context, o Options, stdin io.Reader, stderr io.Writer) int {
	say := func(format string, args ...any) {
		message := fmt.Sprintf(format, args...)
		fmt.Fprintf(stderr, "farpage: %s\n", message)
		if o.SyslogSocket != "" {
			syslog.Warn(o.SyslogSocket, "farpage-hook", message)
		}
	}
	s, err := readState(stdin)
	if err != nil {
		// Who is not known to be opted in is let alone.
		say("%v; the container starts as without farpage", err)
		return 0
	}
	c, optedIn, err := readContainer(s, o.Annotations)
	if err != nil {
		say("container %s does not start: %v", s.ID, err)
		return 1
	}
	if !optedIn && c.environment[policy.KeyLocal] == "" {
		return 0
	}
	if o.AgentTimeout == 0 {
		o.AgentTimeout = AgentTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, o.AgentTimeout)
	defer cancel()
	agent := api.NewClientIn(o.SocketDir)
	defer agent.Close()

	if !optedIn {
		// Only an operator who trusts images lets their environment count.
		if about, err := agent.Agent(ctx); err != nil || !about.Environment {
			return 0
		}
		if c.policy, _, err = policy.Parse(c.environment, c.limitBytes); err != nil {
			say("container %s does not start, because of its environment: %v", s.ID, err)
			return 1
		}
	}
	refusal := c.setUp(ctx, agent)
	var status *api.StatusError
	switch {
	case refusal == nil:
		return 0
	case errors.As(refusal, &status) && status.Status == http.StatusBadRequest:
		// What it asks for is not allowed here, as a bad value is not anywhere.
		say("container %s does not start: %v", c.ID, refusal)
		return 1
	case c.policy.OnFailure == policy.OnFailureClosed:
		say("container %s does not start, because it cannot be set up and %s is %s: %v",
			c.ID, policy.KeyOnFailure, policy.OnFailureClosed, refusal)
		return 1
	}
	say("container %s starts unmanaged: %v", c.ID, refusal)
	if ctx.Err() != nil || errors.Is(refusal, api.ErrNotRunning) {
		return 0 // there is nobody to tell
	}
	if err := c.report(ctx, agent, refusal); err != nil && !errors.Is(err, api.ErrNotRunning) {
		say("the agent could not be told that container %s is unmanaged: %v", c.ID, err)
	}
	return 0
}

// readContainer reads the container's configuration and its policy. The error, if any,
// is about an annotation, and the container must not start.
//
// A configuration that cannot be read is kept as the reason why the container cannot be
// set up; whether it is opted in, and what happens to it then, the annotations in the
// state say. defaults are annotations that hold where it has none of the same key.
func readContainer(s state, defaults map[string]string) (c container, optedIn bool, err error) {
	c.state = s
	annotations := s.Annotations
	var limitBytes int64
	if spec, err := readConfig(s.Bundle); err != nil {
		c.rootError = fmt.Errorf("the container's configuration cannot be read: %w", err)
		limitBytes = proc.MemoryLimit(s.Pid)
	} else {
		annotations = spec.Annotations
		limitBytes = spec.memoryLimit()
		c.rootPath, c.rootError = spec.rootPath(s.Bundle)
		c.environment = policy.FromEnvironment(spec.environment())
	}
	pod := policy.PodOf(annotations)
	if pod.Sandbox {
		// The pause process of a pod carries the pod's annotations too.
		return c, false, nil
	}
	c.name, c.limitBytes = pod.DisplayName(), limitBytes
	all := maps.Clone(defaults)
	if all == nil {
		all = map[string]string{}
	}
	maps.Copy(all, pod.AnnotationsFor(annotations))
	c.policy, optedIn, err = policy.Parse(all, limitBytes)
	return c, optedIn, err
}

// setUp announces the container to the agent and mounts its folder. The error is the
// reason why the container is unmanaged; nothing is left mounted then.
func (c *container) setUp(ctx context.Context, agent *api.Client) error {
	if c.rootError != nil {
		return c.rootError
	}
	if err := initialUserNamespace(); err != nil {
		return err
	}
	if c.Pid <= 0 {
		return fmt.Errorf("the runtime names no process of the container (pid %d): this hook is for the stages prestart and createRuntime", c.Pid)
	}
	var err error
	if c.cgroup, err = proc.MemoryCgroup(c.Pid); err != nil {
		return err
	}
	target, err := openTarget(c.Pid, c.rootPath)
	if err != nil {
		return err
	}
	defer target.close()
	reply, err := agent.Add(ctx, api.AddRequest{ID: c.ID, Name: c.name, Pid: c.Pid, Cgroup: c.cgroup, Policy: c.policy})
	if err != nil {
		return err
	}
	source, err := openSource(reply.Dir)
	if err != nil {
		return err
	}
	defer source.close()
	return target.attach(source)
}

// report tells the agent why the container is unmanaged, so that `farpage ps` shows it.
func (c *container) report(ctx context.Context, agent *api.Client, refusal error) error {
	_, err := agent.Add(ctx, api.AddRequest{
		ID: c.ID, Name: c.name, Pid: c.Pid, Cgroup: c.cgroup, Policy: c.policy, Unmanaged: refusal.Error(),
	})
	return err
}

// initialUserNamespace refuses to go on in a user namespace: there the agent's socket
// is out of reach and its privileges do not count (rootless engines).
func initialUserNamespace() error {
	uidMap, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		return err
	}
	if strings.Join(strings.Fields(string(uidMap)), " ") != "0 0 4294967295" {
		return errors.New("the engine is rootless (it runs in a user namespace): farpage needs one that runs as root")
	}
	return nil
}

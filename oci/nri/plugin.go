package nri

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/containerd/nri/pkg/api"
	agent "github.com/farpage/farpage/api"
	"github.com/farpage/farpage/internal/proc"
	"github.com/farpage/farpage/oci/policy"
	"github.com/sirupsen/logrus"
)

// agentTimeout is how long the agent may take for one event. An engine throws out a plugin
// that takes longer than its plugin_request_timeout, 2 s by default.
const agentTimeout = 1500 * time.Millisecond

// The reasons why a container that asked for farpage runs without.
const (
	reasonAway    = "it was created while farpage-nri was not connected to the engine: create it anew"
	reasonNoAgent = "the agent did not answer when it was created: create it anew"
)

// plugin answers the engine's calls, which may come at the same time.
type plugin struct {
	agent *agent.Client
	log   *logrus.Logger

	mu      sync.Mutex
	refused map[string]string // guarded by mu: by id, why a container was created without
	untold  map[string]wish   // guarded by mu: by id, containers that the agent could not be told of yet
}

// CreateContainer has the engine mount the container's folder, if it asks for farpage. An
// error keeps it from being created.
func (p *plugin) CreateContainer(ctx context.Context, pod *api.PodSandbox, c *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
	ctx, cancel := context.WithTimeout(ctx, agentTimeout)
	defer cancel()
	w, err := p.wish(ctx, pod, c)
	if err != nil {
		return nil, nil, fmt.Errorf("farpage: container %s does not start: %w", c.GetName(), err)
	}
	if !w.optedIn || w.mounted {
		return nil, nil, nil
	}
	var reply agent.AddReply
	if w.impossible != "" {
		err = errors.New(w.impossible)
	} else {
		reply, err = p.agent.Prepare(ctx, w.id, agent.PrepareRequest{Policy: w.policy})
	}
	if err == nil {
		return adjustment(c, reply.Dir), nil, nil
	}
	if notAllowed(err) {
		return nil, nil, fmt.Errorf("farpage: container %s does not start: %w", c.GetName(), err)
	}
	if w.closed() {
		return nil, nil, cannot(w, err)
	}
	p.log.Warnf("container %s (%s) starts unmanaged: %v", w.id, w.name, err)
	reason := err.Error()
	if unreachable(err) {
		reason = reasonNoAgent
	}
	p.mu.Lock()
	p.refused[w.id] = reason
	p.mu.Unlock()
	return nil, nil, nil
}

// StartContainer tells the agent of the container's first process, which waits for it. An
// error keeps it from starting.
func (p *plugin) StartContainer(ctx context.Context, pod *api.PodSandbox, c *api.Container) error {
	ctx, cancel := context.WithTimeout(ctx, agentTimeout)
	defer cancel()
	w, err := p.wish(ctx, pod, c)
	if err == nil && w.optedIn { // an error was said at its creation, if anybody was there
		if err := p.tell(ctx, w); err != nil && w.closed() {
			return cannot(w, err)
		}
	}
	return nil
}

// Synchronize gets to know what runs when the connection begins.
func (p *plugin) Synchronize(ctx context.Context, pods []*api.PodSandbox, containers []*api.Container) ([]*api.ContainerUpdate, error) {
	byID := map[string]*api.PodSandbox{}
	for _, pod := range pods {
		byID[pod.GetId()] = pod
	}
	p.log.Infof("connected to the engine, which has %d containers", len(containers))
	for _, c := range containers {
		if c.GetState() != api.ContainerState_CONTAINER_RUNNING || c.GetPid() == 0 {
			continue
		}
		p.know(ctx, byID[c.GetPodSandboxId()], c)
	}
	return nil, nil
}

// know tells the agent of a container that runs already.
func (p *plugin) know(ctx context.Context, pod *api.PodSandbox, c *api.Container) {
	ctx, cancel := context.WithTimeout(ctx, agentTimeout)
	defer cancel()
	w, err := p.wish(ctx, pod, c)
	if err != nil {
		w.optedIn, w.impossible = true, err.Error()
	}
	if w.optedIn {
		_ = p.tell(ctx, w) // it has said so
	}
}

// RemoveContainer forgets a container.
func (p *plugin) RemoveContainer(ctx context.Context, _ *api.PodSandbox, c *api.Container) error {
	p.forget(c.GetId())
	if !mounted(c) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, agentTimeout)
	defer cancel()
	if err := p.agent.GiveUp(ctx, c.GetId()); err != nil && !errors.Is(err, agent.ErrNotRunning) {
		p.log.Warnf("container %s: %v", c.GetId(), err)
	}
	return nil
}

// StopContainer forgets what the agent is still to be told of a container.
func (p *plugin) StopContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) ([]*api.ContainerUpdate, error) {
	p.forget(c.GetId())
	return nil, nil
}

func (p *plugin) forget(id string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.refused, id)
	delete(p.untold, id)
}

// wish is wishOf, with the agent's word on whether an environment counts.
func (p *plugin) wish(ctx context.Context, pod *api.PodSandbox, c *api.Container) (wish, error) {
	if w, err := wishOf(pod, c); !w.fromImage || p.trustsImages(ctx) {
		return w, err
	}
	return wish{}, nil
}

// trustsImages says whether the agent's operator lets the environment of containers count.
func (p *plugin) trustsImages(ctx context.Context) bool {
	about, err := p.agent.Agent(ctx)
	return err == nil && about.Environment
}

// tell tells the agent of a container that has a process. The error says why it is
// unmanaged. An agent that cannot be reached is told later.
func (p *plugin) tell(ctx context.Context, w wish) error {
	request := agent.AddRequest{ID: w.id, Name: w.name, Pid: w.pid, Policy: w.policy}
	var err error
	switch {
	case w.impossible != "":
		err = errors.New(w.impossible)
	case w.mounted:
		if request.Cgroup, err = proc.MemoryCgroup(w.pid); err == nil {
			request.Prepared = true
			_, err = p.agent.Add(ctx, request)
		}
	default:
		var status *agent.StatusError
		if _, err = p.agent.Get(ctx, w.id); errors.As(err, &status) {
			err = errors.New(p.why(w.id)) // no hook and no runtime has set it up, or said why not
		}
	}
	reason := err
	if err == nil {
		p.forget(w.id)
		return nil
	}
	if !unreachable(err) {
		p.log.Warnf("container %s (%s) is unmanaged: %v", w.id, w.name, reason)
		request.Unmanaged, request.Prepared = reason.Error(), false
		_, err = p.agent.Add(ctx, request)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if unreachable(err) {
		p.untold[w.id] = w
	} else {
		delete(p.untold, w.id)
	}
	return reason
}

// why says why a container was created without farpage.
func (p *plugin) why(id string) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if reason := p.refused[id]; reason != "" {
		return reason
	}
	return reasonAway
}

// retell tells the agent what it could not be told, until ctx is done.
func (p *plugin) retell(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(retellAfter):
		}
		p.mu.Lock()
		untold := slices.Collect(maps.Values(p.untold))
		p.mu.Unlock()
		for _, w := range untold {
			once, cancel := context.WithTimeout(ctx, agentTimeout)
			_ = p.tell(once, w) // it has said so
			cancel()
		}
	}
}

// cannot is the error that keeps a container from starting that is to be managed or not at
// all.
func cannot(w wish, err error) error {
	return fmt.Errorf("farpage: container %s does not start, because it cannot be set up and %s is %s: %w",
		w.name, policy.KeyOnFailure, policy.OnFailureClosed, err)
}

// notAllowed says that a container asks for what the operator does not allow.
func notAllowed(err error) bool {
	var status *agent.StatusError
	return errors.As(err, &status) && status.Status == http.StatusBadRequest
}

// unreachable says that the agent was not reached: it may be being restarted.
func unreachable(err error) bool {
	return errors.Is(err, agent.ErrNotRunning) || errors.Is(err, context.DeadlineExceeded)
}

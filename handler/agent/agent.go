// Package agent wires it all: it makes or takes over the keeper, runs an engine for
// each container, and answers on the control socket.
package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/farpage/farpage/api"
	"github.com/farpage/farpage/handler/config"
	"github.com/farpage/farpage/handler/engine"
	"github.com/farpage/farpage/handler/keeper"
	"github.com/farpage/farpage/handler/state"
	"github.com/farpage/farpage/handler/target"
	"github.com/farpage/farpage/handler/uffd"
	"github.com/farpage/farpage/oci/policy"
	"github.com/farpage/farpage/store"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
)

// Options are the agent's settings.
type Options struct {
	Config  config.Config
	Version string
	// Private: the agent of one `farpage run`. It ends when its last container
	// does, and containers see its folders where they are.
	Private bool
	// Listener is the control socket, where somebody else has made it (systemd). nil: the
	// agent makes it. It is the agent's.
	Listener net.Listener
	Log      *logrus.Logger
}

// Agent serves all containers of a host.
type Agent struct {
	opts    Options
	log     *logrus.Entry
	root    *state.Root
	device  int
	record  keeper.Record
	folders folders

	mu         sync.Mutex
	stores     map[string]store.Store // guarded by mu: by URL
	started    bool                   // guarded by mu: Start has taken over what there was
	containers map[string]*container  // guarded by mu
	had        bool                   // guarded by mu: there ever was one
	empty      chan struct{}          // closed when a private agent has none left
}

// container is one that the agent knows; engine is nil when it could not be set up.
type container struct {
	engine  *engine.Engine
	req     api.AddRequest
	start   uint64
	reasons reasons
}

// Start takes over from a dead agent of the same state folder, or starts anew. It
// must be called before the process opens anything else.
func Start(o Options) (_ *Agent, err error) {
	a := &Agent{opts: o, log: logrus.NewEntry(o.Log), stores: map[string]store.Store{}, containers: map[string]*container{}, empty: make(chan struct{})}
	if os.Geteuid() != 0 {
		return nil, errors.New("the agent needs root: it serves other users' processes (userfaultfd with fork events needs CAP_SYS_PTRACE); start it with sudo or by systemd")
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, a.undoStart())
		}
	}()
	// First of all: what is in it is believed.
	if err := a.folders.make("--state-dir", o.Config.StateDir, 0o700); err != nil {
		return nil, err
	}
	old, alive, err := keeper.Read(o.Config.StateDir)
	if err != nil {
		return nil, err
	}
	if alive && old.AgentAlive() {
		return nil, fmt.Errorf("another agent (pid %d) uses %s: stop it, or choose another --state-dir", old.Agent, o.Config.StateDir)
	}
	if err := a.makeSocketDir(); err != nil {
		return nil, err
	}
	var from *keeper.Source
	if alive {
		if from, err = keeper.Open(old); err != nil {
			return nil, err
		}
	}
	if err := keeper.Reserve(); err != nil {
		return nil, err
	}
	var states []*state.Memory
	if from != nil {
		if states, err = a.takeOver(from, old); err != nil {
			return nil, fmt.Errorf("what the last agent (farpage %s) served waits in its keeper (pid %d), and cannot be taken over: %w: start that version again, or end its containers and then the keeper",
				old.Version, old.Pid, err)
		}
	}
	mark, err := unix.Open(o.Config.StateDir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", o.Config.StateDir, err)
	}
	if a.device, err = unix.Open(uffd.Device, unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
		return nil, fmt.Errorf("open %s: %w: `farpage check` says what to do", uffd.Device, err)
	}
	for name, url := range o.Config.Stores {
		if _, err = a.storeAt(url); err != nil {
			return nil, fmt.Errorf("store %s: %w", name, err)
		}
	}
	if a.root == nil {
		if a.root, err = state.NewRoot(); err != nil {
			return nil, err
		}
	}
	if err := a.keep(mark); err != nil {
		return nil, err
	}
	whole := true
	for _, mem := range states {
		if err := a.recover(mem); err != nil {
			whole = false
			a.log.Errorf("a container cannot be taken over: %v; its processes wait, its far pages are kept", err)
		}
	}
	if whole {
		for _, st := range a.stores {
			st.Recovered()
		}
	}
	a.started = true
	if alive {
		keeper.End(old.Pid, old.Start)
	}
	a.mu.Lock()
	for _, c := range a.containers {
		c.engine.WakeAll()
		a.run(c)
	}
	n := len(a.containers)
	a.mu.Unlock()
	if n > 0 {
		a.log.Infof("took over %d containers from the agent that was pid %d", n, old.Agent)
	}
	return a, nil
}

// makeSocketDir makes the folders of the sockets. On the host nobody but root may reach
// a container's hand-off socket; containers have their folders mounted, and the folder
// of a run has a name that nobody can guess.
func (a *Agent) makeSocketDir() error {
	dir, inner, mode := a.opts.Config.SocketDir, a.containerDir(""), os.FileMode(0o700)
	if a.opts.Private {
		mode = 0o755
	}
	if err := a.folders.make("--socket-dir", dir, 0o755); err != nil {
		return err
	}
	if pid := listens(filepath.Join(dir, api.SocketName)); pid > 0 && a.opts.Listener == nil {
		return fmt.Errorf("another agent (pid %d) listens in %s: stop it, or choose another --socket-dir", pid, dir)
	}
	if err := a.folders.make("--socket-dir", inner, mode); err != nil {
		return err
	}
	return os.Chmod(inner, mode) // it is the agent's own, whatever an older one made it
}

// listens returns the process that listens on a control socket, 0 when none does. One
// that has ended does not: its keeper has the socket open still, and connecting succeeds.
func listens(path string) (pid int) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return 0
	}
	defer func() { _ = unix.Close(fd) }()
	if unix.Connect(fd, &unix.SockaddrUnix{Name: path}) != nil {
		return 0
	}
	// By its pidfd: its number may be another's by now. Before Linux 6.16 there is none
	// of a process that has ended.
	pidfd, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEERPIDFD)
	if err != nil {
		return 0
	}
	defer func() { _ = unix.Close(pidfd) }()
	ended := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	if n, err := unix.Poll(ended, 0); n > 0 || err != nil {
		return 0
	}
	pid, _ = target.Peer(fd)
	return pid
}

// undoStart takes back what a start that failed has done. What it was to take over is
// as it was.
func (a *Agent) undoStart() error {
	var err error
	for _, st := range a.stores {
		err = errors.Join(err, st.Close())
	}
	if a.record.Pid > 0 {
		keeper.End(a.record.Pid, a.record.Start)
	}
	a.folders.undo()
	return err
}

// takeOver takes every lasting descriptor out of the old keeper.
func (a *Agent) takeOver(from *keeper.Source, old keeper.Record) ([]*state.Memory, error) {
	defer from.Close()
	if err := from.Take(old.RootFD); err != nil {
		return nil, err
	}
	root, err := state.OpenRoot(old.RootFD)
	if err != nil {
		return nil, err
	}
	a.root = root
	var states []*state.Memory
	for _, fd := range root.StateFDs() {
		if err := from.Take(fd); err != nil {
			return nil, err
		}
		mem, err := state.Open(fd)
		if err != nil {
			return nil, err
		}
		states = append(states, mem)
		for _, fd := range engine.Descriptors(mem) {
			if err := from.Take(fd); err != nil {
				return nil, err
			}
		}
	}
	return states, nil
}

// keep makes this agent's keeper and publishes it.
func (a *Agent) keep(mark int) error {
	pid, err := keeper.Spawn()
	if err != nil {
		return fmt.Errorf("make a keeper: %w", err)
	}
	a.record = keeper.Record{
		Pid: pid, Start: target.StartTime(pid), RootFD: a.root.FD,
		Agent: os.Getpid(), AgentStart: target.StartTime(os.Getpid()), Version: a.opts.Version,
	}
	err = keeper.Publish(a.opts.Config.StateDir, a.record)
	if errors.Is(err, unix.ENOSPC) {
		err = fmt.Errorf("%w: free some of the disk or choose another --state-dir", err)
	}
	if err != nil {
		return err
	}
	if !a.opts.Private {
		if err := keeper.Isolate(pid); err != nil {
			a.log.Warn(err)
		}
	}
	path, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", mark))
	if err == nil {
		keeper.EndStrays(path, pid)
	}
	return nil
}

// storeAt returns the store of a URL, opened once.
func (a *Agent) storeAt(url string) (store.Store, error) {
	if st := a.stores[url]; st != nil {
		return st, nil
	}
	st, err := store.OpenURL(url)
	if err != nil {
		return nil, err
	}
	a.stores[url] = st
	if a.started {
		st.Recovered() // nobody had anything in it
	}
	return st, nil
}

func (a *Agent) recover(mem *state.Memory) error {
	cfg, err := engine.RecoverConfig(mem)
	if err != nil {
		return err
	}
	st, err := a.storeAt(cfg.Store) // which may be another one in the configuration by now
	if err != nil {
		return err
	}
	e, err := engine.Recover(cfg, mem, st, a.device, a.log)
	if err != nil {
		return err
	}
	a.containers[cfg.ID] = &container{
		engine: e, start: cfg.Start,
		req: api.AddRequest{ID: cfg.ID, Name: cfg.Name, Pid: cfg.Pid, Cgroup: cfg.Cgroup, Policy: cfg.Policy},
	}
	return nil
}

// run runs a container's engine. Preconditions: a.mu is held.
func (a *Agent) run(c *container) {
	a.had = true
	runtime.GOMAXPROCS(runtime.NumCPU() + 4 + 2*len(a.containers))
	go c.engine.Run()
	go func() {
		<-c.engine.Ended()
		a.remove(c)
	}()
}

// remove gives up a container whose engine has ended by itself.
func (a *Agent) remove(c *container) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.containers[c.req.ID] != c {
		return // abandoned
	}
	a.discard(c)
	delete(a.containers, c.req.ID)
	a.checkEmpty()
}

// discard frees what a container had whose engine runs no more: from then on the
// next agent does not know it.
func (a *Agent) discard(c *container) {
	a.root.Remove(c.engine.StateFD())
	if err := c.engine.Close(); err != nil {
		a.log.Warnf("container %s: %v", c.req.ID, err)
	}
	if err := os.RemoveAll(a.containerDir(c.req.ID)); err != nil {
		a.log.Warnf("container %s: remove its folder: %v", c.req.ID, err)
	}
}

// checkEmpty ends a private agent. Preconditions: a.mu is held.
func (a *Agent) checkEmpty() {
	if a.opts.Private && a.had && len(a.containers) == 0 {
		select {
		case <-a.empty:
		default:
			close(a.empty)
		}
	}
}

// Empty is closed when a private agent's last container is gone.
func (a *Agent) Empty() <-chan struct{} { return a.empty }

func (a *Agent) containerDir(id string) string {
	return filepath.Join(a.opts.Config.SocketDir, "c", id)
}

// giveUp takes back a container that was taken in and could not be set up after all. One
// that has processes stays: they could not go on without their far pages. Preconditions:
// a.mu is held.
func (a *Agent) giveUp(c *container) error {
	if c.engine == nil {
		return nil
	}
	if s, err := engine.Ask(c.engine, c.engine.Stats); err != nil || s.Processes.Managed > 0 {
		return fmt.Errorf("container %s: %w, and managed", c.req.ID, errExists)
	}
	delete(a.containers, c.req.ID) // before its engine ends: nobody else closes it
	if err := c.engine.Abandon(); err != nil {
		a.log.Errorf("container %s: %v; what it has stays until the agent ends", c.req.ID, err)
		return nil
	}
	a.discard(c)
	return nil
}

// forgetUnmanaged forgets the unmanaged containers that have ended. Preconditions: a.mu is
// held.
func (a *Agent) forgetUnmanaged() {
	for id, c := range a.containers {
		if c.engine == nil && target.StartTime(c.req.Pid) != c.start {
			delete(a.containers, id)
		}
	}
}

// ErrPolicy says that a policy asks for what the operator does not allow: the
// container does not start, whatever its on-failure says.
var ErrPolicy = errors.New("policy refused")

// errExists says that a container of this id is there already.
var errExists = errors.New("a container of this id is there already")

// checkID refuses an id that cannot be the name of a container's folder.
func checkID(id string) error {
	if id == "" || strings.ContainsAny(id, "/\x00") || strings.HasPrefix(id, ".") || len(id) > 128 {
		return fmt.Errorf("container id %q is not usable as a file name", id)
	}
	return nil
}

// Add takes in a container that is about to start.
func (a *Agent) Add(req api.AddRequest) (api.AddReply, error) {
	if err := checkID(req.ID); err != nil {
		return api.AddReply{}, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	c := &container{req: req, start: target.StartTime(req.Pid)}
	if c.start == 0 {
		return api.AddReply{}, fmt.Errorf("container %s: its process %d has ended", req.ID, req.Pid)
	}
	a.forgetUnmanaged()
	if old := a.containers[req.ID]; old != nil {
		switch {
		case old.req.Pid != req.Pid || old.start != c.start:
			return api.AddReply{}, fmt.Errorf("container %s: %w", req.ID, errExists)
		case req.Unmanaged != "":
			if err := a.giveUp(old); err != nil {
				return api.AddReply{}, err
			}
		case old.engine != nil:
			return api.AddReply{Dir: a.containerDir(req.ID)}, nil // its hook runs in two stages
		}
	}
	if req.Unmanaged != "" {
		a.log.Warnf("container %s runs unmanaged: %s", req.ID, req.Unmanaged)
		a.containers[req.ID] = c
		return api.AddReply{}, nil
	}
	p, url, st, err := a.allow(req.Policy)
	if err != nil {
		return api.AddReply{}, err
	}
	req.Policy, c.req.Policy = p, p
	dir := a.containerDir(req.ID)
	if _, err := os.Stat(dir); err != nil && req.Prepared {
		return api.AddReply{}, fmt.Errorf("the folder that was prepared for it is gone (%w): it was not started within %v", err, api.PreparedMax)
	}
	if err := a.makeDir(dir, p); err != nil {
		_ = os.RemoveAll(dir)
		return api.AddReply{}, err
	}
	e, err := engine.New(engine.Config{
		ID: req.ID, Name: req.Name, Pid: req.Pid, Start: c.start, Cgroup: req.Cgroup,
		Dir: dir, Store: url, Policy: req.Policy,
	}, st, a.device, a.log)
	if err == nil {
		if err = a.root.Add(e.StateFD()); err != nil {
			err = errors.Join(err, e.Close())
		}
	}
	if err != nil {
		_ = os.RemoveAll(dir)
		return api.AddReply{}, err
	}
	c.engine = e
	a.containers[req.ID] = c
	a.run(c)
	a.log.Infof("container %s: budget %d MiB", req.ID, req.Policy.LocalBytes>>20)
	return api.AddReply{Dir: dir}, nil
}

// allow checks a policy against what the operator allows, completes it, and opens its
// store. Preconditions: a.mu is held.
func (a *Agent) allow(asked policy.Policy) (p policy.Policy, url string, st store.Store, err error) {
	if asked.LocalBytes <= 0 {
		return p, "", nil, errors.New("the policy has no local budget")
	}
	if p, err = a.opts.Config.Apply(asked); err != nil {
		return p, "", nil, fmt.Errorf("%w: %w", ErrPolicy, err)
	}
	url = a.opts.Config.Stores[p.Store]
	st, err = a.storeAt(url)
	return p, url, st, err
}

// find finds a container by id, unique prefix of it, or name.
func (a *Agent) find(id string) (*container, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if c := a.containers[id]; c != nil {
		return c, nil
	}
	var found []*container
	for k, c := range a.containers {
		if c.req.Name == id || len(id) >= 3 && strings.HasPrefix(k, id) {
			found = append(found, c)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return nil, fmt.Errorf("no container %q: `farpage ps` lists them", id)
	}
	return nil, fmt.Errorf("%q fits %d containers: give more of the id", id, len(found))
}

// managed finds a container that has an engine.
func (a *Agent) managed(id string) (*container, error) {
	c, err := a.find(id)
	if err == nil && c.engine == nil {
		err = fmt.Errorf("container %s is unmanaged: %s", c.req.ID, c.req.Unmanaged)
	}
	return c, err
}

// List returns all containers.
func (a *Agent) List() []api.Container {
	a.mu.Lock()
	var all []*container
	for _, c := range a.containers {
		all = append(all, c)
	}
	a.mu.Unlock()
	out := []api.Container{}
	for _, c := range all {
		if s, ok := c.stats(); ok {
			out = append(out, s)
		}
	}
	return out
}

// stats returns a container's statistics; false when it has just ended.
func (c *container) stats() (api.Container, bool) {
	var s api.Container
	if c.engine == nil {
		s.Schema, s.ID, s.Name = 1, c.req.ID, c.req.Name
		s.Processes.Unmanaged = 1
		s.ProcessList = []api.Process{{
			Pid: c.req.Pid, Command: target.Command(c.req.Pid), State: "unmanaged", Reason: c.req.Unmanaged,
		}}
		return s, target.StartTime(c.req.Pid) == c.start
	}
	s, err := engine.Ask(c.engine, c.engine.Stats)
	switch {
	case errors.Is(err, engine.ErrStalled):
		s.Schema, s.ID, s.Name = 1, c.req.ID, c.req.Name
		s.ProcessList = []api.Process{{
			Pid: c.req.Pid, Command: target.Command(c.req.Pid), State: "managed", Reason: err.Error(),
		}}
		return s, true
	case err != nil:
		return s, false
	}
	c.unmanaged(&s)
	return s, true
}

// Get returns one container.
func (a *Agent) Get(id string) (api.Container, error) {
	c, err := a.find(id)
	if err != nil {
		return api.Container{}, err
	}
	s, ok := c.stats()
	if !ok {
		return s, fmt.Errorf("container %q has just ended", id)
	}
	return s, nil
}

// evictWait is how long Evict waits for what it has asked for.
const evictWait = 30 * time.Second

// Evict evicts now and says how many pages went.
func (a *Agent) Evict(ctx context.Context, id string, req api.EvictRequest) (api.EvictReply, error) {
	c, err := a.managed(id)
	if err != nil {
		return api.EvictReply{}, err
	}
	pages := (req.Bytes + 4095) / 4096
	if req.All {
		pages = -1
	}
	if pages == 0 {
		return api.EvictReply{}, errors.New("nothing to evict: give --bytes SIZE or --all")
	}
	ctx, cancel := context.WithTimeout(ctx, evictWait)
	defer cancel()
	n, err := c.engine.EvictAndWait(ctx, pages)
	return api.EvictReply{EvictedPages: n}, err
}

// Set changes a container's budget and far limit.
func (a *Agent) Set(id string, req api.SetRequest) (api.Container, error) {
	c, err := a.managed(id)
	if err != nil {
		return api.Container{}, err
	}
	p := c.engine.Config().Policy
	if req.LocalBytes != nil {
		p.LocalBytes = *req.LocalBytes
	}
	if req.FarBytes != nil {
		p.FarBytes = *req.FarBytes
	}
	if p.LocalBytes < policy.MinLocalBytes {
		return api.Container{}, fmt.Errorf("%w: local=%d: a budget is %d bytes at least", ErrPolicy, p.LocalBytes, policy.MinLocalBytes)
	}
	if p, err = a.opts.Config.Apply(p); err != nil {
		return api.Container{}, fmt.Errorf("%w: %w", ErrPolicy, err)
	}
	refused, err := engine.Ask(c.engine, func() error { return c.engine.SetPolicy(p) })
	if err = errors.Join(refused, err); err != nil {
		return api.Container{}, err
	}
	a.log.Infof("container %s: budget %d MiB, far limit %d", c.req.ID, p.LocalBytes>>20, p.FarBytes)
	return a.Get(c.req.ID)
}

// Describe says what this agent is.
func (a *Agent) Describe() api.Agent {
	return api.Agent{Version: a.opts.Version, Pid: os.Getpid(), Environment: a.opts.Config.Environment}
}

// Stop ends the agent. With containers left it leaves everything to the keeper, for
// the next agent; without it leaves nothing.
func (a *Agent) Stop() error {
	a.mu.Lock()
	all := a.containers
	a.containers = map[string]*container{}
	a.mu.Unlock()
	left := 0
	for id, c := range all {
		if c.engine == nil {
			continue
		}
		select {
		case <-c.engine.Ended():
			a.discard(c)
		default:
			if err := c.engine.Abandon(); err != nil {
				a.log.Warnf("container %s: %v", id, err)
			}
			left++
		}
	}
	if left > 0 {
		a.log.Infof("%d containers are left to the keeper (pid %d): their faults wait for the next agent", left, a.record.Pid)
		return nil
	}
	var stores error
	for _, st := range a.stores {
		stores = errors.Join(stores, st.Close())
	}
	keeper.End(a.record.Pid, a.record.Start)
	err := keeper.Remove(a.opts.Config.StateDir)
	if a.opts.Private {
		err = errors.Join(err, stores, os.RemoveAll(a.opts.Config.SocketDir))
		_ = os.Remove(api.DefaultSocketDir) // only if nothing else is in it
		return err
	}
	for _, dir := range []string{a.containerDir(""), a.opts.Config.StateDir, a.opts.Config.SocketDir} {
		_ = os.Remove(dir) // only if nothing else is in it
	}
	return errors.Join(err, stores)
}

// Listen makes the control socket, in place of a dead agent's, or takes the one that
// Options has.
func (a *Agent) Listen() (net.Listener, error) {
	path := filepath.Join(a.opts.Config.SocketDir, api.SocketName)
	if l := a.opts.Listener; l != nil {
		if at := l.Addr().String(); at != path {
			return nil, fmt.Errorf("systemd has made the socket %s, and the agent's is %s: make ListenStream= of farpage.socket and the agent's socket-dir agree", at, path)
		}
		return l, nil
	}
	_ = os.Remove(path)
	var lc net.ListenConfig
	l, err := lc.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, fmt.Errorf("make the control socket: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, err
	}
	return l, nil
}

package engine

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/farpage/farpage/handler/handoff"
	"github.com/farpage/farpage/handler/space"
	"github.com/farpage/farpage/handler/state"
	"github.com/farpage/farpage/handler/target"
	"github.com/farpage/farpage/oci/policy"
	"github.com/farpage/farpage/store"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
)

// Config is what an engine is made from; it is kept in the container's state.
type Config struct {
	ID     string        `json:"id"`
	Name   string        `json:"name"`
	Pid    int           `json:"pid"`    // first process
	Start  uint64        `json:"start"`  // its start time
	Cgroup string        `json:"cgroup"` // folder with memory.stat, empty: measure by process
	Dir    string        `json:"dir"`    // folder of shim, bell and socket
	Store  string        `json:"store"`  // URL
	Policy policy.Policy `json:"policy"`
}

// Engine serves one container. Its methods may be called from any goroutine; all
// else belongs to the thread in Run.
type Engine struct {
	cfgMu  sync.Mutex
	cfg    Config // written by the engine's thread, with cfgMu held
	mem    *state.Memory
	log    *logrus.Entry
	device int // of uffd.Device, the agent's

	mu     sync.Mutex
	todo   []func() // guarded by mu
	closed bool     // guarded by mu

	poller      *poller
	listener    int
	statFD      int // memory.stat, -1
	nodes       *space.Nodes
	slots       *slots
	procs       []*process // by index in mem.Procs; nil: free
	live        []*process
	conns       map[int32]*conn
	nextConn    int32
	acceptAgain bool // no descriptor was left
	ringHint    int
	nextTag     uint16

	reader  target.Reader
	scanner target.Scanner
	zero    []byte // zero pages
	buf     []byte // pages on their way into a process

	budget, low, high int64     // pages
	farLimit          int64     // pages, -1: none
	resident          int64     // pages: measured, and what was given and taken since
	given             int64     // pages given less pages taken, ever
	measured          int64     // bytes, at the last measurement
	forced            int64     // pages to evict whatever the watermarks say
	stuck             bool      // nothing was evictable when last looked
	limited           bool      // the far limit is reached, or the store full
	limitedAt         time.Time // when it last was; zero: that is over, or never was
	helpless          bool      // nothing more can be evicted and the budget is passed: that was said
	evictedAt         time.Time // of the last page, or when there was no need or no room
	held              []held
	answeredAt        time.Time // when a helper last said how it fared
	issuedAt          time.Time // when one was last given a command
	turnProc          int
	faulting          bool // a uffd had something to say in this turn
	pss               pssWorker

	now         time.Time
	lastMeasure time.Time
	lastSweep   time.Time
	lastWalk    time.Time
	lastLook    time.Time
	lastPrune   time.Time
	lastWork    time.Time
	lastRetry   time.Time
	lastLog     map[string]time.Time
	mmaps       []mmapWatch
	unwatched   bool // some process's mappings are found by looking only
	counted     bool // among the busy engines
	ended       chan struct{}
	stop        bool
}

// batch is how many pages are given or read ahead in one trip at most.
const batch = 64

// New makes the engine of a new container: its folder, its socket, its bell. The
// engine owns its state and the descriptors in it; device stays the caller's.
func New(cfg Config, st store.Store, device int, log *logrus.Entry) (*Engine, error) {
	mem, err := state.New()
	if err != nil {
		return nil, err
	}
	e, err := prepare(cfg, mem, device, log)
	if err != nil {
		return nil, errors.Join(err, free(mem))
	}
	if err := e.begin(st); err != nil {
		return nil, errors.Join(err, e.Close())
	}
	return e, nil
}

// begin writes down who the container is and opens what it needs from the start.
func (e *Engine) begin(st store.Store) error {
	var id [8]byte
	if _, err := rand.Read(id[:]); err != nil {
		return err
	}
	e.mem.Header.ID = binary.LittleEndian.Uint64(id[:])
	b, err := json.Marshal(e.cfg)
	if err != nil {
		return err
	}
	if err := e.mem.SetConfig(b); err != nil {
		return err
	}
	if e.slots.space, err = st.Open(e.spaceConfig(nil)); err != nil {
		return err
	}
	if e.listener, err = handoff.Listen(filepath.Join(e.cfg.Dir, "sock")); err != nil {
		return err
	}
	e.mem.Header.ListenerFD = int32(e.listener)
	return e.poller.add(e.listener, source{kind: kindListener})
}

// prepare makes what a new and a recovered engine have in common.
func prepare(cfg Config, mem *state.Memory, device int, log *logrus.Entry) (*Engine, error) {
	p, err := newPoller()
	if err != nil {
		return nil, err
	}
	e := &Engine{
		cfg: cfg, mem: mem, device: device,
		log:    log.WithField("container", cfg.ID),
		poller: p, listener: -1, statFD: -1,
		nodes: space.NewNodes(mem.Nodes), procs: make([]*process, state.MaxProcs),
		conns: map[int32]*conn{}, lastLog: map[string]time.Time{}, ended: make(chan struct{}),
	}
	e.slots = newSlots(mem, p.wake)
	e.setBudget(cfg.Policy)
	if err := e.acquire(); err != nil {
		return nil, errors.Join(err, e.release())
	}
	return e, nil
}

// acquire makes what release gives up.
func (e *Engine) acquire() (err error) {
	if e.zero, err = pages(batch); err != nil {
		return err
	}
	if e.buf, err = pages(batch); err != nil {
		return err
	}
	if e.cfg.Cgroup != "" {
		e.statFD, err = unix.Open(filepath.Join(e.cfg.Cgroup, "memory.stat"), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open the container's memory.stat: %w", err)
		}
	}
	return nil
}

// release gives up what prepare has made.
func (e *Engine) release() error {
	e.poller.close()
	if e.statFD >= 0 {
		closeQuiet(e.statFD)
	}
	var err error
	for _, b := range [][]byte{e.zero, e.buf} {
		if b != nil {
			err = errors.Join(err, unix.Munmap(b))
		}
	}
	return err
}

// free gives up a container's state for good.
func free(mem *state.Memory) error {
	err := mem.Close()
	closeQuiet(mem.FD)
	return err
}

// SetPolicy changes the budget and the far limit; the next turn acts on it. To be
// called through Ask.
func (e *Engine) SetPolicy(p policy.Policy) error {
	cfg := e.cfg
	cfg.Policy = p
	b, err := json.Marshal(cfg)
	if err != nil {
		return err
	}
	if err := e.mem.SetConfig(b); err != nil {
		return err
	}
	e.cfgMu.Lock()
	e.cfg = cfg
	e.cfgMu.Unlock()
	e.setBudget(p)
	e.stuck = false
	return nil
}

func (e *Engine) setBudget(p policy.Policy) {
	e.budget = p.LocalBytes / space.PageSize
	e.low = e.budget * int64(p.LowPercent) / 100
	e.high = e.budget * int64(p.HighPercent) / 100
	e.farLimit = -1
	if p.FarBytes >= 0 {
		e.farLimit = p.FarBytes / space.PageSize
	}
}

func (e *Engine) spaceConfig(live []store.Handle) store.SpaceConfig {
	return store.SpaceConfig{
		ID: e.cfg.ID, Arena: e.mem.Arena, Release: e.mem.ReleaseArena, Live: live, Done: e.slots.done,
	}
}

// pages returns zeroed memory of the agent's that is outside the Go heap.
func pages(n int) ([]byte, error) {
	b, err := unix.Mmap(-1, 0, n*space.PageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON|unix.MAP_POPULATE)
	if err != nil {
		return nil, os.NewSyscallError("mmap", err)
	}
	return b, nil
}

// Config returns what the engine was made from, with the policy as it is now.
func (e *Engine) Config() Config {
	e.cfgMu.Lock()
	defer e.cfgMu.Unlock()
	return e.cfg
}

// StateFD is the descriptor of the state, for the agent's root table.
func (e *Engine) StateFD() int { return e.mem.FD }

// Ended is closed when Run has returned.
func (e *Engine) Ended() <-chan struct{} { return e.ended }

// ErrEnded says that an engine has ended: its container is gone.
var ErrEnded = errors.New("the container has just ended")

// ErrStalled says that an engine does not answer: its container has made it wait in
// a system call. Nobody else is held up by that.
var ErrStalled = errors.New("the container's engine does not answer: the container keeps it waiting in a system call")

// askWait is how long an engine may take to answer.
const askWait = 5 * time.Second

// Ask runs f on the engine's thread and returns its result.
func Ask[T any](e *Engine, f func() T) (T, error) {
	result := make(chan T, 1)
	var none T
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		return none, ErrEnded
	}
	e.todo = append(e.todo, func() { result <- f() })
	e.mu.Unlock()
	e.poller.wake()
	late := time.NewTimer(askWait)
	defer late.Stop()
	select {
	case r := <-result:
		return r, nil
	case <-e.ended:
		return none, ErrEnded
	case <-late.C:
		return none, ErrStalled
	}
}

// Run serves the container until it is empty and its first process is gone, or
// Abandon is called.
func (e *Engine) Run() {
	runtime.LockOSThread() // for good: the thread has a priority of its own, and may hold others
	if unix.Gettid() == unix.Getpid() {
		// The first thread of a process cannot end in Go, nor let go of what it holds.
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			e.Run()
		}()
		<-ended
		runtime.UnlockOSThread()
		return
	}
	defer close(e.ended)
	raisePriority(e.log)
	e.now = time.Now()
	for !e.stop {
		e.poller.wait(e.timeout(), e.ready)
		e.now = time.Now()
		e.runTodo()
		e.turn()
		e.count(e.now.Sub(e.lastWork) <= activeFor)
	}
	e.count(false)
	e.mu.Lock()
	e.closed = true
	e.mu.Unlock()
	e.runTodo()
}

func (e *Engine) runTodo() {
	e.mu.Lock()
	todo := e.todo
	e.todo = nil
	e.mu.Unlock()
	for _, f := range todo {
		f()
	}
}

// Intervals at which the engine looks by itself.
const (
	measureEvery = 2 * time.Millisecond
	idleEvery    = 100 * time.Millisecond
	activeFor    = 50 * time.Millisecond
	lookEvery    = time.Millisecond
	pruneEvery   = time.Second
	walkEvery    = 100 * time.Millisecond
	sweepEvery   = 10 * time.Millisecond
	retryEvery   = 50 * time.Millisecond
	settleEvery  = 50 * time.Microsecond
	blockedEvery = 200 * time.Microsecond
)

// busyEngines is how many engines of this program have something to do.
var busyEngines atomic.Int64

// count says whether this engine has.
func (e *Engine) count(busy bool) {
	if busy != e.counted {
		e.counted = busy
		if busy {
			busyEngines.Add(1)
		} else {
			busyEngines.Add(-1)
		}
	}
}

// crowdMax bounds how much less often engines look when there are many.
const crowdMax = 8

// crowded is an interval for the busy engines that share a CPU. An engine runs before the
// programs and the helpers that it waits for (SCHED_FIFO): many that look often leave them
// no CPU, and wait for ever longer.
func crowded(every time.Duration) time.Duration {
	each := min(max(busyEngines.Load()/int64(runtime.NumCPU()), 1), crowdMax)
	return time.Duration(int64(every) * each)
}

// timeout says how long the engine may sleep. With nothing going on and all
// mappings told of by the kernel, nothing can become resident unseen.
func (e *Engine) timeout() time.Duration {
	t := crowded(measureEvery)
	if !e.unwatched && e.now.Sub(e.lastWork) > activeFor {
		t = idleEvery
	}
	if len(e.held) > 0 {
		return settleEvery
	}
	for _, p := range e.live {
		switch {
		case len(p.batch) > 0:
			// Most often who raised the last event has only to wake up.
			t = min(t, max(settleEvery/5, min(e.now.Sub(p.waitsSince), settleEvery)))
		case len(p.told) > 0 || p.unscanned || p.unarmed || p.unprotected:
			t = min(t, settleEvery)
		case p.blocked || len(p.deferred) > 0:
			t = min(t, e.waitEvery())
		case p.unkept:
			t = min(t, lookEvery)
		case !p.has(state.FlagReady) || p.has(state.FlagHungUp):
			t = min(t, sweepEvery) // its end raises no event
		case p.running() || e.forced > 0:
			t = min(t, crowded(measureEvery))
		}
	}
	return t
}

// waitEvery is how often the engine looks when somebody waits. A helper says when it is
// done. One that takes long has no CPU, and engines that look after it in turn would be
// the reason.
func (e *Engine) waitEvery() time.Duration {
	silent := time.Duration(0)
	for _, p := range e.live {
		if p.running() {
			silent = min(e.now.Sub(e.answeredAt), e.now.Sub(e.issuedAt))
			break
		}
	}
	return min(max(crowded(blockedEvery), silent/8), crowded(measureEvery))
}

// ready notes what a descriptor has to say.
func (e *Engine) ready(s source, events uint32) {
	switch s.kind {
	case kindWake: // the poller's own
	case kindListener:
		e.accept()
	case kindConn:
		e.converse(s.index)
	case kindUffd:
		e.faulting = true
		if p := e.procs[s.index]; p != nil && p.tag == s.tag {
			p.readable = true
			if events&unix.EPOLLERR != 0 {
				e.nonblocking(p)
			}
		}
	case kindMmaps:
		e.hearMmaps()
	case kindHelper:
		if p := e.procs[s.index]; p != nil && p.tag == s.tag {
			e.hear(p)
		}
	}
}

// turn does all that can be done now.
func (e *Engine) turn() {
	if e.slots.collect() && !e.slots.full {
		e.stuck = false
	}
	for _, p := range e.live {
		e.attend(p)
	}
	e.letRun()
	for _, c := range e.conns {
		if c.waits {
			if err := e.adoptChild(c); err != nil {
				e.refuse(c, err)
			}
		}
	}
	// Who waits for a fault does not wait for the books, unless they are overdue.
	due := crowded
	if e.faulting {
		e.faulting = false
		due = func(every time.Duration) time.Duration { return 2 * crowded(every) }
	}
	e.measure(due(measureEvery))
	e.pressure()
	for _, p := range e.live {
		if len(p.deferred) > 0 {
			e.retry(p)
		}
	}
	if e.now.Sub(e.lastSweep) >= due(sweepEvery) {
		e.lastSweep = e.now
		e.sweep()
	}
	if e.now.Sub(e.lastRetry) >= retryEvery {
		e.lastRetry = e.now
		e.slots.again()
	}
	if e.now.Sub(e.lastLook) >= due(lookEvery) {
		e.lastLook = e.now
		full := e.now.Sub(e.lastWalk) >= walkEvery
		if full {
			e.lastWalk = e.now
		}
		if e.now.Sub(e.lastPrune) >= pruneEvery {
			e.lastPrune = e.now
			e.pruneMmaps()
		}
		for _, p := range e.live {
			e.watch(p, full)
			if full {
				e.leaveAlone(p)
			}
		}
	}
}

// attend does what one process needs.
func (e *Engine) attend(p *process) {
	if p.running() {
		e.collect(p)
	}
	e.hold(p)
	p.unsettled(p.readable || len(p.batch) > 0)
	if p.readable {
		e.drain(p)
	}
	if len(p.batch) > 0 {
		e.flush(p)
	}
	p.unsettled(len(p.batch) > 0)
	switch {
	case len(p.batch) == 0:
		p.waitsSince = time.Time{}
	case p.waitsSince.IsZero():
		p.waitsSince = e.now
	}
	if len(p.batch) == 0 {
		p.holdNext, p.restsSince = 0, time.Time{}
	}
	if len(p.told) > 0 && len(p.batch) == 0 {
		told := p.told
		p.told = nil
		for _, r := range told {
			e.registerNew(p, r.start, r.end)
		}
	}
	if p.unarmed {
		e.armed(p)
	}
	if p.unprotected {
		e.protectNow(p)
	}
	if p.unkept && len(p.batch) == 0 && e.now.Sub(p.keptAt) >= lookEvery {
		e.keep(p)
	}
}

// warn logs a message at most once a second per key.
func (e *Engine) warn(key, format string, args ...any) {
	if e.now.Sub(e.lastLog[key]) < time.Second {
		return
	}
	e.lastLog[key] = e.now
	e.log.Warnf(format, args...)
}

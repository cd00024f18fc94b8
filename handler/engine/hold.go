package engine

import (
	"slices"
	"time"

	"github.com/farpage/farpage/handler/state"
	"github.com/farpage/farpage/handler/target"
)

// A thread that moves its memory without a pause beside others leaves no quiet moment:
// the next event is under way as soon as the last one was read, and what waits for that
// moment would fill the ring. Such a thread is held for a moment. Nothing is read for a
// while first, so that each restless thread sleeps in the event that it has raised, where
// nothing wakes it but the read; held then, it ends its system call as ever and stops
// before it makes another.

// restFor is how long nothing is read before.
const restFor = 300 * time.Microsecond

// heldFrom is how many events of a process wait before its restless threads are held,
// and how many more before others are: all processes share the ring, and half of it is
// left for what has to be read until it is quiet.
func (e *Engine) heldFrom() int {
	return max(restless, min(128, state.RingSlots/2/len(e.live)))
}

// held is a thread that moved its memory without a pause.
type held struct {
	tid     int32
	process *process
}

// holdBack sees to it that a quiet moment comes.
func (e *Engine) holdBack(p *process) {
	if p.task < 0 || !p.restsSince.IsZero() || len(p.batch) < p.holdNext+e.heldFrom() {
		return
	}
	p.holdNext = len(p.batch)
	p.restsSince = e.now
}

// hold holds the threads that wait in an event, when nothing was read for long enough.
func (e *Engine) hold(p *process) {
	if p.restsSince.IsZero() || e.now.Sub(p.restsSince) < restFor {
		return
	}
	p.restsSince = time.Time{}
	p.readable = true
	tids := make([]int32, 64)
	n, more, err := target.Tasks(p.task, tids)
	for more && err == nil {
		tids = make([]int32, 2*len(tids))
		n, more, err = target.Tasks(p.task, tids)
	}
	if err != nil {
		return
	}
	for _, tid := range tids[:n] {
		if slices.Contains(e.held, held{tid, p}) || !target.InEvent(p.task, tid) {
			continue
		}
		if err := target.Hold(tid); err != nil {
			e.warn("hold", "pid %d: thread %d moves its memory without a pause and cannot be held (%v): what waits for a quiet moment waits on", p.rec.Pid, tid, err)
			continue
		}
		e.held = append(e.held, held{tid, p})
	}
}

// letRun lets the held threads go on that are no longer in the way. Those of an engine
// that ends are let go by the kernel, when its thread ends.
func (e *Engine) letRun() {
	e.held = slices.DeleteFunc(e.held, func(h held) bool {
		waits := e.procs[h.process.index] == h.process && len(h.process.batch) > 0
		return !waits && target.Release(h.tid)
	})
}

package engine

import (
	"sync/atomic"
	"time"

	"github.com/farpage/farpage/handler/space"
	"github.com/farpage/farpage/handler/state"
	"github.com/farpage/farpage/handler/target"
)

// How much is resident. Between measurements the engine counts what it gives and
// takes; each measurement replaces the count by what the kernel says plus what was
// given and taken while it was made.

// give counts pages that went into processes (out of them: negative).
func (e *Engine) give(pages int64) {
	e.given += pages
	e.resident += pages
	if pages > 0 {
		e.stuck = false
	}
}

// room is how many more pages fit the budget.
func (e *Engine) room() int64 { return e.budget - e.resident }

// measure asks the kernel, if that was long enough ago.
func (e *Engine) measure(every time.Duration) {
	if r, ok := e.pss.take(); ok {
		// It took its time, and what happened meanwhile may be in it or not: less
		// than the count is believed by half.
		counted := e.resident
		e.measuredAs(r.bytes, r.given)
		if e.resident < counted {
			e.resident = (e.resident + counted) / 2
		}
	}
	if e.now.Sub(e.lastMeasure) < every {
		return
	}
	e.lastMeasure = e.now
	e.stuck = false
	if e.statFD >= 0 {
		given := e.given
		if bytes, err := e.reader.CgroupAnon(e.statFD); err == nil {
			e.measuredAs(bytes, given)
		}
		return
	}
	// Without a cgroup: by process. Pages shared after a fork would count twice
	// in RssAnon; their shares take long to sum up, so that is done beside.
	var pids []int32
	for _, p := range e.live {
		if p.has(state.FlagIdentified) && !p.has(state.FlagHungUp) {
			pids = append(pids, p.rec.Pid)
		}
	}
	if len(pids) == 1 && len(e.live) == 1 {
		given := e.given
		if bytes, err := e.reader.RssAnon(int(pids[0])); err == nil {
			e.measuredAs(bytes, given)
		}
		return
	}
	e.pss.start(pids, e.given, e.poller.wake)
}

// measuredAs takes in a measurement that was begun when e.given was `given`.
func (e *Engine) measuredAs(bytes, given int64) {
	e.measured = bytes
	e.resident = bytes/space.PageSize + e.given - given
	c := &e.mem.Header.Counters
	c.ResidentPeak = max(c.ResidentPeak, uint64(bytes))
}

// pssWorker sums Pss_Anon of processes on a goroutine of its own: milliseconds
// for each hundred megabytes.
type pssWorker struct {
	busy   atomic.Bool
	result atomic.Pointer[pssResult]
}

// pssRest is how many times as long as it worked the worker rests.
const pssRest = 4

type pssResult struct{ bytes, given int64 }

func (w *pssWorker) start(pids []int32, given int64, wake func()) {
	if len(pids) == 0 || !w.busy.CompareAndSwap(false, true) {
		return
	}
	go func() {
		var r target.Reader
		sum := int64(0)
		begun := time.Now()
		for _, pid := range pids {
			if n, err := r.PssAnon(int(pid)); err == nil {
				sum += n
			}
		}
		w.result.Store(&pssResult{sum, given})
		wake()
		time.Sleep(pssRest * time.Since(begun))
		w.busy.Store(false)
	}()
}

func (w *pssWorker) take() (pssResult, bool) {
	r := w.result.Swap(nil)
	if r == nil {
		return pssResult{}, false
	}
	return *r, true
}

package engine

import (
	"context"
	"sort"
	"syscall"
	"time"

	"github.com/farpage/farpage/handler/handoff"
	"github.com/farpage/farpage/handler/space"
	"github.com/farpage/farpage/handler/state"
)

// Eviction: over the high watermark, cold runs of touched pages are chosen by a
// clock, marked in flight, and given to the process's helper as one command. What
// the helper has moved is checksummed and goes to a slot; what it could not move
// is touched again.

// pressure issues as much eviction as is called for.
func (e *Engine) pressure() {
	if !e.limitedAt.IsZero() && e.now.Sub(e.limitedAt) > calm {
		e.limitedAt = time.Time{}
		e.log.Info("eviction is not held up any more")
	}
	want := e.forced
	if e.resident > e.high {
		want = max(want, e.resident-e.low)
	}
	if want <= 0 {
		e.evictedAt = e.now
		e.helpless = false
		for _, p := range e.live {
			p.rests = 0 // what the clock finds from now on is another matter
		}
		return
	}
	if e.farLimit >= 0 {
		room := e.farLimit - e.slots.live
		if room <= 0 {
			e.limit("the far limit of %d MiB is reached: eviction stops until far pages are given up", e.farLimit>>8)
			return
		}
		want = min(want, room)
	}
	if e.slots.full {
		e.limit("the store is full: eviction stops until it has room")
		return
	}
	e.limited = false
	flying := 0 // pages of commands under way: each needs a raw buffer
	asked := false
	for _, p := range e.live {
		asked = asked || p.has(state.FlagReady) && !p.has(state.FlagHungUp) && p.pipe.Ended() != p.pipe.Published()
		for i := range p.runs[:p.rec.RunCount] {
			flying += int(p.runs[i].Pages)
		}
	}
	want -= int64(flying)
	under := flying > 0
	chosen := false
	e.slots.wait(false)
	for range e.live {
		if want <= 0 {
			return
		}
		if e.slots.room()-flying < handoff.BatchPages {
			e.slots.wait(true)
			return // the store has to keep up first
		}
		e.turnProc++
		p := e.live[e.turnProc%len(e.live)]
		if !e.evictable(p) {
			under = under || e.soon(p)
			continue
		}
		if n := e.choose(p, int(min(want, handoff.BatchPages))); n > 0 {
			e.issue(p)
			want -= int64(n)
			flying += n
			chosen = true
			p.rests = 0
		} else {
			under = under || p.mayAge()
		}
	}
	if !chosen && !under && e.slots.idle() {
		e.forced = 0
		e.letGo()
	}
	// A helper that has not answered yet, for want of a CPU, has refused nothing; one
	// that never does is stopped.
	tried := e.now.Sub(e.evictedAt)
	refused := !asked || e.answeredAt.Sub(e.evictedAt) > hopeless || tried > stopped
	if refused && tried > hopeless && e.slots.idle() {
		e.stuck = true // what is tried is refused: locked memory, for one
		if tried > time.Second {
			e.letGo()
		}
	}
}

// calm is how long eviction must not have been stopped for that to be said, and said
// again when it is: at a limit a program that comes back to its far pages makes room and
// takes it again, many times a second.
const calm = 5 * time.Second

// limit stops eviction, where nothing more can be far, and counts that.
func (e *Engine) limit(format string, args ...any) {
	if !e.limited {
		e.limited = true
		e.mem.Header.Counters.FarLimitHits++
	}
	if e.limitedAt.IsZero() {
		e.log.Warnf(format, args...)
	}
	e.limitedAt = e.now
	e.evictedAt = e.now // nothing is tried in vain meanwhile
	e.stuck, e.forced = true, 0
}

// letGo notes that nothing is evictable, so that the brake holds nobody, and says so
// once where that costs the budget.
func (e *Engine) letGo() {
	e.stuck = true
	if e.resident > e.budget && !e.helpless {
		e.helpless = true
		e.warn("helpless", "%d MiB are resident, the budget is %d MiB, and nothing more can be evicted: what is left is locked, not writable, unmanaged or outside of the regions", e.resident>>8, e.budget>>8)
	}
}

// hopeless is how long eviction may go on without a page gone before the brake lets
// go.
const hopeless = 20 * time.Millisecond

// stopped is how long a helper may take to answer. On a loaded machine one has waited
// for 400 ms for a CPU.
const stopped = 2 * time.Second

// evictable says whether a command can be given to a process now.
func (e *Engine) evictable(p *process) bool {
	// A helper that is still on its way through a command whose runs were all taken
	// back must not find another command's runs there: it would do them twice.
	return p.has(state.FlagReady) && !p.has(state.FlagHungUp) && !p.running() && len(p.batch) == 0 &&
		p.pipe.Ended() == p.pipe.Published() &&
		!p.unscanned && e.now.Sub(p.round) >= roundEvery && e.checkChild(p, space.Limit)
}

// soon says whether a process that is not evictable now will be in a moment: its clock
// rests, its helper is on the last steps of a command, or something is to be applied.
func (e *Engine) soon(p *process) bool {
	if !p.has(state.FlagReady) || p.has(state.FlagHungUp) || p.running() {
		return false // running is counted already
	}
	return e.now.Sub(p.round) >= roundEvery || p.mayAge()
}

// mayAge says whether another round of the clock may find what the last ones did not:
// each makes every page older by one.
func (p *process) mayAge() bool { return p.rests <= space.MaxAge+1 }

// roundEvery is how long the clock rests when it came round and found nothing cold:
// a page that was just given must be there long enough to be used.
const roundEvery = time.Millisecond

// leavesPerChoice bounds how far the clock goes in one choice.
const leavesPerChoice = 512

// choose takes the next cold pages of a process, at most want, marks them in
// flight and notes them as its command. The clock passes a page by as often as
// its age says.
func (e *Engine) choose(p *process, want int) int {
	if p.unkept || p.keptAt != e.now {
		e.keep(p)
	}
	pages, runs := 0, 0
	begin, wrapped := p.cursor, false
	for leaves := 0; leaves < leavesPerChoice && pages < want; leaves++ {
		base, leaf, ok := p.table.NextLeaf(p.cursor)
		if !ok || wrapped && base > begin {
			if wrapped || p.cursor == 0 {
				// Once around: what is in use now has grown older by one.
				if pages == 0 {
					p.round = e.now
					p.rests++
				}
				break
			}
			p.cursor, wrapped = 0, true
			continue
		}
		border := sort.Search(len(p.borders), func(k int) bool { return p.borders[k] > base })
		i := 0
		if p.cursor > base {
			i = int((p.cursor - base) / space.PageSize)
		}
		for ; i < space.Fan && pages < want; i++ {
			entry := leaf[i]
			if entry.State() != space.Touched {
				continue
			}
			addr := base + uint64(i)*space.PageSize
			for border < len(p.borders) && p.borders[border] < addr {
				border++
			}
			cut := border < len(p.borders) && p.borders[border] == addr // UFFDIO_MOVE takes one mapping at a time
			if entry.Refused() {
				leaf[i] = entry.WithRefused(false)
				continue
			}
			if age := entry.Age(); age > 0 {
				leaf[i] = entry.WithAge(age - 1)
				continue
			}
			if _, no := p.kept[addr]; no {
				continue
			}
			if runs == handoff.RunsMax {
				last := p.runs[runs-1]
				if cut || last.Addr+uint64(last.Pages)*space.PageSize != addr || last.Pages == handoff.StagingPages {
					break
				}
			}
			// In flight at once: the clock may come round to this page again.
			leaf[i] = entry.To(space.InFlight, 0)
			if runs > 0 && !cut {
				if r := &p.runs[runs-1]; r.Addr+uint64(r.Pages)*space.PageSize == addr && r.Pages < handoff.StagingPages {
					r.Pages++
					pages++
					continue
				}
			}
			p.runs[runs] = state.Run{Addr: addr, Pages: 1, First: uint32(pages)}
			runs++
			pages++
		}
		p.cursor = base + uint64(i)*space.PageSize
		if runs == handoff.RunsMax && i < space.Fan {
			break
		}
	}
	// A crash before this leaves pages in flight without a command, one before
	// the command is published a number that the channel does not know: either
	// way nothing was moved.
	p.rec.Command++
	p.rec.RunCount = uint32(runs)
	return pages
}

// issue gives a command to the helper.
func (e *Engine) issue(p *process) {
	for i := range p.runs[:p.rec.RunCount] {
		r := &p.runs[i]
		p.pipe.SetRun(i, r.Addr, r.Pages, r.First)
	}
	e.issuedAt = e.now
	p.pipe.Publish(p.rec.Command, int(p.rec.RunCount))
}

// collect takes in the runs that the helper has ended.
func (e *Engine) collect(p *process) {
	ended := p.pipe.Ended() == p.rec.Command
	left := false
	for i := range p.runs[:p.rec.RunCount] {
		r := &p.runs[i]
		if r.Pages == 0 {
			continue
		}
		result, moved, errno := p.pipe.Result(i)
		switch result {
		case handoff.Done:
			moved, errno = r.Pages, 0
		case handoff.Partial:
			moved = min(moved, r.Pages)
		case handoff.Stale:
			moved, errno = 0, 0
			p.cursor = min(p.cursor, r.Addr)
		default:
			if !ended {
				left = true
				continue
			}
			moved, errno = 0, 0
		}
		e.answeredAt = e.now
		e.take(p, r, moved, syscall.Errno(errno))
	}
	if !left {
		e.endCommand(p)
	}
}

// take takes in one run: its first pages have moved, the next one met an error.
func (e *Engine) take(p *process, r *state.Run, moved uint32, errno syscall.Errno) {
	for k := range r.Pages {
		a := r.Addr + uint64(k)*space.PageSize
		entry := p.table.Get(a)
		if entry.State() != space.InFlight {
			continue
		}
		if k < moved {
			e.store1(p, a, p.pipe.Page(r.First+k))
			continue
		}
		entry = entry.To(space.Touched, 0)
		switch {
		case errno == syscall.EAGAIN:
			p.cursor = min(p.cursor, a)
		case errno == syscall.EINVAL:
			// Locked or not writable, and a run is within one mapping: all of it.
			entry = entry.WithRefused(true)
		case errno != 0 && k == moved:
			entry = entry.WithRefused(true)
		}
		e.write(p, a, entry)
	}
	r.Pages = 0
	if moved > 0 {
		e.stuck = false
		p.unkept = true
	}
}

// store1 takes in the bytes of a page that has left its process.
func (e *Engine) store1(p *process, addr uint64, page []byte) {
	entry := p.table.Get(addr)
	if entry.State() != space.InFlight {
		return
	}
	slot, zero := e.slots.put(page)
	if zero {
		e.write(p, addr, entry.To(space.Untouched, 0))
	} else {
		e.write(p, addr, entry.To(space.Slot, slot))
	}
	e.mem.Header.Counters.Evicted++
	e.evictedAt = e.now
	e.forced = max(0, e.forced-1)
	e.give(-1)
}

// takeBack ends the runs of a command that an event touches and that the helper
// has not begun. Preconditions: the epoch was raised and the helper is not inside
// a move.
func (e *Engine) takeBack(p *process, start, end uint64) {
	if !p.running() {
		return
	}
	left := false
	for i := range p.runs[:p.rec.RunCount] {
		r := &p.runs[i]
		if r.Pages == 0 {
			continue
		}
		if r.Addr >= end || r.Addr+uint64(r.Pages)*space.PageSize <= start {
			left = true
			continue
		}
		p.pipe.SetRun(i, 0, 0, 0)
		e.take(p, r, 0, 0)
	}
	if !left {
		e.endCommand(p)
	}
}

// endCommand ends a command: what is still in flight was not moved.
func (e *Engine) endCommand(p *process) {
	for i := range p.runs[:p.rec.RunCount] {
		if r := &p.runs[i]; r.Pages > 0 {
			e.take(p, r, 0, 0)
		}
	}
	p.rec.RunCount = 0
	p.blocked = false
}

// Evict evicts up to n more pages, whatever the watermarks say; n < 0: all.
func (e *Engine) Evict(n int64) {
	if n < 0 {
		n = 1 << 40
	}
	e.forced, e.stuck = n, false
}

// EvictAndWait evicts n pages (n < 0: all that can be) and says how many went. From
// any goroutine.
func (e *Engine) EvictAndWait(ctx context.Context, n int64) (int64, error) {
	before, err := Ask(e, func() uint64 {
		e.Evict(n)
		return e.mem.Header.Counters.Evicted
	})
	type progress struct {
		evicted uint64
		left    bool
	}
	now := progress{before, true}
	for err == nil && now.left && ctx.Err() == nil {
		time.Sleep(time.Millisecond)
		now, err = Ask(e, func() progress {
			left := e.forced > 0
			for _, p := range e.live {
				left = left || p.running()
			}
			return progress{e.mem.Header.Counters.Evicted, left}
		})
	}
	return int64(now.evicted - before), err
}

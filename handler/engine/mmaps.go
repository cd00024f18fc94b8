package engine

import (
	"github.com/farpage/farpage/handler/space"
	"github.com/farpage/farpage/handler/state"
	"github.com/farpage/farpage/handler/target"
	"github.com/farpage/farpage/handler/uffd"
)

// mmapWatch hears of what one process that was started in the container from outside,
// and all that it started, map.
type mmapWatch struct {
	*target.Mmaps
	told map[int32]struct{} // process ids that it has told of
}

// mmapsMax bounds how many watches a container has.
const mmapsMax = 64

// watchMmaps lets the engine hear of what a process maps, unless an ancestor's
// watch tells of it already. Without it, looking every now and then has to do.
func (e *Engine) watchMmaps(p *process) {
	e.hearMmaps() // an inherited watch has told of what the program's start mapped
	for _, w := range e.mmaps {
		if _, told := w.told[p.rec.Pid]; told {
			return
		}
	}
	m, err := target.WatchMmaps(int(p.rec.Pid))
	if err != nil {
		e.unwatched = true
		e.warn("perf", "new mappings are found by looking only (%v): budgets are kept less exactly", err)
		return
	}
	e.pruneMmaps()
	if len(e.mmaps) == mmapsMax {
		// Whoever the oldest told of is found by looking from now on.
		e.closeMmap(e.mmaps[0])
		e.mmaps = append(e.mmaps[:0], e.mmaps[1:]...)
		e.unwatched = true
	}
	e.mmaps = append(e.mmaps, mmapWatch{m, map[int32]struct{}{p.rec.Pid: {}}})
	for _, fd := range m.FDs() {
		if err := e.poller.add(fd, source{kind: kindMmaps}); err != nil {
			e.unwatched = true
			e.warn("perf", "watch what pid %d maps: %v", p.rec.Pid, err)
		}
	}
}

// pruneMmaps forgets the processes that are no more, and closes the watches that
// nobody is left of.
func (e *Engine) pruneMmaps() {
	kept := e.mmaps[:0]
	for _, w := range e.mmaps {
		for pid := range w.told {
			if target.StartTime(int(pid)) == 0 {
				delete(w.told, pid)
			}
		}
		if len(w.told) == 0 {
			e.closeMmap(w)
			continue
		}
		kept = append(kept, w)
	}
	e.mmaps = kept
}

// hearMmaps registers what was mapped.
func (e *Engine) hearMmaps() {
	for _, w := range e.mmaps {
		lost := w.Read(func(r target.Mapping) {
			w.told[r.Pid] = struct{}{}
			if !r.Anonymous || !r.Private {
				return
			}
			for _, p := range e.live {
				if p.rec.Pid == r.Pid && p.has(state.FlagReady) && !p.has(state.FlagHungUp) {
					e.lastWork = e.now
					e.registerNew(p, r.Start, r.End)
				}
			}
		})
		if lost {
			e.lastWalk, e.lastLook = e.now.Add(-walkEvery), e.now.Add(-lookEvery)
		}
	}
}

// registerNew registers a mapping that was just made. It may be another one by
// now: REGISTER clears nothing, and refuses what is not anonymous.
func (e *Engine) registerNew(p *process, start, end uint64) {
	if p.unarmed || end > space.Limit {
		return // the next look finds it
	}
	if !e.settledNow(p) {
		p.told.add(start, end) // attend comes back: what has the same size as what went before it shows nowhere else
		return
	}
	p.refusedAt.remove(start, end) // that was something else
	var todo ranges
	e.within(start, min(end, probeAddr), func(start, end uint64) {
		var believed ranges
		believed.add(start, end)
		p.ranges.gaps(start, end, believed.remove)
		for _, r := range believed { // it may have been a hole
			p.keepOut.gaps(r.start, r.end, func(start, end uint64) {
				_ = uffd.Register(p.uffd(), start, end-start, registerMode) // what refuses now is looked at again
			})
		}
		p.ranges.gaps(start, end, todo.add)
	})
	e.registerAll(p, todo)
}

// closeMmaps ends all watches.
func (e *Engine) closeMmaps() {
	for _, w := range e.mmaps {
		e.closeMmap(w)
	}
	e.mmaps = nil
}

func (e *Engine) closeMmap(w mmapWatch) {
	for _, fd := range w.FDs() {
		e.poller.remove(fd)
	}
	w.Close()
}

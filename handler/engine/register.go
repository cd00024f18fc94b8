package engine

import (
	"bytes"
	"syscall"
	"time"

	"github.com/farpage/farpage/handler/handoff"
	"github.com/farpage/farpage/handler/space"
	"github.com/farpage/farpage/handler/state"
	"github.com/farpage/farpage/handler/target"
	"github.com/farpage/farpage/handler/uffd"
	"github.com/farpage/farpage/oci/policy"
)

// registerMode: missing pages are faults, and after a fork writes are seen.
const registerMode = uffd.ModeMissing | uffd.ModeWP

// watch registers what a process has mapped since it was last looked at. There is
// no MMAP event: the size of the address space tells that something came, and a
// full look now and then finds what took the place of something else.
func (e *Engine) watch(p *process, full bool) {
	if !p.has(state.FlagReady) || p.has(state.FlagHungUp) {
		return
	}
	if p.unscanned {
		e.rescan(p)
	}
	if full {
		p.refusedAt = p.refusedAt[:0] // what was refused once is tried again
		e.register(p)
		return
	}
	if p.statm < 0 {
		return
	}
	mapped, err := e.reader.MappedBytes(p.statm)
	if err != nil || mapped == p.mapped {
		return
	}
	if e.register(p) {
		p.mapped = mapped
	}
}

// againEvery is how often everything is registered anew, whatever is believed to be:
// what was told or seen of a mapping may be out of date by the time it is registered,
// and a hole in it, filled later, would be taken for registered. Registering twice
// costs next to nothing.
const againEvery = time.Second

// settledNow says whether all that happened in a process before now is in its table.
// Nothing is registered at another time, here or by the helper: a mapping that was made
// after an UNMAP and a REMAP had met at its address, and was registered before they are
// applied, would pass for what was moved there.
func (e *Engine) settledNow(p *process) bool {
	if len(p.batch) > 0 {
		return false
	}
	quiet, _ := uffd.Quiet(p.uffd(), probeAddr)
	return quiet
}

// register walks a process's mappings and registers what is not yet. looked is false
// when that has to wait.
func (e *Engine) register(p *process) (looked bool) {
	if len(p.batch) > 0 || !e.checkChild(p, space.Limit) {
		return false
	}
	text, err := e.reader.All(int(p.rec.MapsFD))
	if err != nil {
		return false
	}
	var mapped []span // one by one: what one refuses is not the next one's fault
	p.keepOut = append(p.keepOut[:0], span{p.rec.Area, p.rec.Area + handoff.AreaBytes})
	p.borders = p.borders[:0]
	libc := uint64(0) // end of the last mapping of libc or the loader
	err = target.Maps(text, func(v target.VMA) {
		p.borders = append(p.borders, v.End)
		if v.File {
			if isLibc(v.Name) {
				libc = v.End
			}
			return
		}
		if v.Start == libc {
			libc = v.End // its .bss: musl's TID word is there
			p.keepOut.add(v.Start, v.End)
			return
		}
		if !v.Shared && eligible(v.Name) {
			e.within(v.Start, min(v.End, probeAddr), func(start, end uint64) { mapped = append(mapped, span{start, end}) })
		}
	})
	if err != nil {
		e.warn("maps", "pid %d: %v", p.rec.Pid, err)
		return false
	}
	if !e.settledNow(p) {
		return false
	}
	var all, todo ranges
	for _, m := range mapped {
		all.add(m.start, m.end)
	}
	all.gaps(0, space.Limit, p.ranges.remove)                      // what is believed to be registered and is not there
	again := !p.again.IsZero() && e.now.Sub(p.again) >= againEvery // at first all of it is new
	if again || p.again.IsZero() {
		p.again = e.now
	}
	for _, m := range mapped {
		if again {
			p.keepOut.gaps(m.start, m.end, func(start, end uint64) {
				_ = uffd.Register(p.uffd(), start, end-start, registerMode) // a refusal is told where it matters
			})
		}
		p.ranges.gaps(m.start, m.end, todo.add)
	}
	e.registerAll(p, todo)
	return true
}

// registerAll registers ranges and looks which of their pages are there already.
func (e *Engine) registerAll(p *process, todo ranges) {
	for _, r := range p.keepOut {
		todo.remove(r.start, r.end)
	}
	for _, r := range todo {
		if p.refusedAt.covers(r.start, r.end) {
			continue
		}
		errno := uffd.Register(p.uffd(), r.start, r.end-r.start, registerMode)
		if errno == syscall.ENOMEM && target.StartTime(int(p.rec.Pid)) == p.rec.Start && !e.gone(p) {
			e.warn("register", "pid %d: register %#x-%#x: %v (vm.max_map_count?): it stays resident", p.rec.Pid, r.start, r.end, errno)
		}
		if errno != 0 {
			// Another userfaultfd has it, or it is not what it was.
			p.refusedAt.add(r.start, r.end)
			continue
		}
		p.ranges.add(r.start, r.end)
		p.rescan.add(r.start, r.end)
		p.unscanned = true
	}
	if p.unscanned {
		e.rescan(p)
	}
}

// gone says whether a process's memory is no more.
func (e *Engine) gone(p *process) bool {
	_, gone := uffd.Quiet(p.uffd(), probeAddr)
	return gone
}

// within limits a range to the regions that the policy names.
func (e *Engine) within(start, end uint64, visit func(start, end uint64)) {
	regions := e.cfg.Policy.Regions
	if len(regions) == 0 {
		regions = []policy.Range{{Start: 0, End: space.Limit}}
	}
	for _, r := range regions {
		if s, t := max(start, r.Start), min(end, r.End); s < t {
			visit(s, t)
		}
	}
}

// rescan looks, once after a REGISTER, which pages were there before it: those
// that are untouched in the table become touched, nothing else changes. It counts
// only if the uffd is quiet afterwards: an unread event may be about these very
// addresses.
func (e *Engine) rescan(p *process) {
	if len(p.batch) > 0 {
		return
	}
	// Events that are read are applied, unless a batch waits; what is unread
	// makes the uffd not quiet.
	var found ranges
	for _, r := range p.rescan {
		err := e.scanner.Populated(int(p.rec.PagemapFD), r.start, r.end, func(start, end uint64) { found.add(start, end) })
		if err != nil {
			return
		}
	}
	quiet, gone := uffd.Quiet(p.uffd(), probeAddr)
	if !quiet || gone {
		return
	}
	for _, r := range found {
		for a := r.start; a < r.end; a += space.PageSize {
			if entry := p.table.Get(a); entry.State() == space.Untouched {
				e.write(p, a, entry.To(space.Touched, 0))
			}
		}
	}
	p.rescan = p.rescan[:0]
	p.unscanned = false
	e.stuck = false
}

// eligible says whether anonymous memory of this name is paged. The stack is not:
// signal frames and what the kernel writes at exit are there.
func eligible(name []byte) bool {
	return len(name) == 0 || bytes.Equal(name, []byte("[heap]")) || bytes.HasPrefix(name, []byte("[anon:"))
}

// isLibc says whether a file is a C library or its loader.
func isLibc(path []byte) bool {
	base := path[bytes.LastIndexByte(path, '/')+1:]
	return bytes.HasPrefix(base, []byte("libc.")) || bytes.HasPrefix(base, []byte("libc-")) ||
		bytes.HasPrefix(base, []byte("ld-")) || bytes.HasPrefix(base, []byte("ld.so"))
}

package engine

import (
	"errors"
	"math"
	"syscall"
	"time"

	"github.com/farpage/farpage/handler/space"
	"github.com/farpage/farpage/handler/state"
	"github.com/farpage/farpage/handler/target"
	"github.com/farpage/farpage/handler/uffd"
)

// fault is a thread that waits for a page.
type fault struct {
	addr  uint64
	flags uint64
	tid   uint32
	since time.Time
	asked bool // the store, for this page and those behind it
}

// outcome of an attempt to serve.
type outcome uint8

const (
	served outcome = iota
	later
)

// fault serves a page fault that was just read, or keeps it for later.
func (e *Engine) fault(p *process, f fault) {
	e.mem.Header.Counters.Faults++
	if e.serve(p, &f) == later {
		for i := range p.deferred {
			if p.deferred[i].addr == f.addr && p.deferred[i].flags == f.flags {
				return // the same thread again, after a signal
			}
		}
		p.deferred = append(p.deferred, f)
		return
	}
	e.account(f)
}

// retry serves what waits and can be served now.
func (e *Engine) retry(p *process) {
	n := 0
	for i := range p.deferred {
		f := p.deferred[i]
		if e.serve(p, &f) == later {
			p.deferred[n] = f
			n++
			continue
		}
		e.account(f)
	}
	p.deferred = p.deferred[:n]
}

// account notes how long a fault took from being read to being answered.
func (e *Engine) account(f fault) {
	us := time.Since(f.since).Microseconds()
	c := &e.mem.Header.Counters
	c.StallUs += uint64(max(us, 0))
	c.Latency[bucket(us)]++
}

// bucket of a time: two per power of two.
func bucket(us int64) int {
	if us < 1 {
		return 0
	}
	return min(1+int(2*math.Log2(float64(us))), len(state.Counters{}.Latency)-1)
}

// bucketTop is the largest time in a bucket, in microseconds.
func bucketTop(i int) int64 {
	return int64(math.Exp2(float64(i) / 2))
}

// serve answers one fault. What is looked up, given and written down is one step:
// no event of this process is read in between.
func (e *Engine) serve(p *process, f *fault) outcome {
	if len(p.batch) > 0 {
		return later // until they are applied: flush comes back here
	}
	// The helper populates pages of its own command: it is never made to wait for
	// itself, nor for room that only it can make.
	helper := f.tid != 0 && f.tid == p.rec.HelperTid
	entry := p.table.Get(f.addr)
	if entry.State() == space.InFlight && f.flags&uffd.FaultWP == 0 && !helper {
		return later
	}
	if !helper && e.room() <= 0 && !e.stuck {
		return later // the brake
	}
	if f.flags&uffd.FaultWP != 0 {
		return e.unprotect(p, f)
	}
	switch entry.State() {
	case space.Slot:
		return e.serveFar(p, f)
	case space.Poisoned:
		return e.poison(p, f.addr, entry)
	default:
		return e.serveZero(p, f, entry)
	}
}

// stream is a run of faults at growing addresses: read ahead in growing steps.
type stream struct {
	next   uint64
	window int
	used   uint32
}

// ahead says how many pages from addr on are worth giving in one trip.
func (p *process) ahead(addr uint64) int {
	oldest := &p.streams[0]
	for i := range p.streams {
		s := &p.streams[i]
		s.used++
		if s.next == addr {
			s.window = min(s.window*2, batch)
			s.used = 0
			return s.window
		}
		if s.used > oldest.used {
			oldest = s
		}
	}
	*oldest = stream{next: addr, window: 1}
	return 1
}

// gave notes up to where a trip went.
func (p *process) gave(addr uint64, pages int) {
	for i := range p.streams {
		if s := &p.streams[i]; s.used == 0 {
			s.next = addr + uint64(pages)*space.PageSize
			return
		}
	}
}

// trip gives up to `pages` pages, fewer where the mapping ends: the kernel takes a
// range that is not in one mapping for none at all.
func trip(pages int, give func(pages int) (done uint64, errno syscall.Errno)) (uint64, syscall.Errno) {
	for {
		done, errno := give(pages)
		if errno != syscall.ENOENT || done > 0 || pages == 1 {
			return done, errno
		}
		pages /= 2
	}
}

// limitAhead keeps what is given ahead of need within the budget.
func (e *Engine) limitAhead(n int) int {
	return max(1, min(n, int(min(e.room()/4, batch))))
}

// zeroAhead is how many pages behind a removed one are given at most: the zap
// comes after the event, and would take them away again.
const zeroAhead = 16

// serveZero gives zeros: to pages that were never touched or were removed.
func (e *Engine) serveZero(p *process, f *fault, entry space.Entry) outcome {
	c := &e.mem.Header.Counters
	known := entry.State() != space.Touched && entry.State() != space.InFlight
	if !known {
		if !e.checkChild(p, f.addr) {
			return later
		}
		entry = p.table.Get(f.addr)
		known = entry.State() != space.Touched && entry.State() != space.InFlight || entry.RemovedOnce()
	}
	want := e.limitAhead(p.ahead(f.addr))
	pages := 1
	for pages < want {
		next := p.table.Get(f.addr + uint64(pages)*space.PageSize).State()
		if next == space.Removed && pages >= zeroAhead || next != space.Untouched && next != space.Removed {
			break
		}
		pages++
	}
	done, errno := trip(pages, func(pages int) (uint64, syscall.Errno) {
		// Pages of its own, for a reader too: a write to the kernel's zero page raises no fault,
		// and what was read ahead of that could grow past the budget unseen.
		return uffd.Copy(p.uffd(), f.addr, e.zero[:pages*space.PageSize], 0)
	})
	n := int(done / space.PageSize)
	for k := range n {
		a := f.addr + uint64(k)*space.PageSize
		age := 0
		if k == 0 {
			age = 1
		}
		if old := p.table.Get(a); old.State() != space.InFlight {
			e.write(p, a, old.To(space.Touched, 0).WithAge(age))
		}
	}
	p.gave(f.addr, n)
	e.give(int64(n))
	if n > 0 {
		c.ServedZero++
		if !known { // and it was missing: for a page that is there n is 0
			c.Unexplained++
			e.warn("unexplained", "pid %d: page %#x was touched and is missing, no event tells why; served zeros", p.rec.Pid, f.addr)
		}
		return served
	}
	return e.refusal(p, f.addr, entry, errno)
}

// serveFar gives a page's bytes back, and those of far pages behind it that are
// likely to be needed next.
func (e *Engine) serveFar(p *process, f *fault) outcome {
	if !e.checkChild(p, f.addr) {
		return later
	}
	entry := p.table.Get(f.addr) // the check may have changed it
	if entry.State() != space.Slot {
		return e.serveZero(p, f, entry)
	}
	if err := e.slots.read(entry.Slot(), e.buf[:space.PageSize]); err != nil {
		if errors.Is(err, errNotYet) && !f.asked {
			f.asked = true
			e.fetchAhead(p, f.addr)
		}
		return e.unreadable(p, f.addr, entry, err)
	}
	want := e.limitAhead(p.ahead(f.addr))
	pages := 1
	for pages < want {
		next := p.table.Get(f.addr + uint64(pages)*space.PageSize)
		if next.State() != space.Slot || e.slots.read(next.Slot(), e.buf[pages*space.PageSize:(pages+1)*space.PageSize]) != nil {
			break
		}
		pages++
	}
	done, errno := trip(pages, func(pages int) (uint64, syscall.Errno) {
		return uffd.Copy(p.uffd(), f.addr, e.buf[:pages*space.PageSize], 0)
	})
	n := int(done / space.PageSize)
	for k := range n {
		a := f.addr + uint64(k)*space.PageSize
		old := p.table.Get(a)
		age := 1
		if k == 0 {
			age = 2
		}
		e.write(p, a, old.To(space.Touched, 0).WithAge(age))
		e.slots.drop(old.Slot())
	}
	p.gave(f.addr, n)
	e.give(int64(n))
	if n > 0 {
		c := &e.mem.Header.Counters
		c.ServedFar++
		c.Restored += uint64(n)
		c.Prefetched += uint64(n - 1)
		return served
	}
	return e.refusal(p, f.addr, entry, errno)
}

// fetchAhead asks a store that takes its time for the far pages behind addr too: they
// are there when that page is.
func (e *Engine) fetchAhead(p *process, addr uint64) {
	pages := e.limitAhead(p.ahead(addr))
	for k := 1; k < pages && e.slots.mayFetch(); k++ {
		next := p.table.Get(addr + uint64(k)*space.PageSize)
		if next.State() != space.Slot {
			return
		}
		_ = e.slots.read(next.Slot(), e.buf[:space.PageSize]) // what is wrong is seen when it is needed
	}
}

// refusal deals with what the kernel said instead of taking a page.
func (e *Engine) refusal(p *process, addr uint64, entry space.Entry, errno syscall.Errno) outcome {
	switch errno {
	case syscall.EAGAIN:
		p.readable = true // an event is under way; it comes first
		return later
	case syscall.EEXIST:
		// The page is there, and nobody was woken. A removed page stays so: its
		// zap may be still to come.
		switch entry.State() {
		case space.Slot:
			e.write(p, addr, entry.To(space.Touched, 0))
			e.slots.drop(entry.Slot())
		case space.Untouched:
			e.write(p, addr, entry.To(space.Touched, 0))
		case space.InFlight, space.Touched, space.Removed, space.Poisoned:
		}
	case syscall.ESRCH:
		return served // nobody waits any more; sweep sees it
	case syscall.ENOENT, syscall.EINVAL:
		// The mapping has changed; the thread looks for itself.
	case syscall.ENOMEM:
		e.warn("enomem", "pid %d: no memory for page %#x: the container is at its own memory limit", p.rec.Pid, addr)
		return later
	default:
		e.warn("serve", "pid %d: page %#x: %v", p.rec.Pid, addr, errno)
		return later
	}
	_ = uffd.Wake(p.uffd(), addr, space.PageSize)
	return served
}

// unreadable deals with a far page whose bytes are not to be had (now).
func (e *Engine) unreadable(p *process, addr uint64, entry space.Entry, err error) outcome {
	if errors.Is(err, errNotYet) {
		return later
	}
	c := &e.mem.Header.Counters
	if errors.Is(err, errChecksum) {
		c.ChecksumErrors++
	} else {
		c.StoreErrors++
	}
	e.log.Errorf("pid %d: page %#x (slot %d) is lost: %v; the process gets SIGBUS where it reads it", p.rec.Pid, addr, entry.Slot(), err)
	slot := entry.Slot()
	e.write(p, addr, entry.To(space.Poisoned, 0))
	e.slots.drop(slot)
	return e.poison(p, addr, entry)
}

// poison makes a page raise SIGBUS.
func (e *Engine) poison(p *process, addr uint64, entry space.Entry) outcome {
	_, errno := uffd.Poison(p.uffd(), addr, space.PageSize)
	if errno == 0 || errno == syscall.EEXIST {
		_ = uffd.Wake(p.uffd(), addr, space.PageSize)
		return served
	}
	return e.refusal(p, addr, entry.To(space.Poisoned, 0), errno)
}

// write sets an entry; the table has the leaf already, or there is room for it.
func (e *Engine) write(p *process, addr uint64, entry space.Entry) {
	if err := p.table.Set(addr, entry); err != nil {
		// The page is served but its entry is not kept: it stays resident.
		e.warn("nodes", "page tables are full (%v): pages of pid %d are no longer evicted", err, p.rec.Pid)
	}
}

// unprotectPages is how many pages of a range that is protected after a fork are
// let go at once: a write to one of them is soon followed by others.
const unprotectPages = 64

// unprotect lets a thread write to a page that is shared after a fork. What that
// copies counts.
func (e *Engine) unprotect(p *process, f *fault) outcome {
	const blockBytes = unprotectPages * space.PageSize
	start := f.addr &^ (blockBytes - 1)
	length := uint64(blockBytes)
	if !p.ranges.covers(start, start+length) || e.room() < unprotectPages {
		start, length = f.addr, space.PageSize
	}
	var shared int64
	if p.rec.PagemapFD >= 0 {
		shared = int64(target.Shared(int(p.rec.PagemapFD), start, int(length/space.PageSize)))
	} else {
		shared = int64(length / space.PageSize)
	}
	errno := uffd.Unprotect(p.uffd(), start, length)
	if errno != 0 && length > space.PageSize {
		errno = uffd.Unprotect(p.uffd(), f.addr, space.PageSize)
	}
	switch errno {
	case 0:
		e.give(shared)
		return served
	case syscall.EAGAIN:
		p.readable = true
		return later
	case syscall.ESRCH:
		return served
	default:
		_ = uffd.Wake(p.uffd(), f.addr, space.PageSize)
		return served
	}
}

// protect has parent and child write-protected after a fork if there is no room for
// a copy of what they share, so that copy-on-write is seen and braked.
func (e *Engine) protect(parent, child *process) {
	if e.resident*2 <= e.high {
		return
	}
	parent.unprotected, child.unprotected = true, true
	e.protectNow(child)
}

// protectNow protects a process as soon as the kernel lets: not while an event,
// the FORK itself for one, is under way.
func (e *Engine) protectNow(p *process) {
	if quiet, _ := uffd.Quiet(p.uffd(), probeAddr); !quiet {
		return // attend comes back
	}
	for _, r := range p.ranges {
		// What is not there any more, or in several mappings, is not braked.
		if errno := uffd.Protect(p.uffd(), r.start, r.end-r.start); errno == syscall.EAGAIN {
			return
		}
	}
	p.unprotected = false
}

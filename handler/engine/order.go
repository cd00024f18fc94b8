package engine

import (
	"slices"
	"syscall"
	"time"

	"github.com/farpage/farpage/handler/space"
	"github.com/farpage/farpage/handler/state"
	"github.com/farpage/farpage/handler/target"
	"github.com/farpage/farpage/handler/uffd"
)

// The order of events. What is decided here can be decided by looking at what is
// mapped: in the process itself for UNMAP and REMAP, in the child for FORK.

// settled says whether the batch is in the order in which it happened, and may be
// applied.
func (e *Engine) settled(p *process) bool {
	if !p.placing {
		// Thought about before the quiet moment is looked for, which may be short.
		e.judge(p)
		quiet, gone := uffd.Quiet(p.uffd(), probeAddr)
		switch {
		case gone:
			return true
		case !quiet && !e.inOrder(p):
			e.holdBack(p)
			return false
		case !quiet:
			return true
		case !e.settle(p):
			return false
		}
	}
	// The rest does not need the quiet moment, but nothing more is read before: the
	// child whose place is looked for cannot change while its events are not.
	if p.placing && !e.placeForks(p, p.atQuiet) {
		return false
	}
	p.placing, p.atQuiet = false, nil
	return true
}

// settle puts a batch into order at a quiet moment: every mremap's own UNMAP has been
// read then, and nothing else is under way. FORKs are left to be placed. false: it
// was not quiet after all.
func (e *Engine) settle(p *process) bool {
	forksAmong := p.forks && p.others
	if !p.ambiguous && !forksAmong {
		return true
	}
	now, errno := mappedAt(p.uffd(), p.points)
	switch errno {
	case 0:
	case syscall.EAGAIN:
		return false
	case syscall.ESRCH:
		return true // the memory is gone
	default:
		text, err := e.smapsText(p)
		if err == nil {
			now, err = registered(text)
		}
		if err != nil {
			e.warn("settle", "pid %d: events met and its mappings cannot be read (%v): taken in the order of reading", p.rec.Pid, err)
			return true
		}
		if quiet, _ := uffd.Quiet(p.uffd(), probeAddr); !quiet {
			return false
		}
	}
	p.placing, p.atQuiet = forksAmong, now
	if p.ambiguous && !e.arrange(p, now) {
		e.warn("settle", "pid %d: no order explains its unmaps and remaps: taken in the order of reading", p.rec.Pid)
	}
	return true
}

// mappedAt says at which of the points a userfaultfd watches a mapping, all of it at one
// moment: an event that begins meanwhile would be under way until this thread reads it.
// A process that moves its memory often leaves no time to read smaps.
//
// EAGAIN: an event is under way. ESRCH: the memory is gone. Any other error: this kernel
// does not tell.
func mappedAt(fd int, points []uint64) (at ranges, errno syscall.Errno) {
	for _, x := range points {
		if x >= space.Limit-space.PageSize {
			continue
		}
		watched, errno := uffd.Watches(fd, x)
		if errno != 0 {
			return nil, errno
		}
		if watched {
			at.add(x, x+1)
		}
	}
	return at, 0
}

// judge takes note of what has come to the batch since it was last called: whether
// something that leaves was read after something that arrived at the same addresses,
// whether there is a FORK beside an UNMAP or a REMAP (the child may have been made before
// or after each of them), and where ranges begin and end.
func (e *Engine) judge(p *process) {
	for ; p.judged < len(p.batch); p.judged++ {
		m := &e.mem.Ring[p.batch[p.judged]].Msg
		a, b := leaves(m)
		c, d := arrives(m)
		for _, i := range p.batch[:p.judged] {
			if p.ambiguous || a == b {
				break
			}
			start, end := arrives(&e.mem.Ring[i].Msg)
			p.ambiguous = a < end && b > start
		}
		if a < b {
			p.note(a, b)
		}
		if c < d {
			p.note(c, d)
		}
		switch m.Event {
		case uffd.EventFork:
			p.forks = true
		case uffd.EventUnmap, uffd.EventRemap:
			p.others = true
		}
	}
}

// note adds points to those that are asked for at the quiet moment.
func (p *process) note(points ...uint64) {
	for _, x := range points {
		if k, there := slices.BinarySearch(p.points, x); !there {
			p.points = slices.Insert(p.points, k, x)
		}
	}
}

// unjudge forgets what judge has found: the batch has changed otherwise than at its end.
func (p *process) unjudge() {
	p.judged, p.points = 0, p.points[:0]
	p.ambiguous, p.forks, p.others = false, false, false
}

// restless is how many events may wait for a quiet moment before it is looked for
// another way to apply them.
const restless = 16

// inOrder says whether a batch for which there is no quiet moment was read in the
// order in which it happened: with one thread events come one after the other, and
// the next one can be under way whenever the last was read.
func (e *Engine) inOrder(p *process) bool {
	if len(p.batch) < restless {
		return false
	}
	if p.task < 0 {
		return !p.has(state.FlagIdentified) // a child begins with one thread
	}
	var tids [3]int32
	n, more, err := target.Tasks(p.task, tids[:])
	return err == nil && !more && n <= 2 // the program's and the helper
}

// ownUnmap says whether an UNMAP that was just read is the one of the old range that a
// moving mremap sends after its REMAP. It is left out then: applying the REMAP clears
// the old range anyway, and another mapping may have been moved there since. The REMAP
// says that it has had its own, so that another agent does not take a second one for it.
func (e *Engine) ownUnmap(p *process, u *state.Event) bool {
	if u.Msg.Event != uffd.EventUnmap {
		return false
	}
	start, end := u.Msg.Range()
	for _, i := range p.batch {
		r := &e.mem.Ring[i]
		if r.Msg.Event != uffd.EventRemap || r.Child != 0 && r.Child != ownMark(u) {
			continue
		}
		if from, _, length := r.Msg.Remap(); start == from && end == from+length {
			r.Child = ownMark(u)
			u.Source = 0
			return true
		}
	}
	return false
}

// ownMark names an UNMAP in its REMAP.
func ownMark(u *state.Event) uint32 { return uint32(u.Sequence) | 1<<31 }

// leaves returns the range whose old content an event takes away.
func leaves(m *uffd.Msg) (start, end uint64) {
	switch m.Event {
	case uffd.EventUnmap:
		return m.Range()
	case uffd.EventRemap:
		from, _, length := m.Remap()
		return from, from + length
	}
	return 0, 0
}

// arrives returns the range that an event brings content to.
func arrives(m *uffd.Msg) (start, end uint64) {
	if m.Event != uffd.EventRemap {
		return 0, 0
	}
	_, to, length := m.Remap()
	return to, to + length
}

// arrangeMax bounds the search for an order, in steps.
const arrangeMax = 20000

// arrange puts the batch into the order nearest to that of reading in which it can
// have happened: what leaves was there, and what arrives found nothing there. now
// are the registered mappings at the end of the batch. false: no such order was
// found, and the batch is as it was read.
func (e *Engine) arrange(p *process, now ranges) bool {
	var edges []uint64
	for _, i := range p.batch {
		m := &e.mem.Ring[i].Msg
		a, b := leaves(m)
		c, d := arrives(m)
		if a < b {
			edges = append(edges, a, b)
		}
		if c < d {
			edges = append(edges, c, d)
		}
	}
	slices.Sort(edges)
	edges = slices.Compact(edges)
	index := func(addr uint64) int {
		k, _ := slices.BinarySearch(edges, addr)
		return k
	}
	// What was there when the batch began: what is there now, and what left since,
	// less what came since.
	count := make([]int, len(edges))
	came := make([]bool, len(edges))
	for k := range edges {
		if now.covers(edges[k], edges[k]+1) {
			count[k] = 1
		}
	}
	type moves struct{ out, outEnd, in, inEnd int }
	events := make([]moves, len(p.batch))
	for n, i := range p.batch {
		m := &e.mem.Ring[i].Msg
		v := &events[n]
		if a, b := leaves(m); a < b {
			v.out, v.outEnd = index(a), index(b)
		}
		if a, b := arrives(m); a < b {
			v.in, v.inEnd = index(a), index(b)
		}
		for k := v.out; k < v.outEnd; k++ {
			count[k]++
		}
		for k := v.in; k < v.inEnd; k++ {
			count[k]--
			came[k] = true
		}
	}
	there := make([]bool, len(edges))
	for k := range there {
		there[k] = count[k] >= 1
		came[k] = came[k] || there[k]
	}
	can := func(v moves) bool {
		moving := v.in < v.inEnd
		some, ever := v.out == v.outEnd, false
		for k := v.out; k < v.outEnd; k++ {
			if moving && !there[k] {
				return false
			}
			some, ever = some || there[k], ever || came[k]
		}
		for k := v.in; k < v.inEnd; k++ {
			if there[k] && (k < v.out || k >= v.outEnd) {
				return false
			}
		}
		return some || !ever
	}
	order := make([]int, 0, len(events))
	used := make([]bool, len(events))
	steps := 0
	var try func() bool
	try = func() bool {
		if len(order) == len(events) {
			return true
		}
		for n, v := range events {
			if used[n] || !can(v) {
				continue
			}
			if steps++; steps > arrangeMax {
				return false
			}
			before := slices.Clone(there)
			for k := v.out; k < v.outEnd; k++ {
				there[k] = false
			}
			for k := v.in; k < v.inEnd; k++ {
				there[k] = true
			}
			used[n] = true
			order = append(order, n)
			if try() {
				return true
			}
			order = order[:len(order)-1]
			used[n] = false
			copy(there, before)
		}
		return false
	}
	if !try() {
		return false
	}
	batch := slices.Clone(p.batch)
	for n, k := range order {
		p.batch[n] = batch[k]
	}
	p.unjudge()
	return true
}

// placeForks moves each FORK of the batch to where it happened among the others. now
// are the registered mappings at the end of the batch. false: a child cannot be seen
// yet.
func (e *Engine) placeForks(p *process, now ranges) bool {
	var forks, others []int
	for _, i := range p.batch {
		if e.mem.Ring[i].Msg.Event == uffd.EventFork {
			forks = append(forks, i)
		} else {
			others = append(others, i)
		}
	}
	e.judge(p)
	points := p.points
	at := make([]int, len(forks)) // how many of the others come before each
	for k, i := range forks {
		at[k] = e.readBefore(i, others)
		had, ok := e.childMaps(p, &e.mem.Ring[i], points)
		if !ok {
			if p.lookingSince.IsZero() {
				p.lookingSince = e.now
			}
			if e.now.Sub(p.lookingSince) < findMax {
				return false
			}
			e.warn("place", "pid %d: a forked child cannot be found: it is taken as forked when that was read", p.rec.Pid)
		}
		if had != nil { // it is found, and not gone already
			at[k] = e.position(others, now, had, at[k])
		}
	}
	p.lookingSince = time.Time{}
	var batch []int
	for n := 0; n <= len(others); n++ {
		for k := range forks {
			if at[k] == n {
				batch = append(batch, forks[k])
			}
		}
		if n < len(others) {
			batch = append(batch, others[n])
		}
	}
	p.batch = batch
	p.unjudge()
	return true
}

// readBefore counts the others that were read before ring slot i.
func (e *Engine) readBefore(i int, others []int) int {
	n := 0
	for _, o := range others {
		if e.mem.Ring[o].Sequence < e.mem.Ring[i].Sequence {
			n++
		}
	}
	return n
}

// position finds after how many of the others the child was made: there its
// registered mappings are what the parent's were. Where several places fit (a REMOVE
// changes no mapping), it is the one nearest to that of reading, `read`.
func (e *Engine) position(others []int, now, had ranges, read int) int {
	var points []uint64
	for _, i := range others {
		m := &e.mem.Ring[i].Msg
		if s, t := leaves(m); s < t {
			points = append(points, s)
		}
		if s, t := arrives(m); s < t {
			points = append(points, s)
		}
	}
	state := make([]bool, len(points)) // registered after the first n of the others
	for k, x := range points {
		state[k] = now.covers(x, x+1)
	}
	far := func(n int) int { return max(n-read, read-n) }
	best, least := read, len(points)+1
	for n := len(others); ; n-- {
		wrong := 0
		for k, x := range points {
			if state[k] != had.covers(x, x+1) {
				wrong++
			}
		}
		if wrong < least || wrong == least && far(n) < far(best) {
			best, least = n, wrong
		}
		if n == 0 {
			return best
		}
		m := &e.mem.Ring[others[n-1]].Msg // taken back
		for k, x := range points {
			if s, t := arrives(m); s <= x && x < t {
				state[k] = false
			}
			if s, t := leaves(m); s <= x && x < t {
				state[k] = true
			}
		}
	}
}

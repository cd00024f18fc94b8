package engine

import (
	"slices"
	"sort"
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
	if !p.company || !p.ambiguous && !forksAmong {
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
	var pages []residence
	if p.ambiguous {
		pages = e.residences(p, now)
		if quiet, gone := uffd.Quiet(p.uffd(), probeAddr); !quiet && !gone {
			return false
		}
	}
	if p.ambiguous && !e.arrange(p, now, pages) {
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
	return len(p.batch) >= restless && !p.company
}

// alone says, when an event was just read, that no other will be read that happened before
// it: whoever raised such a one would be a thread of the process, beside its first thread,
// which is listed even when it has ended, and beside the helper.
func (e *Engine) alone(p *process) bool {
	if p.task < 0 {
		return !p.has(state.FlagIdentified) // a child begins with one thread
	}
	most := 1
	if p.has(state.FlagReady) && !p.has(state.FlagHungUp) {
		most = 2 // without a helper the second one is a thread of the program's
	}
	var tids [3]int32
	n, more, err := target.Tasks(p.task, tids[:])
	return err == nil && !more && n <= most
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
	// The last one: those before it may be of MREMAP_DONTUNMAP, which sends none.
	for _, i := range slices.Backward(p.batch) {
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

// arrange puts the batch into the order in which it happened, as far as can be told: what
// leaves was there, what arrives found nothing there, and in the end there is what is there
// now, the registered mappings. Where the order of reading does not fit, an mremap may have
// grown, of which no event tells, or events were read in another order. Then where pages
// are says which it was, and only they let an order be taken that was made up by changes.
// false: nothing fits, and the batch is as it was read.
func (e *Engine) arrange(p *process, now ranges, pages []residence) bool {
	a := newArrangement(e, p, now)
	judge := func(order []int) verdict { return verdict{order, a.fits(order), e.misplaced(p, order, pages)} }
	asRead := make([]int, len(p.batch))
	for n := range asRead {
		asRead[n] = n
	}
	found := a.try()
	if found && slices.Equal(a.order, asRead) {
		return true
	}
	best := judge(asRead)
	start := []verdict{best}
	if found {
		// What the search finds needs no growth: it fits.
		start = append(start, verdict{slices.Clone(a.order), true, e.misplaced(p, a.order, pages)})
	}
	for _, v := range start {
		if v.better(best) {
			best = v
		}
		for moved := true; moved && best.misplaced > 0; {
			moved = false
			a.earlier(v.order, func(order []int) {
				if other := judge(order); other.better(v) {
					v, moved = other, true
				}
			})
			if v.better(best) {
				best = v
			}
		}
	}
	if slices.Equal(best.order, asRead) {
		return best.fits || best.misplaced == 0
	}
	batch := slices.Clone(p.batch)
	for n, k := range best.order {
		p.batch[n] = batch[k]
	}
	p.unjudge()
	return true
}

// verdict is what is thought of an order.
type verdict struct {
	order     []int
	fits      bool
	misplaced int
}

// better prefers what is where the pages are, and then what fits.
func (v verdict) better(other verdict) bool {
	if v.misplaced != other.misplaced {
		return v.misplaced < other.misplaced
	}
	return v.fits && !other.fits
}

// earlierMax bounds the batches for which changes of an order are tried one by one.
const earlierMax = 32

// earlier tries an order with one event before another that was read first, where the two
// have to do with each other: whoever raised it lost the CPU before it was queued.
func (a *arrangement) earlier(order []int, try func(order []int)) {
	if len(order) > earlierMax {
		return
	}
	order = slices.Clone(order)
	for late := range order {
		for early := range late {
			if !a.events[order[early]].meets(a.events[order[late]]) {
				continue
			}
			changed := slices.Delete(slices.Clone(order), late, late+1)
			try(slices.Insert(changed, early, order[late]))
		}
	}
}

// residence says whether a page is in memory.
type residence struct {
	addr    uint64
	present bool
}

// residences looks at pages of the ranges that the batch speaks of, some of each, that are
// registered now. No page of them comes or goes while the batch waits, but by its events.
func (e *Engine) residences(p *process, now ranges) (pages []residence) {
	const perRange, most = 16, 512
	if p.rec.PagemapFD < 0 {
		return nil
	}
	look := func(start, end uint64) {
		step := max((end-start)/perRange&^(space.PageSize-1), space.PageSize)
		for addr := start; addr < end && len(pages) < most; addr += step {
			// now is known at the points only.
			k := sort.Search(len(p.points), func(k int) bool { return p.points[k] > addr }) - 1
			if k < 0 || !now.covers(p.points[k], p.points[k]+1) {
				continue
			}
			if present, err := target.Present(int(p.rec.PagemapFD), addr); err == nil {
				pages = append(pages, residence{addr, present})
			}
		}
	}
	for _, i := range p.batch {
		if s, t := leaves(&e.mem.Ring[i].Msg); s < t {
			look(s, t)
		}
		if s, t := arrives(&e.mem.Ring[i].Msg); s < t {
			look(s, t)
		}
	}
	return pages
}

// misplaced counts the pages that are not where they would be in this order.
func (e *Engine) misplaced(p *process, order []int, pages []residence) (wrong int) {
	for _, page := range pages {
		state := e.traceBack(p, order, page.addr)
		if state == space.InFlight || state == space.Removed {
			continue // it may be there or not
		}
		if (state == space.Touched) != page.present {
			wrong++
		}
	}
	return wrong
}

// traceBack says what the table has of the page that is at addr after all events.
func (e *Engine) traceBack(p *process, order []int, addr uint64) space.State {
	for _, n := range slices.Backward(order) {
		m := &e.mem.Ring[p.batch[n]].Msg
		if s, t := arrives(m); s <= addr && addr < t {
			from, to, _ := m.Remap()
			addr = from + addr - to
			continue
		}
		if s, t := leaves(m); s <= addr && addr < t {
			return space.Untouched
		}
		if m.Event == uffd.EventRemove {
			if s, t := m.Range(); s <= addr && addr < t {
				return space.Removed
			}
		}
	}
	return p.table.Get(addr).State()
}

// arrangement is a search for an order. Addresses are told apart as far as events do: by
// indexes of pieces between neighbouring edges.
type arrangement struct {
	events []effect
	there  []bool // registered, after the events in order
	now    []bool // registered in the end
	came   []bool // ever
	order  []int
	used   []bool
	steps  int
}

// effect is what an event does to the pieces.
type effect struct {
	out, outEnd, in, inEnd int
	stays                  bool // MREMAP_DONTUNMAP: what leaves is still mapped
}

func (v effect) moves() bool { return v.in < v.inEnd }

// meets says whether two events are about the same pieces.
func (v effect) meets(w effect) bool {
	return v.out < w.outEnd && w.out < v.outEnd || v.out < w.inEnd && w.in < v.outEnd ||
		v.in < w.outEnd && w.out < v.inEnd || v.in < w.inEnd && w.in < v.inEnd
}

func newArrangement(e *Engine, p *process, now ranges) *arrangement {
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
	a := &arrangement{
		events: make([]effect, len(p.batch)), used: make([]bool, len(p.batch)),
		there: make([]bool, len(edges)), now: make([]bool, len(edges)), came: make([]bool, len(edges)),
	}
	// What was there when the batch began: what is there now, and what left since,
	// less what came since.
	count := make([]int, len(edges))
	for k := range edges {
		if a.now[k] = now.covers(edges[k], edges[k]+1); a.now[k] {
			count[k] = 1
		}
	}
	for n, i := range p.batch {
		ev := &e.mem.Ring[i]
		v := &a.events[n]
		if s, t := leaves(&ev.Msg); s < t {
			v.out, v.outEnd = index(s), index(t)
		}
		if s, t := arrives(&ev.Msg); s < t {
			v.in, v.inEnd = index(s), index(t)
			v.stays = ev.Child == 0 // each UNMAP of a mremap's own has been read by now
		}
		for k := v.out; k < v.outEnd && !v.stays; k++ {
			count[k]++
		}
		for k := v.in; k < v.inEnd; k++ {
			count[k]--
			a.came[k] = true
		}
	}
	for k := range a.there {
		a.there[k] = count[k] >= 1
		a.came[k] = a.came[k] || a.there[k]
	}
	return a
}

// can says whether an event can have come next.
func (a *arrangement) can(v effect) bool {
	some, ever := v.out == v.outEnd, false
	for k := v.out; k < v.outEnd; k++ {
		if v.moves() && !a.there[k] {
			return false
		}
		some, ever = some || a.there[k], ever || a.came[k]
	}
	for k := v.in; k < v.inEnd; k++ {
		if a.there[k] && (k < v.out || k >= v.outEnd) {
			return false
		}
	}
	return some || !ever
}

// ends says whether what is there after all events is what is there now.
func (a *arrangement) ends() bool {
	return slices.Equal(a.there, a.now)
}

// fits says whether an order can have been where what has arrived may have grown. Nothing is
// known of what was there before.
func (a *arrangement) fits(order []int) bool {
	type known uint8
	const (
		unknown known = iota
		yes
		no
		arrived
	)
	there := make([]known, len(a.there))
	for _, n := range order {
		v := a.events[n]
		if v.moves() && there[v.out] == no {
			return false
		}
		for k := v.in; k < v.inEnd; k++ {
			if (there[k] == yes || there[k] == arrived) && (k < v.out || k >= v.outEnd) {
				return false
			}
		}
		for k := v.out; k < v.outEnd; k++ {
			if there[k] = no; v.stays {
				there[k] = yes
			}
		}
		for k := v.in; k < v.inEnd; k++ {
			there[k] = arrived
		}
	}
	for k := range there {
		if (there[k] == no || there[k] == unknown) && a.now[k] && k > 0 && there[k-1] == arrived {
			there[k] = arrived // it has grown
		}
		if (there[k] == no) == a.now[k] && there[k] != unknown {
			return false
		}
	}
	return true
}

// try finds the rest of the order.
func (a *arrangement) try() bool {
	if len(a.order) == len(a.events) {
		return a.ends()
	}
	for n, v := range a.events {
		if a.used[n] || !a.can(v) {
			continue
		}
		if a.steps++; a.steps > arrangeMax {
			return false
		}
		before := slices.Clone(a.there)
		for k := v.out; k < v.outEnd; k++ {
			a.there[k] = v.stays
		}
		for k := v.in; k < v.inEnd; k++ {
			a.there[k] = true
		}
		a.used[n] = true
		a.order = append(a.order, n)
		if a.try() {
			return true
		}
		a.order = a.order[:len(a.order)-1]
		a.used[n] = false
		copy(a.there, before)
	}
	return false
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

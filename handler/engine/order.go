package engine

import (
	"encoding/binary"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/farpage/farpage/handler/handoff"
	"github.com/farpage/farpage/handler/state"
	"github.com/farpage/farpage/handler/target"
	"github.com/farpage/farpage/handler/uffd"
	"golang.org/x/sys/unix"
)

// The order of events. What is decided here can be decided by looking at what is
// mapped: in the process itself for UNMAP and REMAP, in the child for FORK.

// settle puts a batch into the order in which it happened, at a quiet moment: every
// mremap's own UNMAP has been read then, and nothing else is under way. false: not
// yet.
func (e *Engine) settle(p *process) bool {
	e.dropOwnUnmaps(p)
	ambiguous, forks := e.ambiguous(p), e.forksAmongOthers(p)
	if !ambiguous && !forks {
		return true
	}
	e.mem.Header.Counters.Conflicts++
	now, err := e.registered(p)
	if err != nil {
		e.warn("settle", "pid %d: events met and its mappings cannot be read (%v): taken in the order of reading", p.rec.Pid, err)
		return true
	}
	if quiet, _ := uffd.Quiet(p.uffd(), probeAddr); !quiet {
		return false
	}
	for ambiguous && e.reorder(p, now) {
	}
	return !forks || e.placeForks(p, now)
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

// dropOwnUnmaps takes out the UNMAP of the old range that each moving mremap
// sends after its REMAP: applying the REMAP clears the old range anyway, and
// another mapping may have been moved there since.
func (e *Engine) dropOwnUnmaps(p *process) {
	for i := 0; i < len(p.batch); i++ {
		m := &e.mem.Ring[p.batch[i]].Msg
		if m.Event != uffd.EventRemap {
			continue
		}
		from, _, length := m.Remap()
		for j := i + 1; j < len(p.batch); j++ {
			u := &e.mem.Ring[p.batch[j]]
			if start, end := u.Msg.Range(); u.Msg.Event == uffd.EventUnmap && start == from && end == from+length {
				u.Source = 0
				p.batch = append(p.batch[:j], p.batch[j+1:]...)
				break
			}
		}
	}
}

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

// ambiguous says whether something that leaves was read after something that
// arrived at the same addresses.
func (e *Engine) ambiguous(p *process) bool {
	for i := range p.batch {
		start, end := arrives(&e.mem.Ring[p.batch[i]].Msg)
		for j := i + 1; j < len(p.batch) && start < end; j++ {
			if a, b := leaves(&e.mem.Ring[p.batch[j]].Msg); a < end && b > start {
				return true
			}
		}
	}
	return false
}

// reorder moves one departure before the arrival that it was read after, if it
// happened before: there was a registered mapping when the batch began, and it had
// not left yet. now are the registered mappings at the end of the batch.
func (e *Engine) reorder(p *process, now ranges) bool {
	msg := func(i int) *uffd.Msg { return &e.mem.Ring[p.batch[i]].Msg }
	for i := range p.batch {
		start, end := arrives(msg(i))
		for j := i + 1; j < len(p.batch) && start < end; j++ {
			a, b := leaves(msg(j))
			if a >= end || b <= start {
				continue
			}
			x := max(a, start)
			before := 0
			if now.covers(x, x+1) {
				before = 1
			}
			left := false
			for k := range p.batch {
				if s, t := leaves(msg(k)); s <= x && x < t {
					before++
					left = left || k < i
				}
				if s, t := arrives(msg(k)); s <= x && x < t {
					before--
				}
			}
			if before >= 1 && !left {
				moved := p.batch[j]
				copy(p.batch[i+1:j+1], p.batch[i:j])
				p.batch[i] = moved
				return true
			}
		}
	}
	return false
}

// forksAmongOthers says whether the batch has a FORK beside an UNMAP or a REMAP: the
// child may have been made before or after each of them.
func (e *Engine) forksAmongOthers(p *process) bool {
	forks, others := false, false
	for _, i := range p.batch {
		switch e.mem.Ring[i].Msg.Event {
		case uffd.EventFork:
			forks = true
		case uffd.EventUnmap, uffd.EventRemap:
			others = true
		}
	}
	return forks && others
}

// findMax is how long a child is looked for.
const findMax = time.Second

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
	at := make([]int, len(forks)) // how many of the others come before each
	for k, i := range forks {
		had, ok := e.childMaps(p, &e.mem.Ring[i])
		if !ok {
			if p.lookingSince.IsZero() {
				p.lookingSince = e.now
			}
			if e.now.Sub(p.lookingSince) < findMax {
				return false
			}
			e.warn("place", "pid %d: a forked child cannot be found: it is taken as forked when that was read", p.rec.Pid)
			at[k] = e.readBefore(i, others)
			continue
		}
		if had == nil { // it is gone already: nobody cares
			at[k] = len(others)
			continue
		}
		at[k] = e.position(others, now, had)
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
// registered mappings are what the parent's were.
func (e *Engine) position(others []int, now, had ranges) int {
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
	best, least := len(others), len(points)+1
	for n := len(others); ; n-- {
		wrong := 0
		for k, x := range points {
			if state[k] != had.covers(x, x+1) {
				wrong++
			}
		}
		if wrong < least {
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

// childMaps returns the registered mappings of the child that a FORK brought, as they
// were when it was forked: none of its events is read before. nil: it is gone. ok is
// false when it cannot be found (yet): it shows up in /proc only after its event was
// read.
func (e *Engine) childMaps(p *process, ev *state.Event) (had ranges, ok bool) {
	c, err := e.child(p, ev)
	if err != nil {
		return nil, false
	}
	if _, gone := uffd.Quiet(c.uffd(), probeAddr); gone {
		return nil, true
	}
	_ = e.mark(c) // by its nonce it is found; EEXIST when that was done before
	for _, pid := range e.candidates(p) {
		if !e.hasNonce(pid, c) {
			continue
		}
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps", pid))
		if err != nil {
			return nil, false
		}
		had = ranges{}
		err = target.Smaps(text, func(v target.VMA, f target.Flags) {
			if f.Registered {
				had.add(v.Start, v.End)
			}
		})
		return had, err == nil
	}
	return nil, false
}

// candidates are the processes that could be a new child of p: its children, or,
// where it has none that are new, everybody.
func (e *Engine) candidates(p *process) []int {
	var pids []int
	known := map[int]bool{}
	for _, q := range e.live {
		known[int(q.rec.Pid)] = true
	}
	add := func(text string) {
		for _, w := range strings.Fields(text) {
			if pid, err := strconv.Atoi(w); err == nil && !known[pid] {
				pids = append(pids, pid)
			}
		}
	}
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", p.rec.Pid))
	if err == nil {
		for _, t := range tasks {
			b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/children", p.rec.Pid, t.Name()))
			if err == nil {
				add(string(b))
			}
		}
	}
	if e.now.Sub(p.lookingSince) > findMax/2 && !p.lookingSince.IsZero() {
		if all, err := os.ReadDir("/proc"); err == nil {
			for _, d := range all {
				add(d.Name())
			}
		}
	}
	return pids
}

// hasNonce says whether a process's anchor page has a child's nonce. Reading by
// /proc/PID/mem never waits for a page.
func (e *Engine) hasNonce(pid int, c *process) bool {
	fd, err := unix.Open(fmt.Sprintf("/proc/%d/mem", pid), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer closeQuiet(fd)
	var word [8]byte
	n, err := unix.Pread(fd, word[:], int64(c.rec.Area+handoff.AreaAnchor))
	return err == nil && n == len(word) && binary.LittleEndian.Uint64(word[:]) == c.rec.Nonce
}

package engine

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/farpage/farpage/handler/space"
	"github.com/farpage/farpage/handler/state"
	"github.com/farpage/farpage/handler/uffd"
)

// oneThread is a program with one thread that moves, grows, shrinks and unmaps memory of
// which all is registered, and what the kernel tells of that (mremap(2) and mm/mremap.c:
// what is in the way of a fixed address, the move, its length before it grew, what a
// shrinking one cuts off, and the old range).
type oneThread struct {
	rnd     *rand.Rand
	content map[uint64]int // of pages that are mapped; 0: zeros
	events  []uffd.Msg
	history []string
}

// arena is where its memory is, in pages.
const arena = 24

func (o *oneThread) tell(event uint8, args ...uint64) {
	m := uffd.Msg{Event: event}
	for i, page := range args {
		m.Arg[i] = placeAt + page*space.PageSize
	}
	if event == uffd.EventRemap {
		m.Arg[2] -= placeAt
	}
	o.events = append(o.events, m)
	o.history = append(o.history, fmt.Sprintf("event %#x of pages %d", event, args))
}

// free finds n pages where nothing is mapped.
func (o *oneThread) free(n uint64) (uint64, bool) {
	for range 20 {
		at := o.rnd.Uint64N(arena - n + 1)
		if o.mapped(at, n) == 0 {
			return at, true
		}
	}
	return 0, false
}

func (o *oneThread) mapped(at, n uint64) (count uint64) {
	for page := at; page < at+n; page++ {
		if _, is := o.content[page]; is {
			count++
		}
	}
	return count
}

func (o *oneThread) unmap(at, n uint64) {
	for page := at; page < at+n; page++ {
		delete(o.content, page)
	}
}

// step is one call.
func (o *oneThread) step() {
	at, n := o.rnd.Uint64N(arena), 1+o.rnd.Uint64N(5)
	if at+n > arena || o.mapped(at, n) < n {
		return
	}
	switch o.rnd.IntN(6) {
	case 0: // munmap
		o.history = append(o.history, fmt.Sprintf("munmap %d+%d", at, n))
		o.unmap(at, n)
		o.tell(uffd.EventUnmap, at, at+n)
	case 1: // grow in place
		if k := 1 + o.rnd.Uint64N(3); at+n+k <= arena && o.mapped(at+n, k) == 0 {
			o.history = append(o.history, fmt.Sprintf("mremap %d+%d grows by %d", at, n, k))
			for page := at + n; page < at+n+k; page++ {
				o.content[page] = 0
			}
		}
	case 2: // shrink in place
		if n > 1 {
			k := 1 + o.rnd.Uint64N(n-1)
			o.history = append(o.history, fmt.Sprintf("mremap %d+%d shrinks by %d", at, n, k))
			o.unmap(at+n-k, k)
			o.tell(uffd.EventUnmap, at+n-k, at+n)
		}
	case 3: // MREMAP_DONTUNMAP
		if to, ok := o.free(n); ok {
			o.history = append(o.history, fmt.Sprintf("mremap %d+%d to %d, and stays", at, n, to))
			o.move(at, to, n, n)
			for page := at; page < at+n; page++ {
				o.content[page] = 0
			}
			o.tell(uffd.EventRemap, at, to, n)
		}
	default:
		o.mremap(at, n, o.rnd.IntN(2) == 0)
	}
}

// move moves the content of n pages to a new place of length pages.
func (o *oneThread) move(at, to, n, length uint64) {
	for k := range min(n, length) {
		o.content[to+k] = o.content[at+k]
	}
	for k := n; k < length; k++ {
		o.content[to+k] = 0
	}
	o.unmap(at, n)
}

// mremap moves, with another length or the same.
func (o *oneThread) mremap(at, n uint64, fixed bool) {
	length := max(3, n+o.rnd.Uint64N(5)) - 2
	to, ok := o.free(length)
	if fixed {
		to = o.rnd.Uint64N(arena)
		ok = to+length <= arena && (to+length <= at || to >= at+n)
	}
	if !ok {
		return
	}
	o.history = append(o.history, fmt.Sprintf("mremap %d+%d to %d+%d", at, n, to, length))
	if o.mapped(to, length) > 0 {
		o.unmap(to, length)
		o.tell(uffd.EventUnmap, to, to+length)
	}
	o.move(at, to, n, length)
	o.tell(uffd.EventRemap, at, to, min(n, length))
	if length < n {
		o.tell(uffd.EventUnmap, at+length, at+n)
	}
	o.tell(uffd.EventUnmap, at, at+min(n, length))
}

// residentState is that of a page with a content: three of four are resident.
func residentState(content int) space.State {
	if content%4 == 0 {
		return space.Untouched // or far, for what this is about
	}
	return space.Touched
}

// applied is what memory is by events in the order in which the engine applies them.
func applied(before map[uint64]int, batch []int, e *Engine) map[uint64]int {
	content := maps.Clone(before)
	page := func(addr uint64) uint64 { return (addr - placeAt) / space.PageSize }
	for _, i := range batch {
		m := &e.mem.Ring[i].Msg
		moved := map[uint64]int{}
		if m.Event == uffd.EventRemap {
			from, to, length := m.Remap()
			for k := range length / space.PageSize {
				moved[page(to)+k] = content[page(from)+k]
			}
		}
		start, end := leaves(m)
		for p := page(start); p < page(end); p++ {
			delete(content, p)
		}
		maps.Copy(content, moved)
	}
	return content
}

// What one thread does comes in the order in which it does it. The engine knows that where
// it sees that there is one; beside other threads it must not find a better one, as far as
// anything tells. This program does nothing else, and moves to where it was just before.
func TestEventsOfOneThreadStayInTheirOrder(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	const rounds = 5000
	wrong, told := 0, 0
	for round := range uint64(rounds) {
		e, p, _ := fakeEngineOnce(t)
		o := &oneThread{rnd: rand.New(rand.NewPCG(seed, round)), content: map[uint64]int{}}
		for page := range uint64(arena) {
			if page%6 < 4 {
				o.content[page] = int(page) + 1
			}
		}
		before := maps.Clone(o.content)
		for page, content := range before {
			if err := p.table.Set(placeAt+page*space.PageSize, space.Make(residentState(content), 0)); err != nil {
				t.Fatal(err)
			}
		}
		for range 30 {
			if len(o.events) < 12 {
				o.step()
			}
		}
		var now ranges
		var pages []residence
		for page, content := range o.content {
			addr := placeAt + page*space.PageSize
			pages = append(pages, residence{addr, residentState(content) == space.Touched})
			now.add(placeAt+page*space.PageSize, placeAt+(page+1)*space.PageSize)
		}
		p.batch = nil
		for i, m := range o.events {
			e.mem.Ring[i] = state.Event{Source: uint32(p.index) + 1, Sequence: uint64(i), Msg: m}
			if !e.ownUnmap(p, &e.mem.Ring[i]) {
				p.batch = append(p.batch, i)
			}
		}
		p.unjudge()
		e.judge(p)
		if p.ambiguous {
			told++
			e.arrange(p, now, pages)
		}
		got := applied(before, p.batch, e)
		for page, want := range o.content {
			if got[page] != want {
				wrong++
				if wrong < 3 {
					t.Logf("round %d: page %d holds %d, want %d; applied %v\n%s", round, page, got[page], want, p.batch, strings.Join(o.history, "\n"))
				}
				break
			}
		}
		for i := range o.events {
			e.mem.Ring[i].Source = 0
		}
		p.batch = nil
		p.table.Free(e.slots.drop)
	}
	t.Logf("%d of %d rounds are ambiguous, %d wrong", told, rounds, wrong)
	if wrong > rounds/100 {
		t.Error("that is too often")
	}
}

// A second task is the helper only where there is one.
func TestProcessIsAloneWithItsHelperOnly(t *testing.T) {
	for _, c := range []struct {
		tasks int
		flags uint32
		alone bool
	}{
		{1, 0, true},
		{2, 0, false},
		{1, state.FlagReady, true},
		{2, state.FlagReady, true},
		{3, state.FlagReady, false},
		{2, state.FlagReady | state.FlagHungUp, false},
	} {
		e, p, _ := fakeEngine(t)
		dir := t.TempDir() // as /proc/PID/task
		for tid := range c.tasks {
			if err := os.Mkdir(filepath.Join(dir, fmt.Sprint(100+tid)), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		tasks, err := os.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer tasks.Close()
		was, flags := p.task, p.rec.Flags
		p.task, p.rec.Flags = int(tasks.Fd()), c.flags
		if got := e.alone(p); got != c.alone {
			t.Errorf("%d tasks, flags %#x: alone %v, want %v", c.tasks, c.flags, got, c.alone)
		}
		p.task, p.rec.Flags = was, flags
	}
}

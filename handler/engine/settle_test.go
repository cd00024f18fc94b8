package engine

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/farpage/farpage/handler/space"
	"github.com/farpage/farpage/handler/state"
	"github.com/farpage/farpage/handler/uffd"
)

// Places in these tests are single letters, four pages each.
const (
	placeAt    = uint64(0x500000000000)
	placePages = 4
	placeBytes = placePages * space.PageSize
)

func at(place byte) uint64 { return placeAt + uint64(place-'A')*placeBytes }

// eventOf parses "unmap A", "unmap A+1" (its second page), "remap A>B" and
// "remove A".
func eventOf(t *testing.T, text string) uffd.Msg {
	t.Helper()
	name, what, _ := strings.Cut(text, " ")
	from := at(what[0])
	switch {
	case name == "remap":
		return uffd.Msg{Event: uffd.EventRemap, Arg: [3]uint64{from, at(what[2]), placeBytes}}
	case name == "remove":
		return uffd.Msg{Event: uffd.EventRemove, Arg: [3]uint64{from, from + placeBytes}}
	case name == "unmap" && len(what) == 1:
		return uffd.Msg{Event: uffd.EventUnmap, Arg: [3]uint64{from, from + placeBytes}}
	case name == "unmap":
		from += uint64(what[2]-'0') * space.PageSize
		return uffd.Msg{Event: uffd.EventUnmap, Arg: [3]uint64{from, from + space.PageSize}}
	}
	t.Fatalf("no event: %q", text)
	return uffd.Msg{}
}

// order says in which order settle applies events that were read in this one and happened
// in that one, when those places are registered in the end, and everything was resident.
func order(t *testing.T, e *Engine, p *process, read, happened []string, registered string) []string {
	t.Helper()
	p.batch = nil
	for place := byte('A'); place < 'G'; place++ {
		for i := range uint64(placePages) {
			if err := p.table.Set(at(place)+i*space.PageSize, space.Make(space.Touched, 0)); err != nil {
				t.Fatal(err)
			}
		}
	}
	names := map[int]string{}
	for i, text := range read {
		e.mem.Ring[i] = state.Event{Source: uint32(p.index) + 1, Sequence: uint64(i), Msg: eventOf(t, text)}
		if !e.ownUnmap(p, &e.mem.Ring[i]) {
			p.batch = append(p.batch, i)
		}
		names[i] = text
	}
	var now ranges
	for _, place := range []byte(registered) {
		now.add(at(place), at(place)+placeBytes)
	}
	var pages []residence
	var order []int
	for _, text := range happened {
		order = append(order, slices.IndexFunc(p.batch, func(i int) bool { return names[i] == text }))
	}
	for _, place := range []byte(registered) {
		for i := range uint64(placePages) {
			if happened == nil {
				break // nothing is known of pages
			}
			addr := at(place) + i*space.PageSize
			pages = append(pages, residence{addr, e.traceBack(p, order, addr) == space.Touched})
		}
	}
	if !settleWith(e, p, now, pages) {
		t.Errorf("no order was found; registered is %x", now)
	}
	var out []string
	for _, i := range p.batch {
		out = append(out, names[i])
	}
	for i := range read {
		if held := slices.Contains(p.batch, i); held != (e.mem.Ring[i].Source != 0) {
			t.Errorf("%s: in the batch %v, its ring slot %d", names[i], held, e.mem.Ring[i].Source)
		}
		e.mem.Ring[i].Source = 0
	}
	p.batch = nil
	return out
}

// settleWith is settle, told what is mapped and what is resident. false: no order was found.
func settleWith(e *Engine, p *process, now ranges, pages []residence) bool {
	p.unjudge()
	e.judge(p)
	return !p.ambiguous || e.arrange(p, now, pages)
}

func TestEventsAreAppliedInTheOrderOfTheirEffects(t *testing.T) {
	for _, c := range []struct {
		name       string
		read       []string
		registered string
		want       []string
	}{
		{
			"a moving mremap sends an UNMAP of its own",
			[]string{"remap A>B", "unmap A"},
			"B",
			[]string{"remap A>B"},
		},
		{
			"which says nothing about what came there meanwhile",
			[]string{"remap A>B", "remap C>A", "unmap A", "unmap C"},
			"AB",
			[]string{"remap A>B", "remap C>A"},
		},
		{
			"but one UNMAP only is its own",
			[]string{"remap A>B", "remap C>A", "unmap A", "unmap C", "unmap A"},
			"B",
			[]string{"remap A>B", "remap C>A", "unmap A"},
		},
		{
			"one is its own, also when two moves left the same place",
			[]string{"remap A>B", "unmap A", "remap C>A", "unmap C", "remap A>D", "unmap A", "unmap B"},
			"D",
			[]string{"remap A>B", "remap C>A", "remap A>D", "unmap B"},
		},
		{
			"a part of the old range is not its own",
			[]string{"remap A>B", "unmap A+1"},
			"B",
			[]string{"remap A>B", "unmap A+1"},
		},
		{
			"an UNMAP that was read before the REMAP is not its own",
			[]string{"unmap A", "remap A>B", "unmap A"},
			"B",
			[]string{"unmap A", "remap A>B"},
		},
		{
			"munmap, and something moved there, read the other way round",
			[]string{"remap C>A", "unmap A", "unmap C"},
			"A",
			[]string{"unmap A", "remap C>A"},
		},
		{
			"moved there and then unmapped",
			[]string{"remap C>A", "unmap C", "unmap A"},
			"",
			[]string{"remap C>A", "unmap A"},
		},
		{
			"a part of a place unmapped before something moved there",
			[]string{"remap C>A", "unmap A+1", "unmap C"},
			"A",
			[]string{"unmap A+1", "remap C>A"},
		},
		{
			"moved away and something moved there, read the other way round",
			[]string{"remap C>A", "remap A>B", "unmap A", "unmap C"},
			"AB",
			[]string{"remap A>B", "remap C>A"},
		},
		{
			"moved there and away again",
			[]string{"remap C>A", "remap A>B", "unmap A", "unmap C"},
			"B",
			[]string{"remap C>A", "remap A>B"},
		},
		{
			"two that have nothing to do with each other",
			[]string{"remap A>B", "unmap D", "unmap A"},
			"B",
			[]string{"remap A>B", "unmap D"},
		},
		{
			"a place that nobody moved to",
			[]string{"remap A>B", "unmap A", "unmap C", "remap D>E", "unmap D"},
			"BE",
			[]string{"remap A>B", "unmap C", "remap D>E"},
		},
	} {
		e, p, _ := fakeEngine(t)
		if got := order(t, e, p, c.read, c.want, c.registered); !slices.Equal(got, c.want) {
			t.Errorf("%s: read %q, applied %q, want %q", c.name, c.read, got, c.want)
		}
	}
}

// MREMAP_DONTUNMAP leaves the old mapping, and sends no UNMAP. To know that, pages are not needed.
func TestWhatStaysMappedIsStillThere(t *testing.T) {
	for _, c := range []struct {
		name       string
		read       []string
		registered string
		want       []string
	}{
		{
			"moved there, and on, and that stays",
			[]string{"remap C>A", "unmap C", "remap A>B"},
			"AB",
			[]string{"remap C>A", "remap A>B"},
		},
		{
			"moved on twice from there, and the second time it went",
			[]string{"remap D>A", "unmap D", "remap A>B", "remap A>C", "unmap A"},
			"BC",
			[]string{"remap D>A", "remap A>B", "remap A>C"},
		},
	} {
		e, p, _ := fakeEngine(t)
		if got := order(t, e, p, c.read, nil, c.registered); !slices.Equal(got, c.want) {
			t.Errorf("%s: read %q, applied %q, want %q", c.name, c.read, got, c.want)
		}
	}
}

// thread is a thread of a made-up program: a call takes effect at once, then its
// events are queued one after the other, each when the one before was read, and
// the call returns.
type thread struct {
	places []byte // mapped, and this thread's alone
	events []string
	queued bool // the first of events
	moving bool // the last of events is a REMAP's own UNMAP
}

// program is memory, threads and what of it the engine has been told.
type program struct {
	table   map[byte]uint32 // at the last quiet moment
	window  []string        // events since then, without the mremaps' own UNMAPs
	rnd     *rand.Rand
	content map[byte]uint32 // slot of what is at a place, 0: nothing was written; absent: not mapped
	unseen  map[byte]bool   // mapped and not registered
	threads []thread
	queue   []int // threads whose first event is queued
	history []string
	open    bool // a window was taken for another one that looks the same
}

func (m *program) free() []byte {
	var out []byte
	for place := byte('A'); place < 'G'; place++ {
		if _, used := m.content[place]; !used {
			out = append(out, place)
		}
	}
	return out
}

// call makes an idle thread do something to memory that is its own.
func (m *program) call(k int) {
	th := &m.threads[k]
	free := m.free()
	if m.rnd.IntN(4) == 0 && len(free) > 0 {
		place := free[m.rnd.IntN(len(free))]
		m.content[place], m.unseen[place] = 0, true
		th.places = append(th.places, place)
		m.history = append(m.history, fmt.Sprintf("%d: mmap %c", k, place))
		return
	}
	th.places = slices.DeleteFunc(th.places, func(place byte) bool {
		gone := m.unseen[place] && m.rnd.IntN(3) == 0
		if gone { // nobody is told
			delete(m.content, place)
			delete(m.unseen, place)
			m.history = append(m.history, fmt.Sprintf("%d: munmap %c, which was not registered", k, place))
		}
		return gone
	})
	if len(th.places) == 0 {
		return
	}
	i := m.rnd.IntN(len(th.places))
	from := th.places[i]
	if m.unseen[from] {
		return
	}
	free = m.free()
	th.moving = true
	switch {
	case m.rnd.IntN(3) == 0:
		delete(m.content, from)
		th.places = slices.Delete(th.places, i, i+1)
		th.events, th.moving = []string{fmt.Sprintf("unmap %c", from)}, false
		m.history = append(m.history, fmt.Sprintf("%d: munmap %c", k, from))
	case m.rnd.IntN(4) == 0 && len(th.places) > 1:
		// MREMAP_FIXED over memory of its own: that is unmapped first.
		j := (i + 1) % len(th.places)
		to := th.places[j]
		if m.unseen[to] {
			return
		}
		m.content[to] = m.content[from]
		delete(m.content, from)
		th.places = slices.Delete(th.places, i, i+1)
		th.events = []string{fmt.Sprintf("unmap %c", to), fmt.Sprintf("remap %c>%c", from, to), fmt.Sprintf("unmap %c", from)}
		m.history = append(m.history, fmt.Sprintf("%d: mremap %c over %c", k, from, to))
	case len(free) > 0:
		to := free[m.rnd.IntN(len(free))]
		m.content[to] = m.content[from]
		delete(m.content, from)
		th.places[i] = to
		th.events = []string{fmt.Sprintf("remap %c>%c", from, to), fmt.Sprintf("unmap %c", from)}
		m.history = append(m.history, fmt.Sprintf("%d: mremap %c to %c", k, from, to))
	}
}

func (m *program) quiet() bool {
	for _, th := range m.threads {
		if len(th.events) > 0 {
			return false
		}
	}
	return true
}

// outcomes finds all that memory can be after the events of this window, in
// whatever order they took effect: what leaves was there, and what arrives finds
// nothing. It stops at two: then the events alone do not tell which it was.
func (m *program) outcomes() map[string]bool {
	found, seen := map[string]bool{}, map[string]bool{}
	done := make([]bool, len(m.window))
	var try func(left int, memory map[byte]uint32)
	try = func(left int, memory map[byte]uint32) {
		state := fmt.Sprint(done, memory)
		if seen[state] || len(found) > 1 {
			return
		}
		seen[state] = true
		if left == 0 {
			found[fmt.Sprint(memory)] = true
			return
		}
		for i, text := range m.window {
			if done[i] {
				continue
			}
			_, what, _ := strings.Cut(text, " ")
			slot, there := memory[what[0]]
			if !there {
				continue
			}
			next := maps.Clone(memory)
			delete(next, what[0])
			if len(what) > 1 {
				if _, taken := next[what[2]]; taken {
					continue
				}
				next[what[2]] = slot
			}
			done[i] = true
			try(left-1, next)
			done[i] = false
		}
	}
	try(len(m.window), m.table)
	return found
}

func (m *program) registered() ranges {
	var r ranges
	for place := range m.content {
		if !m.unseen[place] {
			r.add(at(place), at(place)+placeBytes)
		}
	}
	return r
}

// resident says which of a place's pages are: another pattern for each content.
func resident(slot uint32, page uint64) bool { return slot>>page&1 == 1 }

// residences are those of all pages that are registered.
func (m *program) residences() (pages []residence) {
	for place, slot := range m.content {
		for i := range uint64(placePages) {
			if !m.unseen[place] {
				pages = append(pages, residence{at(place) + i*space.PageSize, resident(slot, i)})
			}
		}
	}
	return pages
}

// register is what the engine and the helper do with a new mapping when all that
// happened before is applied.
func (m *program) register(p *process) {
	if !m.quiet() || len(p.batch) > 0 {
		return
	}
	for place := range m.unseen {
		p.ranges.add(at(place), at(place)+placeBytes)
		m.table[place] = 0
		m.history = append(m.history, fmt.Sprintf("registered %c", place))
	}
	clear(m.unseen)
}

// written counts the places that something was written to.
func (m *program) written() (n int) {
	for _, slot := range m.content {
		if slot != 0 {
			n++
		}
	}
	return n
}

// Whatever the threads of a program without races do, and in whatever order their
// events come, each page has its own content at the next quiet moment.
func TestPagesGoWhereAProgramMovesThemInWhateverOrderThatIsTold(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	open := 0
	const rounds = 3000
	var m *program
	defer func() {
		if t.Failed() {
			t.Logf("the program:\n%s", strings.Join(m.history, "\n"))
		}
	}()
	for round := range uint64(rounds) {
		e, p, f := fakeEngineOnce(t)
		m = &program{rnd: rand.New(rand.NewPCG(seed, round)), content: map[byte]uint32{}, unseen: map[byte]bool{}, threads: make([]thread, 3)}
		for place := byte('A'); place < 'E'; place++ {
			slot := mustPut(t, e.slots, pageOf(int(place)))
			m.content[place] = slot
			k := m.rnd.IntN(len(m.threads))
			m.threads[k].places = append(m.threads[k].places, place)
			for i := range uint64(placePages) {
				entry := space.Make(space.Touched, 0)
				if !resident(slot, i) {
					entry = space.Make(space.Slot, slot)
					e.slots.ref(slot)
				}
				if err := p.table.Set(at(place)+i*space.PageSize, entry); err != nil {
					t.Fatal(err)
				}
			}
			e.slots.drop(slot)
			p.ranges.add(at(place), at(place)+placeBytes)
		}
		m.table = maps.Clone(m.content)
		m.history = append(m.history, fmt.Sprintf("round %d: A-D hold %v", round, m.content))
		steps := 4 + m.rnd.IntN(40)
		for step := 0; !m.open && (step < steps || !m.quiet()); step++ {
			k := m.rnd.IntN(len(m.threads))
			switch th := &m.threads[k]; {
			case m.rnd.IntN(3) == 0 && len(m.queue) > 0:
				m.read(t, e, p)
			case len(m.unseen) > 0 && m.rnd.IntN(2) == 0:
				m.register(p)
			case len(th.events) == 0 && step < steps:
				m.call(k)
			case len(th.events) > 0 && !th.queued:
				th.queued = true
				m.queue = append(m.queue, k)
			}
		}
		if m.open {
			open++
		}
		p.table.Free(e.slots.drop)
		for len(f.puts) > 0 {
			f.store(nil)
		}
		e.slots.collect()
		p.ranges = p.ranges[:0]
		for _, i := range p.batch {
			e.mem.Ring[i].Source = 0
		}
		p.batch = nil
	}
	t.Logf("%d of %d rounds came to a window that can be explained in two ways, wrongly", open, rounds)
	if open > rounds/50 {
		t.Error("that is too often")
	}
}

var shared struct {
	e *Engine
	p *process
	f *fakeSpace
}

// fakeEngineOnce gives the same engine with a new table.
func fakeEngineOnce(t *testing.T) (*Engine, *process, *fakeSpace) {
	t.Helper()
	if shared.e == nil {
		shared.e, shared.p, shared.f = fakeEngine(t)
		t.Cleanup(func() { shared.e = nil })
		return shared.e, shared.p, shared.f
	}
	table, err := space.NewTable(shared.e.nodes)
	if err != nil {
		t.Fatal(err)
	}
	shared.p.table = table
	return shared.e, shared.p, shared.f
}

// read reads one event into the ring and applies what drain and flush would.
func (m *program) read(t *testing.T, e *Engine, p *process) {
	t.Helper()
	th := &m.threads[m.queue[0]]
	m.queue = m.queue[1:]
	text, own := th.events[0], len(th.events) == 1 && th.moving
	th.events, th.queued = th.events[1:], false
	m.history = append(m.history, "read "+text)
	if !own {
		m.window = append(m.window, text)
	}
	i := e.freeEvent()
	e.mem.Header.Sequence++
	e.mem.Ring[i] = state.Event{Source: uint32(p.index) + 1, Sequence: e.mem.Header.Sequence, Msg: eventOf(t, text)}
	if !e.ownUnmap(p, &e.mem.Ring[i]) {
		p.batch = append(p.batch, i)
	}
	for len(p.batch) > 0 {
		if e.mem.Ring[p.batch[0]].Msg.Event != uffd.EventRemove {
			if !m.quiet() {
				return
			}
			if !settleWith(e, p, m.registered(), m.residences()) {
				m.open = true
				return
			}
			for len(p.batch) > 0 {
				if !e.applyFirst(p) {
					t.Fatal("an event cannot be applied")
				}
			}
			break
		}
		if !e.applyFirst(p) {
			t.Fatal("an event cannot be applied")
		}
	}
	if m.quiet() {
		m.check(t, e, p)
		m.table, m.window = maps.Clone(m.content), nil
		maps.DeleteFunc(m.table, func(place byte, _ uint32) bool { return m.unseen[place] })
	}
}

// check holds the table against memory. A window that can be explained in more than
// one way is left out from then on: nobody can tell which it was.
func (m *program) check(t *testing.T, e *Engine, p *process) {
	t.Helper()
	wrong := ""
	for place := byte('A'); place < 'G'; place++ {
		slot, mapped := m.content[place]
		far := 0
		for i := range uint64(placePages) {
			entry := p.table.Get(at(place) + i*space.PageSize)
			switch {
			case slot == 0 && entry.State() == space.Untouched, resident(slot, i) && entry.State() == space.Touched:
				continue
			case slot != 0 && !resident(slot, i):
				far++
			}
			if slot == 0 || entry.State() != space.Slot || entry.Slot() != slot {
				wrong = fmt.Sprintf("page %d of %c is %v %d, want %d (mapped %v)", i, place, entry.State(), entry.Slot(), slot, mapped)
			}
		}
		if slot != 0 && int(e.slots.refs[slot]) != far && wrong == "" {
			wrong = fmt.Sprintf("%c has %d references", place, e.slots.refs[slot])
		}
	}
	if wrong == "" && int(e.slots.live) != m.written() {
		wrong = fmt.Sprintf("%d slots for %d places", e.slots.live, m.written())
	}
	if wrong == "" && !slices.Equal(p.ranges, m.registered()) {
		m.open = true // of zeros nobody can tell which they are, and the next look at the mappings finds them
		return
	}
	if wrong == "" {
		return
	}
	if n := len(m.outcomes()); n > 1 {
		m.open = true
		return
	}
	t.Fatal(wrong)
}

// A crash may come between the two phases of a REMAP, or after it was applied and
// before its ring slot is cleared.
func TestEventThatIsAppliedTwiceIsAppliedOnce(t *testing.T) {
	for _, text := range []string{"remap A>B", "unmap A", "unmap A+2", "remove A"} {
		for phases := range 3 {
			e, p, _ := fakeEngine(t)
			slots := map[byte]uint32{}
			for _, place := range []byte("AB") {
				slots[place] = mustPut(t, e.slots, pageOf(int(place)))
				for i := range uint64(placePages) {
					if i > 0 {
						e.slots.ref(slots[place])
					}
					if err := p.table.Set(at(place)+i*space.PageSize, space.Make(space.Slot, slots[place])); err != nil {
						t.Fatal(err)
					}
				}
			}
			again := func() {
				n, _ := fakeSlots(t, e.mem)
				n.recover(func(seen func(uint32)) {
					for place := byte('A'); place < 'G'; place++ {
						for i := range uint64(placePages) {
							if entry := p.table.Get(at(place) + i*space.PageSize); entry.State() == space.Slot {
								seen(entry.Slot())
							}
						}
					}
				})
				e.slots = n
			}
			ev := &state.Event{Msg: eventOf(t, text)}
			if phases == 1 && ev.Msg.Event == uffd.EventRemap {
				// Only the copy was made.
				from, to, length := ev.Msg.Remap()
				if err := p.table.Copy(from, to, length, e.slots.drop); err != nil {
					t.Fatal(err)
				}
				mendRemap(p.table, ev)
				again()
			}
			if phases == 2 {
				if !e.apply(p, ev) {
					t.Fatal("not applied")
				}
				again()
			}
			if !e.apply(p, ev) {
				t.Fatal("not applied")
			}
			left := map[byte][]space.State{}
			for _, place := range []byte("AB") {
				for i := range uint64(placePages) {
					left[place] = append(left[place], p.table.Get(at(place)+i*space.PageSize).State())
				}
			}
			s, u, r := space.Slot, space.Untouched, space.Removed
			want := map[string]map[byte][]space.State{
				"remap A>B": {'A': {u, u, u, u}, 'B': {s, s, s, s}},
				"unmap A":   {'A': {u, u, u, u}, 'B': {s, s, s, s}},
				"unmap A+2": {'A': {s, s, u, s}, 'B': {s, s, s, s}},
				"remove A":  {'A': {r, r, r, r}, 'B': {s, s, s, s}},
			}[text]
			for place, states := range want {
				if !slices.Equal(left[place], states) {
					t.Errorf("%s, %d phases before the crash: %c is %v, want %v", text, phases, place, left[place], states)
				}
			}
			moved := text == "remap A>B"
			refs := map[byte]uint32{'A': 0, 'B': placePages}
			if moved {
				refs = map[byte]uint32{'A': placePages, 'B': 0}
			}
			if text == "unmap A+2" {
				refs['A'] = placePages - 1
			}
			for place, want := range refs {
				slot := slots[place]
				if int(slot) >= len(e.slots.refs) {
					e.slots.grow(slot)
				}
				if e.slots.refs[slot] != want {
					t.Errorf("%s, %d phases before the crash: what was at %c has %d references, want %d", text, phases, place, e.slots.refs[slot], want)
				}
			}
		}
	}
}

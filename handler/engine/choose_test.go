package engine

import (
	"os"
	"regexp"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/farpage/farpage/handler/handoff"
	"github.com/farpage/farpage/handler/space"
	"github.com/farpage/farpage/handler/state"
)

// touched makes pages of a process touched, with an age each.
func touched(t *testing.T, p *process, ages map[uint64]int) {
	t.Helper()
	for addr, age := range ages {
		if err := p.table.Set(addr, space.Make(space.Touched, 0).WithAge(age)); err != nil {
			t.Fatal(err)
		}
	}
}

// chosen lists the pages of a process's command, and holds it against the rules.
func chosen(t *testing.T, p *process) map[uint64]bool {
	t.Helper()
	pages := map[uint64]bool{}
	first := uint32(0)
	for i, r := range p.runs[:p.rec.RunCount] {
		if r.Pages == 0 || r.Pages > handoff.StagingPages {
			t.Errorf("run %d has %d pages", i, r.Pages)
		}
		if r.First != first {
			t.Errorf("run %d begins at data page %d, want %d", i, r.First, first)
		}
		first += r.Pages
		for k := range r.Pages {
			addr := r.Addr + uint64(k)*space.PageSize
			if pages[addr] {
				t.Errorf("page %#x is in the command twice", addr)
			}
			pages[addr] = true
			if s := p.table.Get(addr).State(); s != space.InFlight {
				t.Errorf("page %#x is chosen and %v", addr, s)
			}
		}
	}
	if first > handoff.BatchPages || p.rec.RunCount > handoff.RunsMax {
		t.Errorf("%d runs with %d pages", p.rec.RunCount, first)
	}
	return pages
}

// withPipe gives a process a channel, which goes with the test.
func withPipe(t *testing.T, p *process) {
	t.Helper()
	fd, err := handoff.NewChannel()
	if err != nil {
		t.Fatal(err)
	}
	pipe, err := handoff.OpenPipe(fd)
	_ = syscall.Close(fd)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pipe.Close)
	p.pipe = pipe
}

func TestPageIsChosenOnceHoweverOftenTheClockComesRound(t *testing.T) {
	const base = uint64(0x7f0000000000)
	far := base + 1<<38 // in another leaf
	for _, c := range []struct {
		name   string
		ages   map[uint64]int
		cursor uint64
		want   int
	}{
		{"one cold page", map[uint64]int{base: 0}, 0, 1},
		{"behind the clock's hand", map[uint64]int{base: 0, base + 0x1000: 0}, base + 0x1000, 2},
		{"beyond the end", map[uint64]int{base: 0}, space.Limit - space.PageSize, 1},
		{"young ones need more rounds", map[uint64]int{base: 0, base + 0x1000: 1, base + 0x2000: 2, base + 0x3000: 3}, 0, 4},
		{"in two leaves", map[uint64]int{base: 1, base + 0x1ff000: 0, base + 0x200000: 0, far: 2}, base + 0x200000, 4},
	} {
		e, p, _ := fakeEngine(t)
		touched(t, p, c.ages)
		p.cursor = c.cursor
		all := map[uint64]bool{}
		for round := 1; round <= space.MaxAge+1; round++ {
			n := e.choose(p, handoff.BatchPages)
			pages := chosen(t, p)
			if n != len(pages) {
				t.Errorf("%s: %d pages, %d of them different", c.name, n, len(pages))
			}
			for addr := range pages {
				if all[addr] {
					t.Errorf("%s: page %#x is in two commands", c.name, addr)
				}
				all[addr] = true
			}
			if n := p.rec.Command; n != uint32(round) {
				t.Errorf("%s: command %d in round %d", c.name, n, round)
			}
		}
		if len(all) != c.want {
			t.Errorf("%s: %d pages after all rounds, want %d", c.name, len(all), c.want)
		}
	}
}

func TestChoiceKeepsToWhatACommandHolds(t *testing.T) {
	const base = uint64(0x7f0000000000)
	dense, sparse := map[uint64]int{}, map[uint64]int{}
	for i := range uint64(1000) {
		dense[base+i*space.PageSize] = 0
		sparse[base+i*2*space.PageSize] = 0
	}
	for _, c := range []struct {
		name string
		ages map[uint64]int
		ask  int
		want int
	}{
		{"neighbours", dense, handoff.BatchPages, handoff.BatchPages},
		{"fewer than there are", dense, 7, 7},
		{"more runs than a command has", sparse, handoff.BatchPages, handoff.RunsMax},
		{"nothing", nil, handoff.BatchPages, 0},
	} {
		e, p, _ := fakeEngine(t)
		touched(t, p, c.ages)
		p.cursor = base + 37*space.PageSize
		all := map[uint64]bool{}
		for round := range 3 {
			n := e.choose(p, c.ask)
			pages := chosen(t, p)
			if n != c.want || len(pages) != c.want {
				t.Errorf("%s: %d pages in round %d, want %d", c.name, n, round, c.want)
			}
			for addr := range pages {
				if all[addr] {
					t.Errorf("%s: page %#x is in two commands", c.name, addr)
				}
				all[addr] = true
			}
		}
	}
}

func TestOnlyTouchedPagesAreChosen(t *testing.T) {
	const base = uint64(0x7f0000000000)
	e, p, _ := fakeEngine(t)
	states := []space.Entry{
		space.Make(space.Untouched, 0), space.Make(space.Slot, 5), space.Make(space.InFlight, 0),
		space.Make(space.Removed, 0), space.Make(space.Poisoned, 0),
		space.Make(space.Touched, 0).WithRefused(true), // passed by once
		space.Make(space.Touched, 0), space.Make(space.Touched, 0),
	}
	for i, entry := range states {
		if err := p.table.Set(base+uint64(i)*space.PageSize, entry); err != nil {
			t.Fatal(err)
		}
	}
	n := e.choose(p, 1) // until the first one
	if pages := chosen(t, p); n != 1 || !pages[base+6*space.PageSize] {
		t.Errorf("%d pages: %v", n, pages)
	}
	for i, entry := range states[:5] {
		if got := p.table.Get(base + uint64(i)*space.PageSize); got != entry {
			t.Errorf("%v became %v", entry.State(), got.State())
		}
	}
}

func TestRunThatTheKernelRefusesIsTouchedAgain(t *testing.T) {
	const base = uint64(0x7f0000000000)
	for _, c := range []struct {
		name    string
		pages   uint32
		moved   uint32
		errno   syscall.Errno
		refused uint32 // pages from the one that the move stopped at on
	}{
		{"nothing moved, try again", 8, 0, syscall.EAGAIN, 0},
		{"half of it moved", 8, 4, syscall.EAGAIN, 0},
		{"pinned", 8, 2, syscall.EBUSY, 1},
		{"a guard marker", 8, 2, syscall.EFAULT, 1},
		{"locked or not writable: all of the mapping", 8, 2, syscall.EINVAL, 6},
		{"one page that cannot be moved", 8, 7, syscall.EINVAL, 1},
		{"all moved", 8, 8, 0, 0},
	} {
		e, p, f := fakeEngine(t)
		withPipe(t, p)
		for k := range c.pages {
			if err := p.table.Set(base+uint64(k)*space.PageSize, space.Make(space.InFlight, 0)); err != nil {
				t.Fatal(err)
			}
			copy(p.pipe.Page(3+k), pageOf(int(k)+1))
		}
		run := &state.Run{Addr: base, Pages: c.pages, First: 3}
		e.take(p, run, c.moved, c.errno)
		if run.Pages != 0 || uint32(len(f.puts)) != c.moved {
			t.Errorf("%s: %d pages are left of the run, %d went to the store", c.name, run.Pages, len(f.puts))
		}
		for k := range c.pages {
			entry := p.table.Get(base + uint64(k)*space.PageSize)
			want := space.Touched
			if k < c.moved {
				want = space.Slot
			}
			if entry.State() != want || entry.Refused() != (k >= c.moved && k < c.moved+c.refused) {
				t.Errorf("%s: page %d is %v, refused %v", c.name, k, entry.State(), entry.Refused())
			}
		}
		if c.moved == c.pages && e.mem.Header.Counters.Evicted != uint64(c.pages) {
			t.Errorf("%s: %d pages are counted", c.name, e.mem.Header.Counters.Evicted)
		}
	}
}

// A page that an event has changed while it was moved: its bytes are nobody's.
func TestBytesOfAPageThatWasGivenUpMeanwhileAreDropped(t *testing.T) {
	const base = uint64(0x7f0000000000)
	e, p, f := fakeEngine(t)
	withPipe(t, p)
	states := []space.State{space.InFlight, space.Removed, space.Untouched, space.Touched, space.InFlight}
	for i, s := range states {
		if err := p.table.Set(base+uint64(i)*space.PageSize, space.Make(s, 0)); err != nil {
			t.Fatal(err)
		}
		copy(p.pipe.Page(uint32(i)), pageOf(i+1))
	}
	e.take(p, &state.Run{Addr: base, Pages: uint32(len(states))}, uint32(len(states)), 0)
	for i, s := range states {
		want := s
		if s == space.InFlight {
			want = space.Slot
		}
		if got := p.table.Get(base + uint64(i)*space.PageSize).State(); got != want {
			t.Errorf("page %d was %v and is %v, want %v", i, s, got, want)
		}
	}
	if len(f.puts) != 2 {
		t.Errorf("%d pages went to the store, want 2", len(f.puts))
	}
}

// All runs of a command may be taken back while its helper is on its way through it:
// another command's runs in their place would be done twice.
func TestProcessGetsNoCommandBeforeItsHelperIsDoneWithTheLastOne(t *testing.T) {
	const base = uint64(0x7f0000000000)
	e, p, _ := fakeEngine(t)
	withPipe(t, p)
	p.set(state.FlagReady)
	e.now = time.Now()
	touched(t, p, map[uint64]int{base: 0})
	if !e.evictable(p) || e.choose(p, 1) != 1 {
		t.Fatal("a process with a cold page is not evictable")
	}
	e.issue(p)
	e.takeBack(p, base, base+space.PageSize)
	if p.running() || e.evictable(p) {
		t.Errorf("running %v, evictable %v: want neither", p.running(), e.evictable(p))
	}
	helperDone(p.pipe, p.rec.Command)
	if !e.evictable(p) {
		t.Error("its helper is done, and it is not evictable")
	}
}

func TestShimNeverRegistersThePageThatTheAgentProbes(t *testing.T) {
	b, err := os.ReadFile("../../shim/protocol.h")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`#define FP_PROBE (0x[0-9a-f]+)UL`).FindSubmatch(b)
	if m == nil {
		t.Fatal("no FP_PROBE in shim/protocol.h")
	}
	if n, err := strconv.ParseUint(string(m[1]), 0, 64); err != nil || n != probeAddr {
		t.Errorf("FP_PROBE is %s, probeAddr %#x", m[1], uint64(probeAddr))
	}
}

package engine

import (
	"bytes"
	"errors"
	"slices"
	"testing"

	"github.com/farpage/farpage/handler/state"
	"github.com/farpage/farpage/store"
)

func mustPut(t *testing.T, s *slots, page []byte) uint32 {
	t.Helper()
	slot, zero := s.put(page)
	if zero || slot == 0 {
		t.Fatalf("put: slot %d, zero %v", slot, zero)
	}
	return slot
}

func TestPageIsReadBackFromWhereverItIs(t *testing.T) {
	s, f := fakeSlots(t, newState(t))
	buf := make([]byte, store.PageSize)
	same := func(where string, slot uint32, n int) {
		t.Helper()
		clear(buf)
		if err := s.read(slot, buf); err != nil || !bytes.Equal(buf, pageOf(n)) {
			t.Errorf("%s: %v, right %v", where, err, bytes.Equal(buf, pageOf(n)))
		}
	}
	a := mustPut(t, s, pageOf(1))
	b := mustPut(t, s, pageOf(2))
	same("on its way into the store", a, 1)
	f.store(nil)
	same("in the store, not collected", a, 1)
	room := s.room()
	if !s.collect() || s.collect() {
		t.Error("collect says that there is nothing, or something again")
	}
	if s.room() != room+1 {
		t.Errorf("room %d after a page was stored, %d before", s.room(), room)
	}
	same("in the store", a, 1)
	same("on its way", b, 2)
	f.tries = false
	for range 3 {
		if err := s.read(a, buf); !errors.Is(err, errNotYet) {
			t.Errorf("a store that has no answer: %v", err)
		}
	}
	if len(f.gets) != 1 {
		t.Errorf("it was asked for %d times", len(f.gets))
	}
	f.fetch(nil)
	s.collect()
	same("fetched", a, 1)
	if err := s.read(a, buf); !errors.Is(err, errNotYet) {
		t.Errorf("a second reader: %v", err)
	}
	lost := errors.New("lost")
	f.fetch(lost)
	s.collect()
	if err := s.read(a, buf); !errors.Is(err, lost) {
		t.Errorf("a store that has lost the page: %v", err)
	}
}

func TestPageThatIsNotWhatWasPutAwayIsNotHandedOver(t *testing.T) {
	mem := newState(t)
	s, f := fakeSlots(t, mem)
	buf := make([]byte, store.PageSize)
	a, b := mustPut(t, s, pageOf(1)), mustPut(t, s, pageOf(1)) // equal bytes
	f.store(nil)
	f.store(nil)
	s.collect()
	ha, hb := store.Handle(mem.Slots[a].Handle), store.Handle(mem.Slots[b].Handle)
	f.pages[ha][4095] ^= 1
	if err := s.read(a, buf); !errors.Is(err, errChecksum) {
		t.Errorf("a flipped bit: %v", err)
	}
	f.pages[ha][4095] ^= 1
	// Bytes and sum of another slot: the number is in the sum.
	mem.Slots[a].Sum, mem.Slots[b].Sum = mem.Slots[b].Sum, mem.Slots[a].Sum
	if err := s.read(a, buf); !errors.Is(err, errChecksum) {
		t.Errorf("another slot's sum: %v", err)
	}
	mem.Slots[a].Sum, mem.Slots[b].Sum = mem.Slots[b].Sum, mem.Slots[a].Sum
	mem.Slots[a].Generation++
	if err := s.read(a, buf); !errors.Is(err, errChecksum) {
		t.Errorf("another generation: %v", err)
	}
	mem.Slots[a].Generation--
	mem.Header.ID++
	if err := s.read(a, buf); !errors.Is(err, errChecksum) {
		t.Errorf("another container: %v", err)
	}
	mem.Header.ID--
	if err := s.read(a, buf); err != nil || ha == hb {
		t.Errorf("as it was: %v", err)
	}
	// Damage in the agent's own buffer is found out too.
	c := mustPut(t, s, pageOf(3))
	mem.RawPage(mem.Slots[c].Raw - 1)[0] ^= 1
	if err := s.read(c, buf); !errors.Is(err, errChecksum) {
		t.Errorf("a flipped bit in a raw buffer: %v", err)
	}
}

func TestZerosNeedNoSlot(t *testing.T) {
	s, f := fakeSlots(t, newState(t))
	room := s.room()
	if slot, zero := s.put(make([]byte, store.PageSize)); !zero || slot != 0 {
		t.Errorf("slot %d, zero %v", slot, zero)
	}
	if s.room() != room || s.live != 0 || len(f.puts) != 0 {
		t.Errorf("room %d of %d, %d live, %d puts", s.room(), room, s.live, len(f.puts))
	}
	for _, at := range []int{0, 1, 63, 64, 65, 2048, 4094, 4095} {
		page := make([]byte, store.PageSize)
		page[at] = 1
		slot, zero := s.put(page)
		if zero {
			t.Errorf("a page with byte %d set is taken for zeros", at)
			continue
		}
		buf := bytes.Repeat([]byte{9}, store.PageSize)
		if err := s.read(slot, buf); err != nil || !bytes.Equal(buf, page) {
			t.Errorf("byte %d: %v", at, err)
		}
	}
}

func TestSlotIsFreeWithItsLastReferenceAndNotBefore(t *testing.T) {
	mem := newState(t)
	s, f := fakeSlots(t, mem)
	a := mustPut(t, s, pageOf(1))
	f.store(nil)
	s.collect()
	h := store.Handle(mem.Slots[a].Handle)
	s.ref(a)
	s.ref(a)
	for left := 2; left > 0; left-- {
		s.drop(a)
		if s.live != 1 || f.freed[h] != 0 {
			t.Fatalf("%d references are left: %d live, freed %d times", left, s.live, f.freed[h])
		}
		if b := mustPut(t, s, pageOf(2)); b == a {
			t.Fatalf("slot %d was given out again with %d references left", a, left)
		} else {
			s.drop(b)
		}
	}
	s.drop(a)
	if s.live != 0 || f.freed[h] != 1 {
		t.Errorf("%d live, freed %d times", s.live, f.freed[h])
	}
}

func TestSlotThatIsUsedAgainNeverShowsItsOldContent(t *testing.T) {
	mem := newState(t)
	s, f := fakeSlots(t, mem)
	buf := make([]byte, store.PageSize)
	var before store.Handle
	var generations []uint32
	var slot uint32
	for n := range 5 {
		slot = mustPut(t, s, pageOf(n+1))
		generations = append(generations, mem.Slots[slot].Generation)
		f.store(nil)
		s.collect()
		// The store is asked for the old page and gives it: a mistake of its own.
		if n > 0 {
			now := store.Handle(mem.Slots[slot].Handle)
			whole := f.pages[now]
			f.pages[now] = pageOf(n)
			if err := s.read(slot, buf); !errors.Is(err, errChecksum) {
				t.Errorf("use %d: the page before: %v", n, err)
			}
			f.pages[now] = whole
		}
		if err := s.read(slot, buf); err != nil || !bytes.Equal(buf, pageOf(n+1)) {
			t.Errorf("use %d: %v", n, err)
		}
		before = store.Handle(mem.Slots[slot].Handle)
		s.drop(slot)
		if f.freed[before] != 1 {
			t.Errorf("use %d: its page was freed %d times", n, f.freed[before])
		}
		if mem.Slots[slot].Handle != 0 || mem.Slots[slot].Raw != 0 {
			t.Errorf("use %d: the record of a free slot is %+v", n, mem.Slots[slot])
		}
	}
	if !slices.IsSorted(generations) || len(slices.Compact(slices.Clone(generations))) != len(generations) {
		t.Errorf("generations %v do not grow", generations)
	}
}

func TestSlotThatIsGivenUpWhileTheStoreWorksOnItIsFreeAfterwards(t *testing.T) {
	mem := newState(t)
	s, f := fakeSlots(t, mem)
	room := s.room()

	a := mustPut(t, s, pageOf(1))
	s.drop(a) // its Put is under way
	if b := mustPut(t, s, pageOf(2)); b == a {
		t.Fatal("a slot whose buffer the store is reading was given out again")
	} else {
		s.drop(b)
	}
	f.store(nil)
	f.store(errors.New("not stored"))
	s.collect()
	if s.room() != room || len(f.pages) != 0 || s.live != 0 || len(s.free) != 2 {
		t.Errorf("after Put: room %d of %d, %d pages, %d live, free %v", s.room(), room, len(f.pages), s.live, s.free)
	}

	c := mustPut(t, s, pageOf(3))
	f.store(nil)
	s.collect()
	f.tries = false
	if err := s.read(c, make([]byte, store.PageSize)); !errors.Is(err, errNotYet) {
		t.Fatal(err)
	}
	s.drop(c) // its Get is under way
	if len(f.pages) != 1 {
		t.Error("a page that is being read was freed")
	}
	if d := mustPut(t, s, pageOf(4)); d == c {
		t.Fatal("a slot that the store is reading was given out again")
	}
	f.fetch(nil)
	s.collect()
	if len(f.pages) != 0 || len(s.gets) != 0 || !slices.Contains(s.free, c) {
		t.Errorf("after Get: %d pages, %d gets, free %v", len(f.pages), len(s.gets), s.free)
	}

	// Fetched, and given up before anybody took it.
	f.store(nil) // page 4
	s.collect()
	var d uint32
	for slot := range s.refs {
		if s.refs[slot] == 1 {
			d = uint32(slot)
		}
	}
	if err := s.read(d, make([]byte, store.PageSize)); !errors.Is(err, errNotYet) {
		t.Fatal(err)
	}
	f.fetch(nil)
	s.collect()
	s.drop(d)
	if len(f.pages) != 0 || len(s.gets) != 0 || s.live != 0 {
		t.Errorf("at the end: %d pages, %d gets, %d live", len(f.pages), len(s.gets), s.live)
	}
}

func TestWhatAFullStoreRefusesIsKeptAndOfferedAgain(t *testing.T) {
	mem := newState(t)
	s, f := fakeSlots(t, mem)
	buf := make([]byte, store.PageSize)
	a, b, c := mustPut(t, s, pageOf(1)), mustPut(t, s, pageOf(2)), mustPut(t, s, pageOf(3))
	room := s.room()
	f.store(store.ErrFull)
	f.store(errors.New("the disk is on fire"))
	f.store(store.ErrFull)
	s.collect()
	if !s.full || s.room() != room || mem.Header.Counters.StoreErrors != 1 {
		t.Errorf("full %v, room %d of %d, %d errors: want full, the same and 1", s.full, s.room(), room, mem.Header.Counters.StoreErrors)
	}
	for n, slot := range []uint32{a, b, c} {
		if err := s.read(slot, buf); err != nil || !bytes.Equal(buf, pageOf(n+1)) {
			t.Errorf("page %d: %v", n+1, err)
		}
	}
	s.drop(c)
	if s.room() != room+1 {
		t.Error("the buffer of a refused page that is given up does not come back")
	}
	// One page while it is full, to see whether it still is.
	s.again()
	s.again()
	if !s.full || len(f.puts) != 1 {
		t.Fatalf("full %v, %d puts: want full, 1", s.full, len(f.puts))
	}
	f.store(store.ErrFull)
	s.collect()
	s.again()
	if !s.full || len(f.puts) != 1 {
		t.Fatalf("full %v, %d puts after it was full again: want full, 1", s.full, len(f.puts))
	}
	f.store(nil)
	s.collect()
	s.again()
	s.again() // not twice while it is under way
	if s.full || len(f.puts) != 1 {
		t.Fatalf("full %v, %d puts after it had room: want the other page", s.full, len(f.puts))
	}
	f.store(nil)
	s.collect()
	if s.full || s.room() != state.RawBuffers || len(f.pages) != 2 {
		t.Errorf("full %v, room %d, %d pages", s.full, s.room(), len(f.pages))
	}
	s.again()
	if len(f.puts) != 0 {
		t.Error("what is stored is offered again")
	}
	for n, slot := range []uint32{a, b} {
		if err := s.read(slot, buf); err != nil || !bytes.Equal(buf, pageOf(n+1)) {
			t.Errorf("page %d: %v", n+1, err)
		}
	}
}

func TestSlotThatWasRefusedAndUsedAnewIsOfferedOnce(t *testing.T) {
	s, f := fakeSlots(t, newState(t))
	a := mustPut(t, s, pageOf(1))
	f.store(store.ErrFull)
	s.collect()
	s.drop(a)
	if b := mustPut(t, s, pageOf(2)); b != a {
		t.Fatalf("slot %d was expected again, %d came", a, b)
	}
	f.store(store.ErrFull)
	s.collect()
	s.again()
	if len(f.puts) != 1 || !bytes.Equal(f.puts[0].Page, pageOf(2)) {
		t.Errorf("%d puts", len(f.puts))
	}
}

func TestSlotsAreFoundAgainFromTheTablesAfterAnAgentsDeath(t *testing.T) {
	mem := newState(t)
	s, f := fakeSlots(t, mem)
	stored := mustPut(t, s, pageOf(1))
	f.store(nil)
	under := mustPut(t, s, pageOf(2)) // in a raw buffer
	gone := mustPut(t, s, pageOf(3))  // in no table
	both := mustPut(t, s, pageOf(4))  // stored, and its buffer not given back yet
	last := mustPut(t, s, pageOf(5))  // in no table, the largest number
	s.collect()
	f.pages[77] = pageOf(4)
	mem.Slots[both].Handle = 77
	generation := mem.Slots[gone].Generation

	n, g := fakeSlots(t, mem)
	g.pages = f.pages
	live := n.recover(func(seen func(uint32)) {
		for _, slot := range []uint32{stored, under, both, stored, both, both, 0, uint32(len(mem.Slots)), ^uint32(0)} {
			seen(slot)
		}
	})
	slices.Sort(live)
	if want := []store.Handle{store.Handle(mem.Slots[stored].Handle), 77}; !slices.Equal(live, want) {
		t.Errorf("handles in use %v, want %v", live, want)
	}
	for slot, want := range map[uint32]uint32{stored: 2, under: 1, both: 3, gone: 0} {
		if n.refs[slot] != want {
			t.Errorf("slot %d has %d references, want %d", slot, n.refs[slot], want)
		}
	}
	if n.live != 3 || n.room() != state.RawBuffers-1 {
		t.Errorf("%d live, room %d: want 3 and %d", n.live, n.room(), state.RawBuffers-1)
	}
	// The buffer that is in use is not given to another page.
	buf := make([]byte, store.PageSize)
	var others []uint32
	for k := range 100 {
		others = append(others, mustPut(t, n, pageOf(100+k)))
	}
	for slot, page := range map[uint32]int{stored: 1, under: 2, both: 4} {
		if err := n.read(slot, buf); err != nil || !bytes.Equal(buf, pageOf(page)) {
			t.Errorf("slot %d: %v", slot, err)
		}
		if slices.Contains(others, slot) {
			t.Errorf("slot %d was given out while it is in use", slot)
		}
	}
	if !slices.Contains(others, gone) || !slices.Contains(others, last) || mem.Slots[gone].Generation <= generation {
		t.Errorf("slot %d is generation %d after %d; new slots %v", gone, mem.Slots[gone].Generation, generation, others)
	}
	// What was under way is offered to the store.
	before := len(g.puts)
	n.again()
	if len(g.puts) != before+1 || !bytes.Equal(g.puts[before].Page, pageOf(2)) {
		t.Errorf("%d more puts, want the page that was under way", len(g.puts)-before)
	}
	for range 2 {
		n.drop(stored)
	}
	if g.freed[live[0]] != 1 {
		t.Errorf("a page with two references was freed %v after both were given up", g.freed)
	}
}

func TestThereIsNoRoomForMorePagesThanTheStateHasSlots(t *testing.T) {
	mem := newState(t)
	s, f := fakeSlots(t, mem)
	a := mustPut(t, s, pageOf(1))
	f.store(nil)
	s.collect()
	s.next = uint32(len(mem.Slots)) - 1
	if n := s.room(); n != 1 {
		t.Errorf("room for %d pages with one slot left", n)
	}
	s.next++
	if n := s.room(); n != 0 {
		t.Errorf("room for %d pages with no slot left", n)
	}
	s.drop(a)
	if n := s.room(); n != 1 {
		t.Errorf("room for %d pages with a slot given back", n)
	}
}

// Package slab divides a long range of memory into objects of up to a page and
// knows which of its pages could be given back. It keeps its books beside the
// memory, never in it, and does not touch the memory: whoever holds the
// references can rebuild the books from them (New, Claim).
//
// A slab is 64 KiB of objects of one class. It is in one of these states:
//
//	state      objects        in list       given out by Alloc
//	empty      none           empty         to any class
//	partial    some           its class's   to its class, or a smaller one in need
//	full       no room        none          no
//	releasing  any but full   none          no: its idle pages are on their way out
//
// place is the one function that moves a slab between them. Beside that, a page
// that was written and holds no object any more is idle: it costs memory until
// it is used again or released.
//
// An Arena is not safe for concurrent use.
package slab

import (
	"iter"
	"math/bits"
)

// MaxBytes is the longest range that an Arena manages; more is left unused.
const MaxBytes = (1<<31 - 1) * int64(Bytes)

const slabsPerChunk = 64

type state uint8

const (
	unlisted state = iota // full or releasing
	empty
	partial
)

// slab holds no pointers: the collector does not look at it.
type slab struct {
	free    [maxSlots / 64]uint64 // a bit for each free object
	byRoom  link
	byIdle  link
	used    uint16 // objects
	touched uint16 // a bit for each page that was written since its release
	idle    uint16 // those of them that no object overlaps
	class   uint8  // meaningful while used > 0
	state   state
	inIdle  bool
	// releasing: a Batch is out.
	releasing bool
}

type chunk [slabsPerChunk]slab

// Arena keeps the books of one range of memory.
type Arena struct {
	bytes  int64
	slabs  int32
	chunks []*chunk // nil: nothing in it was ever used
	grown  int32    // chunks before this one exist

	empty   list
	partial [Classes]list
	idle    list // slabs with idle pages, the longest idle first

	residentPages int64
	idlePages     int64
	objects       int64
}

// New makes the books for arenaBytes of memory in which nothing is used. What
// does not fill a page at the end is left unused.
func New(arenaBytes int64) *Arena {
	arenaBytes = max(0, min(arenaBytes, MaxBytes)) / PageBytes * PageBytes
	slabs := (arenaBytes + Bytes - 1) / Bytes
	a := &Arena{
		bytes:  arenaBytes,
		slabs:  int32(slabs),
		chunks: make([]*chunk, (slabs+slabsPerChunk-1)/slabsPerChunk),
		empty:  emptyList,
		idle:   emptyList,
	}
	for c := range a.partial {
		a.partial[c] = emptyList
	}
	return a
}

// ResidentBytes is what the touched pages cost, idle ones included.
func (a *Arena) ResidentBytes() int64 { return a.residentPages * PageBytes }

// IdleBytes is the part of ResidentBytes that could be released.
func (a *Arena) IdleBytes() int64 { return a.idlePages * PageBytes }

// Objects is how many objects are in use.
func (a *Arena) Objects() int64 { return a.objects }

// Alloc finds room for lengthBytes, at most PageBytes.
func (a *Arena) Alloc(lengthBytes int) (Ref, bool) {
	if lengthBytes < 0 || lengthBytes > PageBytes {
		return Ref{}, false
	}
	class := classOf[(lengthBytes+Grain-1)/Grain]
	if i := a.partial[class].head; i != none {
		return a.takeFrom(i), true
	}
	if i := a.empty.head; i != none || a.grow() {
		i = a.empty.head
		a.setClass(i, class)
		return a.takeFrom(i), true
	}
	for class++; int(class) < Classes; class++ {
		if i := a.partial[class].head; i != none {
			return a.takeFrom(i), true
		}
	}
	return Ref{}, false
}

// takeFrom gives out the first free object of slab i, which has one. The first,
// so that objects gather in few pages.
func (a *Arena) takeFrom(i int32) Ref {
	s := a.slab(i)
	for w, word := range s.free {
		if word != 0 {
			slot := w*64 + bits.TrailingZeros64(word)
			a.mark(i, slot)
			a.place(i)
			return Ref{s.class, int64(i)*Bytes + int64(slot)*classBytes[s.class]}
		}
	}
	panic("slab: a slab in a list with room has none")
}

// mark makes a free object of slab i used. The caller places the slab.
func (a *Arena) mark(i int32, slot int) {
	s := a.slab(i)
	s.free[slot/64] &^= 1 << (slot % 64)
	s.used++
	a.objects++
	pages := pagesOf(s.class, slot)
	a.residentPages += int64(bits.OnesCount16(pages &^ s.touched))
	a.idlePages -= int64(bits.OnesCount16(pages & s.idle))
	s.touched |= pages
	s.idle &^= pages
}

// Free gives an object up. It is false, and nothing changes, when r is not in use.
func (a *Arena) Free(r Ref) bool {
	i, slot, ok := a.locate(r)
	if !ok {
		return false
	}
	s := a.slab(i)
	if s == nil || s.used == 0 || s.class != r.Class || s.free[slot/64]&(1<<(slot%64)) != 0 {
		return false
	}
	s.free[slot/64] |= 1 << (slot % 64)
	s.used--
	a.objects--
	for left := pagesOf(s.class, slot); left != 0; left &= left - 1 {
		page := bits.TrailingZeros16(left)
		if !a.pageUsed(i, page) {
			s.idle |= 1 << page
			a.idlePages++
		}
	}
	a.place(i)
	return true
}

// Claim makes r used, when the books are rebuilt. It is false, and nothing
// changes, when r cannot be: it is outside, in use already, or among objects of
// another class.
func (a *Arena) Claim(r Ref) bool {
	i, slot, ok := a.locate(r)
	if !ok {
		return false
	}
	if a.slab(i) == nil {
		a.addChunk(i / slabsPerChunk)
	}
	s := a.slab(i)
	switch {
	case s.used == 0:
		a.setClass(i, r.Class)
	case s.class != r.Class || s.free[slot/64]&(1<<(slot%64)) == 0:
		return false
	}
	a.mark(i, slot)
	a.place(i)
	return true
}

// Unused are the longest ranges of whole pages that no object overlaps, as
// offset and length in bytes. Idle pages are among them.
func (a *Arena) Unused() iter.Seq2[int64, int64] {
	return func(yield func(int64, int64) bool) {
		start := int64(0)
		for i := int32(0); i < a.slabs; i++ {
			s := a.slab(i)
			if s == nil {
				i = i/slabsPerChunk*slabsPerChunk + slabsPerChunk - 1
				continue
			}
			for left := s.touched &^ s.idle; left != 0; left &= left - 1 {
				at := int64(i)*Bytes + int64(bits.TrailingZeros16(left))*PageBytes
				if start < at && !yield(start, at-start) {
					return
				}
				start = at + PageBytes
			}
		}
		if start < a.bytes {
			yield(start, a.bytes-start)
		}
	}
}

// place puts slab i into the list that its state asks for.
func (a *Arena) place(i int32) {
	s := a.slab(i)
	want := partial
	switch {
	case s.releasing || s.used > 0 && int(s.used) == a.slots(i, s.class):
		want = unlisted
	case s.used == 0:
		want = empty
	}
	if want != s.state {
		switch s.state {
		case empty:
			a.remove(&a.empty, byRoom, i)
		case partial:
			a.remove(&a.partial[s.class], byRoom, i)
		case unlisted:
		}
		switch want {
		case empty:
			if s.touched != 0 { // its pages are there already
				a.pushFront(&a.empty, byRoom, i)
			} else {
				a.pushBack(&a.empty, byRoom, i)
			}
		case partial:
			a.pushBack(&a.partial[s.class], byRoom, i)
		case unlisted:
		}
		s.state = want
	}
	if idle := s.idle != 0 && !s.releasing; idle != s.inIdle {
		if idle {
			a.pushBack(&a.idle, byIdle, i)
		} else {
			a.remove(&a.idle, byIdle, i)
		}
		s.inIdle = idle
	}
}

// setClass makes all of slab i, which is empty, free objects of class.
func (a *Arena) setClass(i int32, class uint8) {
	s := a.slab(i)
	s.class = class
	s.free = [maxSlots / 64]uint64{}
	for slots, w := a.slots(i, class), 0; slots > 0; slots, w = slots-64, w+1 {
		if slots >= 64 {
			s.free[w] = ^uint64(0)
		} else {
			s.free[w] = 1<<slots - 1
		}
	}
}

// grow makes the first chunk that does not exist yet. False: all do.
func (a *Arena) grow() bool {
	for ; int(a.grown) < len(a.chunks); a.grown++ {
		if a.chunks[a.grown] == nil {
			a.addChunk(a.grown)
			return true
		}
	}
	return false
}

func (a *Arena) addChunk(n int32) {
	a.chunks[n] = new(chunk)
	for i := n * slabsPerChunk; i < min(a.slabs, (n+1)*slabsPerChunk); i++ {
		a.slab(i).state = empty
		a.pushBack(&a.empty, byRoom, i)
	}
}

// slab is nil for a slab whose chunk was never used.
func (a *Arena) slab(i int32) *slab {
	c := a.chunks[i/slabsPerChunk]
	if c == nil {
		return nil
	}
	return &c[i%slabsPerChunk]
}

// slots is how many objects of class slab i has room for; the last slab may be short.
func (a *Arena) slots(i int32, class uint8) int {
	if left := a.bytes - int64(i)*Bytes; left < Bytes {
		return int(left / classBytes[class])
	}
	return slotsPerSlab[class]
}

// locate is false when r lies outside or between objects.
func (a *Arena) locate(r Ref) (i int32, slot int, ok bool) {
	if !r.Fits(0, a.bytes) {
		return 0, 0, false
	}
	return int32(r.Offset / Bytes), int(r.Offset % Bytes / classBytes[r.Class]), true
}

// pagesOf are the pages of its slab that an object overlaps.
func pagesOf(class uint8, slot int) uint16 {
	first := int64(slot) * classBytes[class] / PageBytes
	last := (int64(slot+1)*classBytes[class] - 1) / PageBytes
	return uint16(1<<(last+1) - 1<<first)
}

// pageUsed says whether an object in use overlaps page of slab i.
func (a *Arena) pageUsed(i int32, page int) bool {
	s := a.slab(i)
	length := int(classBytes[s.class])
	first := page * PageBytes / length
	last := min(((page+1)*PageBytes-1)/length, a.slots(i, s.class)-1)
	for slot := first; slot <= last; {
		w, end := slot/64, min(last, slot|63)
		mask := ^uint64(0) << (slot % 64) & (^uint64(0) >> (63 - end%64))
		if s.free[w]&mask != mask {
			return true
		}
		slot = end + 1
	}
	return false
}

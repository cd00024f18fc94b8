package engine

import (
	"errors"
	"sync"
	"sync/atomic"

	"github.com/farpage/farpage/handler/state"
	"github.com/farpage/farpage/store"
)

// errNotYet says that a far page has to come from the store first.
var errNotYet = errors.New("engine: the page is on its way from the store")

// errChecksum says that a far page's bytes are not what was put away.
var errChecksum = errors.New("engine: the page does not match its checksum")

// slots keeps the far pages of one container. A slot has a record in shared
// memory; its bytes are in a raw buffer until the store has them. Reference
// counts are private: after an agent's death they follow from the tables.
type slots struct {
	mem   *state.Memory
	space store.Space
	refs  []uint32
	busy  []uint8 // busyPut, busyGet
	free  []uint32
	next  uint32
	raws  []uint32 // free raw buffers
	live  int64
	ops   []*store.Op
	gets  map[uint32]*fetched
	full  bool // the store said so
	retry []uint32
	tried uint32 // a slot that is offered again while the store is full, to see whether it still is; 0: none
	errs  *uint64

	mu    sync.Mutex
	ended []*store.Op // guarded by mu
	wake  func()
	spare []*store.Op
	short atomic.Bool
}

const (
	busyPut = 1 << iota
	busyGet
)

// fetched is a page asked from the store.
type fetched struct {
	page  []byte
	done  bool
	err   error
	freed bool // nobody wants it any more; free its handle when it is done
}

func newSlots(mem *state.Memory, wake func()) *slots {
	s := &slots{mem: mem, next: 1, gets: map[uint32]*fetched{}, wake: wake, errs: &mem.Header.Counters.StoreErrors}
	for i := state.RawBuffers; i > 0; i-- {
		s.raws = append(s.raws, uint32(i-1))
	}
	return s
}

// manyEnded is how many stored pages are worth waking the engine for. It looks by
// itself every few milliseconds.
const manyEnded = 128

// done is the store's SpaceConfig.Done: it runs on any goroutine.
func (s *slots) done(op *store.Op) {
	write := op.Write
	s.mu.Lock()
	s.ended = append(s.ended, op)
	n := len(s.ended)
	s.mu.Unlock()
	// The engine looks here at each turn. It waits only for pages that it has
	// asked for, and for raw buffers when it has run out of them: for many at once.
	if !write || s.short.Load() && n >= manyEnded {
		s.wake()
	}
}

// room says how many more pages can be taken in now.
func (s *slots) room() int {
	return min(len(s.raws), len(s.free)+len(s.mem.Slots)-int(s.next))
}

// idle says whether the store has everything that was taken in.
func (s *slots) idle() bool { return len(s.raws) == state.RawBuffers }

// wait asks to be woken when the store gives a raw buffer back.
func (s *slots) wait(on bool) { s.short.Store(on) }

// put takes a page in and starts storing it. page may be shared with a container:
// it is copied before anything is computed from it. The slot has one reference.
// zero: the page holds nothing but zeros and needs no slot. Preconditions: room()
// is more than 0.
func (s *slots) put(page []byte) (slot uint32, zero bool) {
	raw := s.raws[len(s.raws)-1]
	buf := s.mem.RawPage(raw)
	copy(buf, page)
	if isZero(buf) {
		return 0, true
	}
	s.raws = s.raws[:len(s.raws)-1]
	slot = s.alloc()
	rec := &s.mem.Slots[slot]
	rec.Generation++
	rec.Handle = 0
	rec.Sum = store.Sum(buf, s.mem.Header.ID, uint64(slot), rec.Generation)
	rec.Raw = raw + 1
	s.refs[slot] = 1
	s.live++
	s.start(slot)
	return slot, false
}

func (s *slots) alloc() uint32 {
	if k := len(s.free); k > 0 {
		slot := s.free[k-1]
		s.free = s.free[:k-1]
		return slot
	}
	slot := s.next
	s.next++
	s.grow(slot)
	return slot
}

func (s *slots) grow(slot uint32) {
	for uint32(len(s.refs)) <= slot {
		s.refs = append(s.refs, 0)
		s.busy = append(s.busy, 0)
	}
}

// start hands a slot's raw buffer to the store.
func (s *slots) start(slot uint32) {
	var op *store.Op
	if k := len(s.ops); k > 0 {
		op = s.ops[k-1]
		s.ops = s.ops[:k-1]
	} else {
		op = new(store.Op)
	}
	*op = store.Op{Page: s.mem.RawPage(s.mem.Slots[slot].Raw - 1), Tag: uint64(slot)}
	s.busy[slot] |= busyPut
	s.space.Put(op)
}

// collect takes in what the store has ended; it says whether there was anything.
func (s *slots) collect() bool {
	s.mu.Lock()
	s.ended, s.spare = s.spare[:0], s.ended
	s.mu.Unlock()
	for _, op := range s.spare {
		slot := uint32(op.Tag)
		if op.Write {
			s.stored(slot, op)
			s.ops = append(s.ops, op)
			continue
		}
		s.busy[slot] &^= busyGet
		if f := s.gets[slot]; f != nil {
			f.done, f.err = true, op.Err
			if f.freed {
				delete(s.gets, slot)
				s.release(slot)
			}
		}
	}
	return len(s.spare) > 0
}

func (s *slots) stored(slot uint32, op *store.Op) {
	s.busy[slot] &^= busyPut
	if slot == s.tried {
		s.tried = 0
	}
	rec := &s.mem.Slots[slot]
	if op.Err == nil {
		s.full = false
		rec.Handle = uint64(op.Handle)
		raw := rec.Raw - 1
		rec.Raw = 0
		s.raws = append(s.raws, raw)
		if s.refs[slot] == 0 {
			s.release(slot)
		}
		return
	}
	if s.refs[slot] == 0 {
		s.release(slot)
		return
	}
	// The bytes stay where they are, in the raw buffer, until the store takes them.
	if errors.Is(op.Err, store.ErrFull) {
		s.full = true
	} else {
		*s.errs++
	}
	s.retry = append(s.retry, slot)
}

// again offers the store what it has refused: one page while it is full, else all.
func (s *slots) again() {
	if s.tried != 0 {
		return
	}
	list := s.retry
	s.retry = nil
	for i, slot := range list {
		if s.refs[slot] == 0 || s.mem.Slots[slot].Raw == 0 || s.busy[slot]&busyPut != 0 {
			continue
		}
		s.start(slot)
		if s.full {
			s.tried, s.retry = slot, list[i+1:]
			return
		}
	}
	s.full = false // there is nothing to try it with
}

func (s *slots) ref(slot uint32) { s.refs[slot]++ }

// drop gives up one reference; with the last one the slot is free.
func (s *slots) drop(slot uint32) {
	s.refs[slot]--
	if s.refs[slot] > 0 {
		return
	}
	s.live--
	if f := s.gets[slot]; f != nil {
		if !f.done {
			f.freed = true
			return
		}
		delete(s.gets, slot)
	}
	if s.busy[slot] == 0 {
		s.release(slot)
	}
}

// release makes an unreferenced slot free again.
func (s *slots) release(slot uint32) {
	rec := &s.mem.Slots[slot]
	handle, raw := rec.Handle, rec.Raw
	rec.Handle, rec.Raw, rec.Sum = 0, 0, 0
	if raw != 0 {
		s.raws = append(s.raws, raw-1)
	}
	if handle != 0 {
		s.space.Free(store.Handle(handle))
	}
	s.free = append(s.free, slot)
}

// read copies a slot's page into buf: errNotYet when it has been asked for and
// has not come, errChecksum when its bytes are wrong.
func (s *slots) read(slot uint32, buf []byte) error {
	rec := &s.mem.Slots[slot]
	if rec.Raw != 0 {
		copy(buf, s.mem.RawPage(rec.Raw-1))
		return s.check(slot, buf)
	}
	if f := s.gets[slot]; f != nil {
		if !f.done {
			return errNotYet
		}
		delete(s.gets, slot)
		if f.err != nil {
			return f.err
		}
		copy(buf, f.page)
		return s.check(slot, buf)
	}
	ok, err := s.space.TryGet(store.Handle(rec.Handle), buf)
	if err != nil {
		return err
	}
	if ok {
		return s.check(slot, buf)
	}
	f := &fetched{page: make([]byte, store.PageSize)}
	s.gets[slot] = f
	s.busy[slot] |= busyGet
	s.space.Get(&store.Op{Handle: store.Handle(rec.Handle), Page: f.page, Tag: uint64(slot)})
	return errNotYet
}

// fetchesMax bounds the pages that were asked for and not given to anybody yet.
const fetchesMax = 512

// mayFetch says whether a page may be asked for ahead of need. Pages that nobody has
// come for make room.
func (s *slots) mayFetch() bool {
	if len(s.gets) < fetchesMax {
		return true
	}
	for slot, f := range s.gets {
		if f.done {
			delete(s.gets, slot)
		}
	}
	return len(s.gets) < fetchesMax
}

func (s *slots) check(slot uint32, page []byte) error {
	rec := &s.mem.Slots[slot]
	if store.Sum(page, s.mem.Header.ID, uint64(slot), rec.Generation) != rec.Sum {
		return errChecksum
	}
	return nil
}

// recover counts references anew and opens the store with what is still used.
// visit calls its argument for each slot that a table shows.
func (s *slots) recover(visit func(func(slot uint32))) (live []store.Handle) {
	limit := uint32(len(s.mem.Slots))
	visit(func(slot uint32) {
		if slot == 0 || slot >= limit {
			return
		}
		s.next = max(s.next, slot+1)
		s.grow(slot)
		s.refs[slot]++
	})
	used := map[uint32]bool{}
	for slot := uint32(1); slot < s.next; slot++ {
		rec := &s.mem.Slots[slot]
		if s.refs[slot] == 0 {
			rec.Handle, rec.Raw = 0, 0
			s.free = append(s.free, slot)
			continue
		}
		s.live++
		if rec.Handle != 0 {
			rec.Raw = 0
			live = append(live, store.Handle(rec.Handle))
		} else if rec.Raw != 0 {
			used[rec.Raw-1] = true
			s.retry = append(s.retry, slot)
		}
	}
	s.raws = s.raws[:0]
	for i := state.RawBuffers; i > 0; i-- {
		if !used[uint32(i-1)] {
			s.raws = append(s.raws, uint32(i-1))
		}
	}
	return live
}

func isZero(page []byte) bool {
	for _, b := range page[:64] {
		if b != 0 {
			return false
		}
	}
	return string(page[:len(page)-1]) == string(page[1:])
}

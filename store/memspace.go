package store

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/farpage/farpage/store/internal/slab"
	"github.com/klauspost/compress/s2"
)

var (
	// ErrHandle says that a handle cannot be of the space that it was given to.
	ErrHandle = errors.New("store: no such handle")
	// ErrCorrupt says that what is stored cannot be turned into a page again.
	ErrCorrupt = errors.New("store: corrupt page")
)

// memCompressed is the most that a compressed page may need, in bytes. Whatever
// needs more is stored as it is: it costs little more and is read back faster.
var memCompressed = slab.LargestBelowPage()

// MemSpace is one container's part of a Mem. A page is stored as a number in
// its handle (MemSpace keeps nothing), compressed with S2, or as it is.
//
// What is behind a handle in use never changes, so that reading takes no lock.
type MemSpace struct {
	store   *Mem
	arena   []byte // nil once closed
	release func(offset, length int64) error
	done    func(*Op)

	underWay int  // store.mu
	closed   bool // store.mu

	mu        sync.Mutex
	slabs     *slab.Arena // mu
	trimming  bool        // mu: a trim is queued or runs
	releasing bool        // mu: memory of one slab is being released
	released  sync.Cond   // on mu: that has ended

	resident      atomic.Int64 // bytes
	unknownFrees  atomic.Int64
	unknownLive   atomic.Int64
	releaseErrors atomic.Int64
}

// MemCounts are mistakes that a MemSpace has seen and lived with.
type MemCounts struct {
	UnknownFrees  int64 // Free of a handle that was not in use
	UnknownLive   int64 // handles in SpaceConfig.Live that were left out
	ReleaseErrors int64 // failures of SpaceConfig.Release; after one, memory is kept
}

func newMemSpace(m *Mem, cfg SpaceConfig) *MemSpace {
	s := &MemSpace{
		store:   m,
		arena:   cfg.Arena,
		release: cfg.Release,
		done:    cfg.Done,
		slabs:   slab.New(int64(len(cfg.Arena))),
	}
	s.released.L = &s.mu
	for _, h := range cfg.Live {
		if _, ok := h.pattern(); ok {
			continue
		}
		if ref, err := s.locate(h); err != nil || !s.slabs.Claim(ref.Ref) {
			s.unknownLive.Add(1)
		}
	}
	// An agent that died has left memory behind that no handle is for.
	if s.release != nil {
		for offset, length := range s.slabs.Unused() {
			if err := s.release(offset, length); err != nil {
				s.releaseErrors.Add(1)
				break
			}
		}
	}
	s.resident.Store(s.slabs.ResidentBytes())
	return s
}

// Put queues op for a worker.
func (s *MemSpace) Put(op *Op) {
	op.Write = true
	s.submit(op)
}

// Get queues op for a worker. TryGet is the faster way: it always has an answer.
func (s *MemSpace) Get(op *Op) {
	op.Write = false
	s.submit(op)
}

func (s *MemSpace) submit(op *Op) {
	if !s.store.submit(memJob{s, op}) {
		op.Err = ErrClosed
		go s.done(op)
	}
}

// TryGet always has an answer: the page, or why it cannot be read.
func (s *MemSpace) TryGet(h Handle, page []byte) (ok bool, err error) {
	err = s.read(h, page)
	return err == nil, err
}

// Free gives h up. A handle that is not in use is counted and ignored.
func (s *MemSpace) Free(h Handle) {
	if _, ok := h.pattern(); ok {
		return
	}
	object, err := s.locate(h)
	if err != nil {
		s.unknownFrees.Add(1)
		return
	}
	s.mu.Lock()
	ok := s.slabs.Free(object.Ref)
	trim := ok && !s.trimming && s.mayTrim() && s.slabs.IdleBytes() > s.idleBytesMax()
	if trim {
		s.trimming = true
	}
	s.mu.Unlock()
	if !ok {
		s.unknownFrees.Add(1)
	}
	if trim {
		s.queueTrim()
	}
}

// Bytes is the memory of the arena that is in use or not given back yet.
func (s *MemSpace) Bytes() int64 { return s.resident.Load() }

// Counts may be called at any time.
func (s *MemSpace) Counts() MemCounts {
	return MemCounts{
		UnknownFrees:  s.unknownFrees.Load(),
		UnknownLive:   s.unknownLive.Load(),
		ReleaseErrors: s.releaseErrors.Load(),
	}
}

// Close waits for what is under way; the arena keeps its content, for the next
// Open or for its owner to drop, and is not touched any more.
func (s *MemSpace) Close() error {
	s.store.drain(s)
	s.arena = nil
	return nil
}

// Discard is Close: the arena is its owner's to drop.
func (s *MemSpace) Discard() error { return s.Close() }

// memObject is an object with the length of what it holds, in bytes.
type memObject struct {
	slab.Ref
	length int
}

// locate takes a handle apart that must be an object's and checks that it lies
// in the arena.
func (s *MemSpace) locate(h Handle) (memObject, error) {
	ref, length, ok := h.object()
	if !ok || !ref.Fits(length, int64(len(s.arena))) {
		return memObject{}, ErrHandle
	}
	return memObject{ref, length}, nil
}

// read fills page. It allocates nothing and takes no lock.
func (s *MemSpace) read(h Handle, page []byte) error {
	if len(page) != PageSize {
		return errPageLength
	}
	if word, ok := h.pattern(); ok {
		fill(page, word)
		return nil
	}
	object, err := s.locate(h)
	if err != nil {
		return err
	}
	stored := s.arena[object.Offset : object.Offset+int64(object.length)]
	if object.length == PageSize {
		copy(page, stored)
		return nil
	}
	// Decode makes a buffer of its own if the block claims to be longer.
	if n, err := s2.DecodedLen(stored); err != nil || n != PageSize {
		return ErrCorrupt
	}
	if _, err := s2.Decode(page, stored); err != nil {
		return ErrCorrupt
	}
	return nil
}

// write stores page. It runs on a worker.
func (s *MemSpace) write(page, scratch []byte) (Handle, error) {
	if len(page) != PageSize {
		return 0, errPageLength
	}
	if word, ok := pattern(page); ok {
		if h, ok := patternHandle(word); ok {
			return h, nil
		}
	}
	packed := s2.Encode(scratch, page)
	if len(packed) > memCompressed {
		packed = page
	}
	ref, ok := s.alloc(len(packed))
	if !ok {
		return 0, ErrFull
	}
	copy(s.arena[ref.Offset:], packed)
	return objectHandle(ref, len(packed)), nil
}

func (s *MemSpace) alloc(lengthBytes int) (slab.Ref, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		ref, ok := s.slabs.Alloc(lengthBytes)
		if !ok && s.releasing { // what is being released is room
			s.released.Wait()
			continue
		}
		s.resident.Store(s.slabs.ResidentBytes())
		return ref, ok
	}
}

var errPageLength = fmt.Errorf("store: a page has %d bytes", PageSize)

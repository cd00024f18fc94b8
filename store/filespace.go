package store

import (
	"sync/atomic"

	"github.com/farpage/farpage/store/internal/blocks"
)

// FileSpace is one container's part of a File.
type FileSpace struct {
	store *File
	id    string
	owner blocks.Owner
	done  func(*Op)
	pages atomic.Int64 // in use

	group    int64 // store.mu: where blocks are taken from
	underWay int   // store.mu: Ops
	closed   bool  // store.mu
}

// Put queues op for a worker.
func (s *FileSpace) Put(op *Op) {
	op.Write = true
	s.submit(&s.store.puts, op)
}

// Get queues op for a worker.
func (s *FileSpace) Get(op *Op) {
	op.Write = false
	s.submit(&s.store.gets, op)
}

func (s *FileSpace) submit(l *lane, op *Op) {
	f := s.store
	f.mu.Lock()
	open := !f.closing && !s.closed
	if open {
		s.underWay++
		l.push(fileJob{s, op})
	}
	f.mu.Unlock()
	if !open {
		op.Err = ErrClosed
		go s.done(op)
	}
}

// TryGet never has the page: that needs the disk. A handle that cannot be right is
// an error at once.
func (s *FileSpace) TryGet(h Handle, page []byte) (ok bool, err error) {
	if len(page) != PageSize {
		return false, errPageLength
	}
	s.store.mu.Lock()
	defer s.store.mu.Unlock()
	if _, ok := s.locate(h); !ok {
		return false, ErrHandle
	}
	return false, nil
}

// locate finds a handle's block. Preconditions: store.mu.
func (s *FileSpace) locate(h Handle) (block int64, ok bool) {
	block, ok = h.block(s.store.header.number)
	return block, ok && s.store.blocks.Has(s.owner, block)
}

// Free gives h up. A handle that is not in use is counted and ignored.
func (s *FileSpace) Free(h Handle) {
	f := s.store
	f.mu.Lock()
	defer f.mu.Unlock()
	block, ok := s.locate(h)
	if !ok || s.closed || !f.blocks.Free(s.owner, block) {
		f.unknownFrees.Add(1)
		return
	}
	s.pages.Add(-1)
	f.queueTrim()
}

// Bytes is what the pages have in the file.
func (s *FileSpace) Bytes() int64 { return s.pages.Load() * PageSize }

// Close waits for what is under way. The pages stay, for an Open of the same
// container in this store or in the next one of this file.
func (s *FileSpace) Close() error {
	s.drain(true)
	return nil
}

// Discard waits for what is under way and frees all pages.
func (s *FileSpace) Discard() error {
	f := s.store
	if !s.drain(false) {
		return nil
	}
	for at, again := int64(0), true; again; again = at != 0 {
		f.mu.Lock()
		at = f.blocks.FreeAll(s.owner, at)
		f.queueTrim()
		f.mu.Unlock()
	}
	s.pages.Store(0)
	return nil
}

// drain waits until nothing is under way, and lets nothing new in. keep: the pages
// are for the next Open of this container. False: the space was closed before.
func (s *FileSpace) drain(keep bool) bool {
	f := s.store
	f.mu.Lock()
	defer f.mu.Unlock()
	if s.closed {
		return false
	}
	s.closed = true
	for s.underWay > 0 {
		f.ended.Wait()
	}
	delete(f.spaces, s.id)
	if keep && s.pages.Load() > 0 {
		f.left[s.id] = s.owner
	}
	return true
}

package storetest

import (
	"sync"
	"sync/atomic"

	"github.com/farpage/farpage/store"
)

// Full is a store with room for a number of pages, whatever is in them; a Put
// beyond that ends with store.ErrFull.
type Full struct {
	store.Store
	maxPages atomic.Int64
	pages    atomic.Int64 // stored, or on their way
}

// NewFull makes inner full with maxPages pages.
func NewFull(inner store.Store, maxPages int64) *Full {
	f := &Full{Store: inner}
	f.SetMax(maxPages)
	return f
}

// SetMax changes how many pages there is room for. What is stored stays.
func (f *Full) SetMax(maxPages int64) { f.maxPages.Store(maxPages) }

// Pages is how many are stored or on their way.
func (f *Full) Pages() int64 { return f.pages.Load() }

// Open opens a space. Its live pages count; they do so until it is closed.
func (f *Full) Open(cfg store.SpaceConfig) (store.Space, error) {
	s := &fullSpace{store: f, done: cfg.Done}
	s.count(int64(len(cfg.Live)))
	cfg.Done = s.ended
	inner, err := f.Store.Open(cfg)
	if err != nil {
		s.count(-int64(len(cfg.Live)))
		return nil, err
	}
	s.Space = inner
	return s, nil
}

type fullSpace struct {
	store.Space
	store     *Full
	done      func(*store.Op)
	pages     atomic.Int64
	reporting sync.WaitGroup
}

func (s *fullSpace) count(pages int64) {
	s.pages.Add(pages)
	s.store.pages.Add(pages)
}

// take counts a page if there is room for it. Never more than there is room for, not
// for a moment either: tests look at Pages.
func (s *fullSpace) take() bool {
	for {
		n := s.store.pages.Load()
		if n >= s.store.maxPages.Load() {
			return false
		}
		if s.store.pages.CompareAndSwap(n, n+1) {
			s.pages.Add(1)
			return true
		}
	}
}

func (s *fullSpace) Put(op *store.Op) {
	if s.take() {
		s.Space.Put(op)
		return
	}
	op.Write, op.Err = true, store.ErrFull
	s.reporting.Go(func() { s.done(op) })
}

func (s *fullSpace) ended(op *store.Op) {
	if op.Write && op.Err != nil {
		s.count(-1)
	}
	s.done(op)
}

func (s *fullSpace) Free(h store.Handle) {
	s.count(-1)
	s.Space.Free(h)
}

func (s *fullSpace) Close() error { return s.end(s.Space.Close) }

func (s *fullSpace) Discard() error { return s.end(s.Space.Discard) }

func (s *fullSpace) end(inner func() error) error {
	s.reporting.Wait()
	err := inner()
	s.count(-s.pages.Load())
	return err
}

package storetest

import (
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/farpage/farpage/store"
)

// bug is one way for a toy store to be wrong.
type bug int

const (
	noBug bug = iota
	flipsABit
	mixesPagesUp
	handleZero
	reportsTwice
	reportsInside
	reportsNever
	keepsTheBuffer
	clearsTheTag
	neverFull
	fullTooEarly
	fullForEver
	showsOldContent
	forgetsWhenReopened
	leaksWhenReopened
	handsOutEarly
	keepsWhenDiscarded
	neverShrinks
	sharesContainers
	closesAtOnce
	panicsOnUnknown
	takesAnyLength
	allocates
	bugs
)

// toyPlace keeps pages in slots like a file would: it outlives its stores.
type toyPlace struct {
	bug       bug
	slots     int
	parts     map[string]map[store.Handle][]byte
	discarded int // pages that keepsWhenDiscarded keeps
}

func toyMaker(b bug) Maker {
	return func(_ testing.TB, roomPages int) func() (store.Store, error) {
		p := &toyPlace{bug: b, slots: roomPages, parts: map[string]map[store.Handle][]byte{}}
		return func() (store.Store, error) { return &toy{place: p}, nil }
	}
}

// toy is a plain correct store, but for the bug that it was made with.
type toy struct{ place *toyPlace }

func (t *toy) String() string { return "toy:" }
func (t *toy) Close() error   { return nil }
func (t *toy) Recovered()     {}

func (t *toy) Open(cfg store.SpaceConfig) (store.Space, error) {
	id := cfg.ID
	if t.place.bug == sharesContainers {
		id = "all"
	}
	old := t.place.parts[id]
	s := &toySpace{place: t.place, bug: t.place.bug, slots: t.place.slots - t.place.discarded, pages: map[store.Handle][]byte{}, done: cfg.Done}
	for h, page := range old {
		if t.place.bug == leaksWhenReopened || t.place.bug == sharesContainers || slices.Contains(cfg.Live, h) {
			s.pages[h] = page
		}
	}
	switch {
	case t.place.bug == forgetsWhenReopened:
		clear(s.pages)
	case t.place.bug == handsOutEarly && cfg.Live != nil:
		// The pages of the others are as good as overwritten.
		for other, pages := range t.place.parts {
			if other != id {
				clear(pages)
			}
		}
	}
	if t.place.bug == sharesContainers && old != nil {
		s.pages = old
	}
	t.place.parts[id] = s.pages
	return s, nil
}

type toySpace struct {
	place     *toyPlace
	bug       bug
	slots     int
	done      func(*store.Op)
	reporting sync.WaitGroup

	mu     sync.Mutex
	pages  map[store.Handle][]byte // mu
	next   store.Handle            // mu
	peak   int                     // mu
	freed  []byte                  // mu
	fulled bool                    // mu
}

var errToy = errors.New("toy: no")

func (s *toySpace) report(op *store.Op) {
	switch s.bug {
	case reportsInside:
		s.done(op)
		return
	case reportsNever:
		if !op.Write {
			return
		}
	case reportsTwice:
		s.reporting.Go(func() { s.done(op) })
	case clearsTheTag:
		op.Tag = 0
	case closesAtOnce:
		if op.Write {
			time.AfterFunc(50*time.Millisecond, func() { s.done(op) })
			return
		}
	}
	s.reporting.Go(func() { s.done(op) })
}

func (s *toySpace) Put(op *store.Op) {
	op.Write = true
	op.Handle, op.Err = s.put(op.Page)
	s.report(op)
}

func (s *toySpace) put(page []byte) (store.Handle, error) {
	if len(page) != store.PageSize && s.bug != takesAnyLength {
		return 0, errToy
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	slots := s.slots
	switch s.bug {
	case neverFull:
		slots *= 1000
	case fullTooEarly:
		slots--
	}
	if len(s.pages) >= slots || s.fulled {
		s.fulled = s.bug == fullForEver
		return 0, store.ErrFull
	}
	h := s.next
	for s.bug != sharesContainers && s.pages[h] != nil || h == 0 && s.bug != handleZero {
		h++
	}
	s.next = h + 1
	kept := slices.Clone(page)
	switch {
	case s.bug == keepsTheBuffer:
		kept = page
	case s.bug == showsOldContent && s.freed != nil:
		kept, s.freed = s.freed, nil
	}
	if kept == nil {
		kept = []byte{}
	}
	s.pages[h] = kept
	s.peak = max(s.peak, len(s.pages))
	return h, nil
}

func (s *toySpace) Get(op *store.Op) {
	op.Write = false
	_, op.Err = s.TryGet(op.Handle, op.Page)
	s.report(op)
}

var sink []byte

func (s *toySpace) TryGet(h store.Handle, page []byte) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	kept := s.pages[h]
	switch {
	case kept == nil && s.bug == panicsOnUnknown:
		panic("toy: unknown handle")
	case kept == nil || len(page) != store.PageSize && s.bug != takesAnyLength:
		return false, errToy
	case s.bug == mixesPagesUp && s.pages[h^1] != nil:
		kept = s.pages[h^1]
	case s.bug == allocates:
		sink = make([]byte, store.PageSize)
	}
	copy(page, kept)
	if s.bug == flipsABit && h%100 == 0 {
		page[4000] ^= 1
	}
	return true, nil
}

func (s *toySpace) Free(h store.Handle) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pages[h] != nil {
		s.freed = s.pages[h]
		delete(s.pages, h)
	}
}

func (s *toySpace) Bytes() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.bug == neverShrinks {
		return int64(s.peak * store.PageSize)
	}
	return int64(len(s.pages) * store.PageSize)
}

func (s *toySpace) Close() error {
	s.reporting.Wait()
	return nil
}

func (s *toySpace) Discard() error {
	s.reporting.Wait()
	if s.bug == keepsWhenDiscarded {
		s.place.discarded += len(s.pages)
	}
	return nil
}

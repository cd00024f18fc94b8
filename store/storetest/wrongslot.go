package storetest

import (
	"bytes"
	"sync"

	"github.com/farpage/farpage/store"
)

// WrongSlot is a store that mixes pages up: while it is on, reading a page
// gives the bytes of another one of the same container that is in use (of
// those stored through it), if there is any whose bytes differ.
type WrongSlot struct {
	store.Store

	mu    sync.Mutex
	on    bool // mu
	mixed int  // mu
}

// NewWrongSlot makes inner mix pages up once it is switched on.
func NewWrongSlot(inner store.Store) *WrongSlot { return &WrongSlot{Store: inner} }

// Switch turns it on or off.
func (w *WrongSlot) Switch(on bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.on = on
}

// Mixed is how many reads got another page.
func (w *WrongSlot) Mixed() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.mixed
}

// Open opens a space whose pages may be mixed up.
func (w *WrongSlot) Open(cfg store.SpaceConfig) (store.Space, error) {
	s := &wrongSlotSpace{store: w}
	s.change, s.stored = s.mixUp, s.remember
	if err := openTap(w.Store, cfg, &s.tap); err != nil {
		return nil, err
	}
	return s, nil
}

type wrongSlotSpace struct {
	tap
	store *WrongSlot
	pages []slot // store.mu: copies, because reading another's slot could race with its Free
}

type slot struct {
	handle store.Handle
	page   []byte
}

func (s *wrongSlotSpace) remember(h store.Handle, page []byte) {
	s.store.mu.Lock()
	defer s.store.mu.Unlock()
	s.pages = append(s.pages, slot{h, bytes.Clone(page)})
}

func (s *wrongSlotSpace) mixUp(h store.Handle, page []byte) error {
	s.store.mu.Lock()
	defer s.store.mu.Unlock()
	if !s.store.on {
		return nil
	}
	for _, other := range s.pages {
		if other.handle != h && !bytes.Equal(other.page, page) {
			copy(page, other.page)
			s.store.mixed++
			break
		}
	}
	return nil
}

func (s *wrongSlotSpace) Free(h store.Handle) {
	s.store.mu.Lock()
	for i, p := range s.pages {
		if p.handle == h {
			s.pages = append(s.pages[:i], s.pages[i+1:]...)
			break
		}
	}
	s.store.mu.Unlock()
	s.Space.Free(h)
}

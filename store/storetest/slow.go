package storetest

import (
	"sync"
	"time"

	"github.com/farpage/farpage/store"
)

// Slow is a store that is far away: TryGet never has an answer, and each Get is
// reported after a delay or when the test releases it. The page is read at
// once, only the report waits. Puts go through as they are.
type Slow struct {
	store.Store
	delay time.Duration

	mu    sync.Mutex
	held  []heldGet     // mu: the oldest first
	grown chan struct{} // mu: closed and made anew when held grows
}

type heldGet struct {
	space *slowSpace
	op    *store.Op
}

// NewSlow makes inner slow. With a delay of 0 each Get waits for Release.
func NewSlow(inner store.Store, delay time.Duration) *Slow {
	return &Slow{Store: inner, delay: delay, grown: make(chan struct{})}
}

// Held is how many Gets wait to be reported.
func (s *Slow) Held() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.held)
}

// WaitHeld waits until n Gets are held. False: it took longer than patience.
func (s *Slow) WaitHeld(n int, patience time.Duration) bool {
	timeout := time.NewTimer(patience)
	defer timeout.Stop()
	for {
		s.mu.Lock()
		held, grown := len(s.held), s.grown
		s.mu.Unlock()
		if held >= n {
			return true
		}
		select {
		case <-grown:
		case <-timeout.C:
			return false
		}
	}
}

// Release reports the n Gets that are held the longest, all of them when n is
// negative, in the calling goroutine, and says how many there were.
func (s *Slow) Release(n int) int {
	out := s.take(func(heldGet) bool {
		wanted := n != 0
		if n > 0 {
			n--
		}
		return wanted
	})
	for _, h := range out {
		h.report()
	}
	return len(out)
}

// take removes the held Gets that are wanted. Whoever takes one reports it.
func (s *Slow) take(wanted func(heldGet) bool) (out []heldGet) {
	s.mu.Lock()
	defer s.mu.Unlock()
	kept := s.held[:0]
	for _, h := range s.held {
		if wanted(h) {
			h.space.reporting.Add(1)
			out = append(out, h)
		} else {
			kept = append(kept, h)
		}
	}
	clear(s.held[len(kept):])
	s.held = kept
	return out
}

func (h heldGet) report() {
	h.space.done(h.op)
	h.space.reporting.Done()
}

// Open opens a space whose Gets are held.
func (s *Slow) Open(cfg store.SpaceConfig) (store.Space, error) {
	space := &slowSpace{store: s, done: cfg.Done}
	cfg.Done = space.ended
	inner, err := s.Store.Open(cfg)
	if err != nil {
		return nil, err
	}
	space.Space = inner
	return space, nil
}

type slowSpace struct {
	store.Space
	store     *Slow
	done      func(*store.Op)
	closing   bool // store.mu
	reporting sync.WaitGroup
}

func (s *slowSpace) ended(op *store.Op) {
	if op.Write || !s.hold(op) {
		s.done(op)
	}
}

// hold is false when the space closes.
func (s *slowSpace) hold(op *store.Op) bool {
	s.store.mu.Lock()
	defer s.store.mu.Unlock()
	if s.closing {
		return false
	}
	s.store.held = append(s.store.held, heldGet{s, op})
	close(s.store.grown)
	s.store.grown = make(chan struct{})
	if s.store.delay > 0 {
		time.AfterFunc(s.store.delay, func() {
			for _, h := range s.store.take(func(h heldGet) bool { return h.space == s && h.op == op }) {
				h.report()
			}
		})
	}
	return true
}

// TryGet has no answer.
func (s *slowSpace) TryGet(store.Handle, []byte) (bool, error) { return false, nil }

// Close reports what is held and holds nothing from then on.
func (s *slowSpace) Close() error { return s.end(s.Space.Close) }

// Discard does so, too.
func (s *slowSpace) Discard() error { return s.end(s.Space.Discard) }

func (s *slowSpace) end(inner func() error) error {
	s.store.mu.Lock()
	s.closing = true
	s.store.mu.Unlock()
	for _, h := range s.store.take(func(h heldGet) bool { return h.space == s }) {
		h.report()
	}
	err := inner()
	s.reporting.Wait()
	return err
}

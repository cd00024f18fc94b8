package storetest

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/farpage/farpage/store"
)

// Maker makes an empty place for a store: one where a space has room for at
// least roomPages pages that do not compress, and not for more than twice as
// many (a store in RAM is bounded by its arena, which the checks make). open
// opens a store there; called again after Close, it opens the same place.
type Maker func(tb testing.TB, roomPages int) (open func() (store.Store, error))

// patience is how long a check waits for what must happen.
var patience = 10 * time.Second

// place is a store under test with the containers that are open in it.
type place struct {
	roomPages  int
	openStore  func() (store.Store, error)
	store      store.Store
	arenas     map[string][]byte
	containers []*container
}

func newPlace(tb testing.TB, mk Maker, roomPages int) (*place, error) {
	p := &place{roomPages: roomPages, openStore: mk(tb, roomPages), arenas: map[string][]byte{}}
	if err := p.open(); err != nil {
		return nil, err
	}
	p.store.Recovered() // there was nothing
	return p, nil
}

func (p *place) open() (err error) {
	if p.store, err = p.openStore(); err != nil {
		p.store = nil
		return fmt.Errorf("opening the store: %w", err)
	}
	return nil
}

// close closes all and says what was wrong with the reports until now.
func (p *place) close() error {
	var errs []error
	for _, c := range p.containers {
		errs = append(errs, c.close())
	}
	p.containers = nil
	if p.store != nil {
		errs = append(errs, inTime("Store.Close", p.store.Close))
		p.store = nil
	}
	return errors.Join(errs...)
}

// reopen is what a new agent does. The check opens the containers that were there
// and calls Recovered.
func (p *place) reopen() error {
	if err := p.close(); err != nil {
		return err
	}
	return p.open()
}

// takeOver reopens the place with container a alone.
func (p *place) takeOver(live ...store.Handle) (*container, error) {
	if err := p.reopen(); err != nil {
		return nil, err
	}
	c, err := p.container("a", live...)
	if err != nil {
		return nil, err
	}
	p.store.Recovered()
	return c, nil
}

// container opens the part of a container.
func (p *place) container(id string, live ...store.Handle) (*container, error) {
	if p.arenas[id] == nil {
		p.arenas[id] = make([]byte, p.roomPages*store.PageSize)
	}
	c := newContainer(id, p.arenas[id])
	var err error
	c.space, err = p.store.Open(store.SpaceConfig{
		ID: id, Arena: c.arena, Release: c.release, Live: live, Done: c.done,
	})
	if err != nil {
		return nil, fmt.Errorf("opening container %s: %w", id, err)
	}
	p.containers = append(p.containers, c)
	return c, nil
}

// inTime runs f, which must come to an end.
func inTime(what string, f func() error) error {
	ended := make(chan error, 1)
	go func() { ended <- f() }()
	select {
	case err := <-ended:
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		return nil
	case <-time.After(patience):
		return fmt.Errorf("%s does not come to an end", what)
	}
}

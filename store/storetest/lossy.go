package storetest

import (
	"errors"
	"sync"

	"github.com/farpage/farpage/store"
)

// ErrLost is what a Lossy store says when its damage is Fails.
var ErrLost = errors.New("storetest: the page is lost")

// Damage is what a Lossy store does to a page that is read.
type Damage int

// What can go wrong with a page.
const (
	None     Damage = iota
	FlipBit         // one bit is wrong, another one each time
	Zeros           // all of it is zeros
	Truncate        // the second half is zeros
	Garbage         // every byte is wrong
	Fails           // reading says ErrLost
)

// Lossy is a store whose pages come back damaged. What is stored stays whole.
type Lossy struct {
	store.Store

	mu      sync.Mutex
	damage  Damage // mu
	reads   int    // mu: how many more are damaged; negative: all
	damaged int    // mu
}

// NewLossy makes inner lossy. At first it does no damage.
func NewLossy(inner store.Store) *Lossy { return &Lossy{Store: inner} }

// Damage sets what happens to the next reads (negative: to all from now on),
// by Get and TryGet alike.
func (l *Lossy) Damage(d Damage, reads int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.damage, l.reads = d, reads
}

// Damaged is how many reads were damaged.
func (l *Lossy) Damaged() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.damaged
}

// Open opens a space whose pages may come back damaged.
func (l *Lossy) Open(cfg store.SpaceConfig) (store.Space, error) {
	t := &tap{change: l.change}
	if err := openTap(l.Store, cfg, t); err != nil {
		return nil, err
	}
	return t, nil
}

func (l *Lossy) change(_ store.Handle, page []byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.damage == None || l.reads == 0 {
		return nil
	}
	if l.reads > 0 {
		l.reads--
	}
	l.damaged++
	switch l.damage {
	case FlipBit:
		bit := l.damaged * 4099 % (8 * len(page)) // a prime step
		page[bit/8] ^= 1 << (bit % 8)
	case Zeros:
		clear(page)
	case Truncate:
		clear(page[len(page)/2:])
	case Garbage:
		for i := range page {
			page[i] ^= 0xff
		}
	case Fails:
		return ErrLost
	}
	return nil
}

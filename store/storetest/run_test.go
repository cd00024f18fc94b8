package storetest

import (
	"fmt"
	"math"
	"testing"
	"time"

	"github.com/farpage/farpage/store"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestACorrectStorePasses(t *testing.T) { Run(t, toyMaker(noBug)) }

// run tries one check.
func run(tb testing.TB, name string, mk Maker) error {
	for _, c := range Checks() {
		if c.Name == name {
			return c.Run(tb, mk)
		}
	}
	tb.Fatalf("there is no check %q", name)
	return nil
}

func TestEachBugIsFoundByTheCheckThatIsAboutIt(t *testing.T) {
	defer func(was time.Duration) { patience = was }(patience)
	patience = 100 * time.Millisecond
	const (
		kinds  = "pages of every kind come back as they went"
		many   = "thousands of Ops are under way at once and end once each"
		isFull = "a full store says so and takes pages again after a Free"
	)
	const (
		reopened = "after reopening, pages in use are the same and all else is free"
		life     = "a store agrees with a map over a long random life"
	)
	names := map[bug][]string{
		flipsABit:           {kinds},
		mixesPagesUp:        {kinds, life},
		handleZero:          {kinds},
		reportsTwice:        {many},
		reportsInside:       {many},
		reportsNever:        {many},
		keepsTheBuffer:      {kinds},
		clearsTheTag:        {kinds},
		neverFull:           {isFull},
		fullTooEarly:        {isFull},
		fullForEver:         {isFull},
		showsOldContent:     {"freed room is used again and never shows old content", life},
		forgetsWhenReopened: {reopened, "after reopening, pages of every kind are the same", life},
		leaksWhenReopened:   {reopened, "after reopening, what is not in use needs no room"},
		handsOutEarly:       {"after reopening, the last container finds its pages whatever the first did"},
		keepsWhenDiscarded:  {"Discard frees everything"},
		neverShrinks:        {"Bytes goes up and down"},
		sharesContainers:    {"two containers have nothing in common"},
		closesAtOnce:        {"Close waits until every Op is reported"},
		panicsOnUnknown:     {"unknown handles do no harm"},
		takesAnyLength:      {"a buffer that is no page is an error"},
		allocates:           {"TryGet allocates nothing"},
	}
	named := map[string]bool{}
	for b := noBug + 1; b < bugs; b++ {
		for _, name := range names[b] {
			named[name] = true
			t.Run(fmt.Sprint(b, " ", name), func(t *testing.T) {
				if err := run(t, name, toyMaker(b)); err == nil {
					t.Error("not found")
				}
			})
		}
		if names[b] == nil {
			t.Errorf("bug %d has no check", b)
		}
	}
	for _, c := range Checks() {
		if !named[c.Name] {
			t.Errorf("no bug shows that %q can fail", c.Name)
		}
	}
}

func TestALossyStoreIsFoundOut(t *testing.T) {
	for _, damage := range []Damage{FlipBit, Zeros, Truncate, Garbage, Fails} {
		lossy := NewLossy(store.NewMem())
		lossy.Damage(damage, -1)
		err := Checks()[0].Run(t, func(testing.TB, int) func() (store.Store, error) {
			return func() (store.Store, error) { return lossy, nil }
		})
		if err == nil || lossy.Damaged() == 0 {
			t.Errorf("damage %d, %d times, is not found", damage, lossy.Damaged())
		}
	}
}

func TestAMixedUpStoreIsFoundOut(t *testing.T) {
	err := Checks()[0].Run(t, func(testing.TB, int) func() (store.Store, error) {
		return func() (store.Store, error) {
			w := NewWrongSlot(store.NewMem())
			w.Switch(true)
			return w, nil
		}
	})
	if err == nil {
		t.Error("not found")
	}
}

func TestFakesThatDoNothingAreStoresLikeAnyOther(t *testing.T) {
	for name, wrap := range map[string]func(store.Store) store.Store{
		"slow":      func(s store.Store) store.Store { return NewSlow(s, time.Microsecond) },
		"lossy":     func(s store.Store) store.Store { return NewLossy(s) },
		"wrongslot": func(s store.Store) store.Store { return NewWrongSlot(s) },
		"full":      func(s store.Store) store.Store { return NewFull(s, math.MaxInt64) },
	} {
		for _, c := range Checks() {
			t.Run(name+" "+c.Name, func(t *testing.T) {
				if err := c.Run(t, func(testing.TB, int) func() (store.Store, error) {
					return func() (store.Store, error) { return wrap(store.NewMem()), nil }
				}); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

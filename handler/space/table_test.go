package space

import (
	"errors"
	"math/rand/v2"
	"testing"
)

func newTable(t *testing.T, nodes int) (*Nodes, Table) {
	t.Helper()
	n := NewNodes(make([]Entry, nodes*Fan))
	tab, err := NewTable(n)
	if err != nil {
		t.Fatal(err)
	}
	return n, tab
}

// A plain map of pages stands beside the table under random operations.
func TestTheTableDoesWhatAPlainMapDoes(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	n, tab := newTable(t, 4000)
	model := map[uint64]Entry{}
	refs := map[uint32]int{}
	drop := func(s uint32) {
		refs[s]--
		if refs[s] < 0 {
			t.Fatalf("slot %d dropped more often than used", s)
		}
	}
	next := uint32(1)
	// Addresses around node borders of every level.
	bases := []uint64{0x1000, 1<<21 - 0x8000, 1<<30 - 0x10000, 1<<39 - 0x3000, 0x7ffff0000000, 5 << 30}
	addr := func() uint64 {
		return bases[r.IntN(len(bases))] + uint64(r.IntN(1200))*PageSize
	}
	mset := func(a uint64, e Entry) {
		if e == 0 {
			delete(model, a)
		} else {
			model[a] = e
		}
	}
	length := func() uint64 {
		if r.IntN(20) == 0 {
			return uint64(1+r.IntN(3)) << 30
		}
		return uint64(1+r.IntN(700)) * PageSize
	}
	each := func(start, end uint64, value Entry) {
		for a := start; a < end && a < Limit && end-start < 1<<28; a += PageSize {
			mset(a, value)
		}
	}
	for step := range 3000 {
		a := addr()
		switch r.IntN(6) {
		case 0, 1:
			if e := tab.Get(a); e.State() == Slot {
				drop(e.Slot())
			}
			refs[next]++
			e := tab.Get(a).To(Slot, next)
			next++
			if err := tab.Set(a, e); err != nil {
				t.Fatal(err)
			}
			mset(a, e)
		case 2:
			l := min(length(), 1<<27)
			if err := tab.Clear(a, a+l, drop); err != nil {
				t.Fatal(err)
			}
			each(a, a+l, 0)
		case 3:
			l := min(length(), 1<<24)
			if err := tab.Remove(a, a+l, drop); err != nil {
				t.Fatal(err)
			}
			each(a, a+l, Make(Removed, 0)|removedOnce)
		case 4:
			to, l := addr(), uint64(1+r.IntN(300))*PageSize
			if a < to+l && to < a+l {
				continue
			}
			if err := tab.Copy(a, to, l, drop); err != nil {
				t.Fatal(err)
			}
			if err := tab.Copy(a, to, l, drop); err != nil {
				t.Fatal(err)
			}
			for off := uint64(0); off < l; off += PageSize {
				mset(to+off, model[a+off])
			}
			if err := tab.Clear(a, a+l, nil); err != nil {
				t.Fatal(err)
			}
			each(a, a+l, 0)
		case 5:
			child, err := tab.Fork(func(s uint32) { refs[s]++ }, drop)
			if err != nil {
				t.Fatal(err)
			}
			for range 20 {
				if p := addr(); child.Get(p) != model[p] {
					t.Fatalf("step %d: child %#x: %v, want %v", step, p, child.Get(p), model[p])
				}
			}
			child.Free(drop)
		}
		for range 20 {
			if p := addr(); tab.Get(p) != model[p] {
				t.Fatalf("step %d: %#x: %#x, want %#x", step, p, tab.Get(p), model[p])
			}
		}
	}
	leaves := 0
	for at := uint64(0); ; {
		base, leaf, ok := tab.NextLeaf(at)
		if !ok {
			break
		}
		for i, e := range leaf {
			if a := base + uint64(i)*PageSize; model[a] != e {
				t.Fatalf("walk: %#x: %#x, want %#x", a, e, model[a])
			}
		}
		leaves++
		at = base + span(1)
	}
	if leaves == 0 {
		t.Fatal("the walk found no leaf")
	}
	other := NewNodes(n.mem)
	other.Recover([]uint32{tab.Root()})
	if other.Used() != n.Used() {
		t.Fatalf("after recovery %d nodes are in use, %d before", other.Used(), n.Used())
	}
	tab.Free(drop)
	if n.Used() != 0 {
		t.Fatalf("%d nodes are left after Free", n.Used())
	}
	for s, c := range refs {
		if c != 0 {
			t.Fatalf("slot %d has %d references after Free", s, c)
		}
	}
}

func TestATerabyteReservationThatIsRemovedCostsFewNodes(t *testing.T) {
	n, tab := newTable(t, 2000)
	if err := tab.Remove(1<<40, 2<<40, nil); err != nil {
		t.Fatal(err)
	}
	if n.Used() > 4 {
		t.Errorf("%d nodes", n.Used())
	}
	if s := tab.Get(1<<40 + 77*PageSize).State(); s != Removed {
		t.Errorf("state %v", s)
	}
	if err := tab.Set(1<<40, Make(Touched, 0)); err != nil {
		t.Fatal(err)
	}
	if s := tab.Get(1<<40 + PageSize).State(); s != Removed {
		t.Errorf("beside a set page: state %v, want removed", s)
	}
}

func TestTheTableSaysWhenItsMemoryIsUsedUp(t *testing.T) {
	_, tab := newTable(t, 4)
	if err := tab.Set(0x1000, Make(Touched, 0)); !errors.Is(err, ErrNoNodes) {
		t.Fatalf("error %v, want %v", err, ErrNoNodes)
	}
}

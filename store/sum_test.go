package store_test

import (
	"testing"

	"github.com/farpage/farpage/store"
	"github.com/farpage/farpage/store/storetest"
	"pgregory.net/rapid"
)

func TestSumChangesWithAnyBit(t *testing.T) {
	for _, page := range [][]byte{storetest.Zero.Page(0), storetest.Text.Page(1), storetest.Random.Page(2)} {
		seen := map[uint64]bool{}
		add := func(what string, bit int, sum uint64) {
			if seen[sum] {
				t.Fatalf("the sum does not change with bit %d of the %s", bit, what)
			}
			seen[sum] = true
		}
		const container, slot, generation = 7, 1 << 40, 3
		add("nothing", 0, store.Sum(page, container, slot, generation))
		for bit := range 8 * len(page) {
			page[bit/8] ^= 1 << (bit % 8)
			add("page", bit, store.Sum(page, container, slot, generation))
			page[bit/8] ^= 1 << (bit % 8)
		}
		for bit := range 64 {
			add("container", bit, store.Sum(page, container^1<<bit, slot, generation))
			add("slot", bit, store.Sum(page, container, slot^1<<bit, generation))
		}
		for bit := range 32 {
			add("generation", bit, store.Sum(page, container, slot, generation^1<<bit))
		}
	}
}

func TestSumTellsTheThreeNumbersApart(t *testing.T) {
	page := storetest.Text.Page(1)
	rapid.Check(t, func(t *rapid.T) {
		number := rapid.OneOf(rapid.Uint64Range(0, 9), rapid.Uint64())
		type where struct {
			container, slot uint64
			generation      uint32
		}
		draw := func(label string) where {
			return where{
				number.Draw(t, label+" container"), number.Draw(t, label+" slot"),
				uint32(number.Draw(t, label+" generation")),
			}
		}
		a, b := draw("a"), draw("b")
		sumA := store.Sum(page, a.container, a.slot, a.generation)
		sumB := store.Sum(page, b.container, b.slot, b.generation)
		if (a == b) != (sumA == sumB) {
			t.Fatalf("%+v has sum %#x, %+v has %#x", a, sumA, b, sumB)
		}
	})
}

// A sum outlives the agent that made it, so it may never come out differently.
func TestSumStaysTheSameAcrossVersions(t *testing.T) {
	if got, want := store.Sum(storetest.Zero.Page(0), 1, 2, 3), uint64(0x248de359b7e00a45); got != want {
		t.Errorf("%#x, want %#x", got, want)
	}
}

func TestSumAllocatesNothing(t *testing.T) {
	page := storetest.Text.Page(1)
	if n := testing.AllocsPerRun(10, func() { store.Sum(page, 1, 2, 3) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

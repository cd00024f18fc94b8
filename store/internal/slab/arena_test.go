package slab

import (
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func fillWith(a *Arena, lengthBytes int) (refs []Ref) {
	for {
		r, ok := a.Alloc(lengthBytes)
		if !ok {
			return refs
		}
		refs = append(refs, r)
	}
}

func TestAnArenaOfWholePagesIsUsedToTheLast(t *testing.T) {
	for _, pages := range []int64{1, 7, 16, 17, 16 * slabsPerChunk, 16*slabsPerChunk + 3} {
		if n := len(fillWith(New(pages*PageBytes), PageBytes)); int64(n) != pages {
			t.Errorf("%d of %d pages", n, pages)
		}
	}
}

func TestAnEmptySlabServesAnyClass(t *testing.T) {
	a := New(3 * Bytes)
	for _, length := range []int{PageBytes, 100, 2000, 3000, 16, PageBytes} {
		refs := fillWith(a, length)
		if want := 3 * slotsPerSlab[classOf[(length+Grain-1)/Grain]]; len(refs) != want {
			t.Fatalf("%d objects of %d bytes, want %d", len(refs), length, want)
		}
		for _, r := range refs {
			if !a.Free(r) {
				t.Fatalf("cannot free %v", r)
			}
		}
	}
}

func TestTheLastRoomIsFoundInLargerClasses(t *testing.T) {
	a := New(Bytes)
	if _, ok := a.Alloc(PageBytes); !ok {
		t.Fatal("no room for the first")
	}
	if n := len(fillWith(a, 10)); n != pagesPerSlab-1 {
		t.Fatalf("%d small objects beside a page", n)
	}
}

func TestFreeRefusesWhatIsNotInUse(t *testing.T) {
	a := New(200 * Bytes)
	r, _ := a.Alloc(1000)
	for _, bad := range []Ref{
		{r.Class, r.Offset + classBytes[r.Class]}, // not given out
		{r.Class + 1, r.Offset},                   // of another class
		{r.Class, 150 * Bytes},                    // where nothing ever was
		{0, 5 * Bytes},                            // in a slab without a class
		{r.Class, r.Offset + 16},
		{99, 0},
		{r.Class, -1},
	} {
		if a.Free(bad) {
			t.Errorf("freed %v", bad)
		}
	}
	if !a.Free(r) || a.Free(r) {
		t.Error("r is not freed exactly once")
	}
}

func TestClaimRefusesContradictions(t *testing.T) {
	a := New(2 * Bytes)
	page := uint8(Classes - 1)
	if !a.Claim(Ref{page, 0}) || a.Claim(Ref{page, 0}) {
		t.Error("a page is not claimed exactly once")
	}
	if a.Claim(Ref{0, 64}) {
		t.Error("claimed a small object inside a slab of pages")
	}
	if a.Claim(Ref{page, 2 * Bytes}) {
		t.Error("claimed what is outside")
	}
}

func TestALargeArenaCostsLittleUntilItIsUsed(t *testing.T) {
	a := New(1 << 40)
	if !a.Claim(Ref{Class: 0, Offset: 1<<40 - Bytes}) {
		t.Fatal("cannot claim at the end")
	}
	if _, ok := a.Alloc(1); !ok {
		t.Fatal("no room")
	}
	n := 0
	for _, c := range a.chunks {
		if c != nil {
			n++
		}
	}
	if n != 1 {
		t.Errorf("%d chunks exist; the slab at the end and its neighbours are one", n)
	}
}

// book is the slow and plain way to know what an Arena should say.
type book struct {
	arena   *Arena
	pages   int64
	live    []Ref
	touched map[int64]bool // by page
	taken   []Batch
}

func (b *book) used() map[int64]bool {
	used := map[int64]bool{}
	for _, r := range b.live {
		for p := r.Offset / PageBytes; p <= (r.Offset+classBytes[r.Class]-1)/PageBytes; p++ {
			used[p] = true
		}
	}
	return used
}

// checkLists walks every list in both directions: each slab is where its state
// says, and nowhere else.
func (b *book) checkLists() error {
	walk := func(name string, l list, by through, in func(*slab) bool) error {
		want, got, last := 0, 0, none
		for i := range b.arena.slabs {
			if s := b.arena.slab(i); s != nil && in(s) {
				want++
			}
		}
		for i := l.head; i != none; i = b.arena.link(by, i).next {
			if !in(b.arena.slab(i)) || b.arena.link(by, i).prev != last {
				return fmt.Errorf("slab %d does not belong into list %s there", i, name)
			}
			got, last = got+1, i
		}
		if got != want || l.tail != last {
			return fmt.Errorf("list %s has %d slabs and ends at %d, want %d and %d", name, got, l.tail, want, last)
		}
		return nil
	}
	err := errors.Join(
		walk("empty", b.arena.empty, byRoom, func(s *slab) bool { return !s.releasing && s.used == 0 }),
		walk("idle", b.arena.idle, byIdle, func(s *slab) bool { return !s.releasing && s.idle != 0 }))
	for c := range b.arena.partial {
		err = errors.Join(err, walk(fmt.Sprint("partial ", c), b.arena.partial[c], byRoom, func(s *slab) bool {
			return !s.releasing && s.used != 0 && int(s.class) == c && s.free != [len(s.free)]uint64{}
		}))
	}
	return err
}

func (b *book) check() error {
	if err := b.checkLists(); err != nil {
		return err
	}
	used := b.used()
	for p := range used {
		b.touched[p] = true
	}
	if got, want := b.arena.ResidentBytes(), int64(len(b.touched))*PageBytes; got != want {
		return fmt.Errorf("%d bytes resident, want %d", got, want)
	}
	if got, want := b.arena.IdleBytes(), int64(len(b.touched)-len(used))*PageBytes; got != want {
		return fmt.Errorf("%d bytes idle, want %d", got, want)
	}
	if got := b.arena.Objects(); got != int64(len(b.live)) {
		return fmt.Errorf("%d objects, want %d", got, len(b.live))
	}
	sorted := slices.Clone(b.live)
	slices.SortFunc(sorted, func(x, y Ref) int { return int(x.Offset - y.Offset) })
	for i := 1; i < len(sorted); i++ {
		if x, y := sorted[i-1], sorted[i]; x.Offset+classBytes[x.Class] > y.Offset {
			return fmt.Errorf("%v overlaps %v", x, y)
		}
	}
	free := int64(0)
	for offset, length := range b.arena.Unused() {
		for p := offset / PageBytes; p < (offset+length)/PageBytes; p++ {
			free++
			if used[p] {
				return fmt.Errorf("page %d is called unused", p)
			}
		}
	}
	if free+int64(len(used)) != b.pages {
		return fmt.Errorf("%d pages unused and %d used of %d", free, len(used), b.pages)
	}
	return nil
}

func TestBooksAgreeWithASimpleModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		pages := rapid.Int64Range(1, 100).Draw(t, "pages")
		b := &book{arena: New(pages * PageBytes), pages: pages, touched: map[int64]bool{}}
		length := rapid.OneOf(
			rapid.SampledFrom([]int{1, 1500, 3000, PageBytes}), rapid.IntRange(1, PageBytes))
		alloc := func(t *rapid.T) {
			n := length.Draw(t, "length")
			if r, ok := b.arena.Alloc(n); ok {
				if !r.Fits(n, pages*PageBytes) {
					t.Fatalf("%v for %d bytes", r, n)
				}
				for _, batch := range b.taken {
					if r.Offset/Bytes == int64(batch.slab) {
						t.Fatalf("%v is in a slab that is being released", r)
					}
				}
				b.live = append(b.live, r)
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"alloc": alloc,
			"alloc many": func(t *rapid.T) {
				for range 20 {
					alloc(t)
				}
			},
			"free": func(t *rapid.T) {
				for range rapid.IntRange(1, 20).Draw(t, "n") {
					if len(b.live) == 0 {
						return
					}
					i := rapid.IntRange(0, len(b.live)-1).Draw(t, "i")
					if r := b.live[i]; !b.arena.Free(r) || b.arena.Free(r) {
						t.Fatalf("%v is not freed once", r)
					}
					b.live = slices.Delete(b.live, i, i+1)
				}
			},
			"take": func(t *rapid.T) {
				if batch, ok := b.arena.Take(); ok {
					b.taken = append(b.taken, batch)
				}
			},
			"give": func(t *rapid.T) {
				if len(b.taken) == 0 {
					t.Skip("nothing is taken")
				}
				batch, released := b.taken[0], rapid.Bool().Draw(t, "released")
				b.taken = b.taken[1:]
				b.arena.Give(batch, released)
				if !released {
					return
				}
				n := 0
				for offset, length := range batch.Runs() {
					for p := offset / PageBytes; p < (offset+length)/PageBytes; p++ {
						delete(b.touched, p)
						n++
					}
				}
				if n != bits.OnesCount16(batch.pages) {
					t.Fatalf("the runs of %b have %d pages", batch.pages, n)
				}
			},
			"rebuild": func(t *rapid.T) {
				b.arena, b.taken = New(pages*PageBytes), nil
				for _, r := range rapid.Permutation(b.live).Draw(t, "live") {
					if !b.arena.Claim(r) || b.arena.Claim(r) {
						t.Fatalf("%v is not claimed once", r)
					}
				}
				b.touched = map[int64]bool{}
			},
			"": func(t *rapid.T) {
				if err := b.check(); err != nil {
					t.Fatal(err)
				}
			},
		})
		// However it came to this: once all is free, all can be used.
		for _, batch := range b.taken {
			b.arena.Give(batch, false)
		}
		for _, r := range b.live {
			if !b.arena.Free(r) {
				t.Fatalf("cannot free %v at the end", r)
			}
		}
		if n := len(fillWith(b.arena, PageBytes)); int64(n) != pages {
			t.Fatalf("%d of %d pages can be used at the end", n, pages)
		}
	})
}

package engine

import (
	"math/rand/v2"
	"testing"
)

func TestRangesDoWhatASetOfPagesDoes(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	var r ranges
	var set [200]bool
	for range 20000 {
		a, b := uint64(rnd.IntN(200)), uint64(rnd.IntN(200))
		if a >= b {
			continue
		}
		switch rnd.IntN(2) {
		case 0:
			r.add(a, b)
			for i := a; i < b; i++ {
				set[i] = true
			}
		case 1:
			r.remove(a, b)
			for i := a; i < b; i++ {
				set[i] = false
			}
		}
		var got [200]bool
		for i, s := range r {
			if s.start >= s.end || i > 0 && r[i-1].end >= s.start {
				t.Fatalf("not sorted or touching: %v", r)
			}
			for k := s.start; k < s.end; k++ {
				got[k] = true
			}
		}
		if got != set {
			t.Fatalf("%v is not %v", r, set)
		}
		a, b = uint64(rnd.IntN(200)), uint64(rnd.IntN(200))
		if a >= b {
			continue
		}
		all, some, missing := true, false, uint64(0)
		for i := a; i < b; i++ {
			all, some = all && set[i], some || set[i]
			if !set[i] {
				missing++
			}
		}
		r.gaps(a, b, func(s, e uint64) { missing -= e - s })
		if r.covers(a, b) != all || r.overlaps(a, b) != some || missing != 0 {
			t.Fatalf("%v: [%d,%d) covers %v overlaps %v, gaps off by %d", r, a, b, r.covers(a, b), r.overlaps(a, b), missing)
		}
	}
}

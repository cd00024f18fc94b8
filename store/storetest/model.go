package storetest

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"

	"github.com/farpage/farpage/store"
	"pgregory.net/rapid"
)

const (
	// modelRoomPages is room enough for modelMaxPages of mixed kinds.
	modelRoomPages = 1024
	modelMaxPages  = 200
)

// step is one thing that happens to a space in its life.
type step struct {
	what  action
	kind  Content
	count int    // how many pages
	seed  uint64 // content, and which pages
}

type action int

const (
	putPages action = iota
	freePages
	readPages
	newAgent
	actions
)

func (s step) String() string {
	return fmt.Sprintf("%s %d (%v, seed %d)", [...]string{"put", "free", "read", "reopen"}[s.what], s.count, s.kind, s.seed)
}

// steps draws a life.
func steps() *rapid.Generator[[]step] {
	return rapid.SliceOfN(rapid.Custom(func(t *rapid.T) step {
		return step{
			what:  rapid.SampledFrom([]action{putPages, putPages, putPages, freePages, freePages, readPages, newAgent}).Draw(t, "what"),
			kind:  rapid.SampledFrom(Contents()).Draw(t, "kind"),
			count: rapid.IntRange(1, 20).Draw(t, "count"),
			seed:  rapid.Uint64Range(0, 1000).Draw(t, "seed"),
		}
	}), 1, 40)
}

// randomLife is a life of a fixed seed, for those who have no rapid.T.
func randomLife(p *place) error {
	r := rand.New(rand.NewPCG(13, 13))
	life := make([]step, 300)
	for i := range life {
		life[i] = step{action(r.IntN(int(actions))), Contents()[r.IntN(int(contents))], 1 + r.IntN(20), r.Uint64()}
	}
	return live(p, life)
}

// live goes through a life beside a map that knows what each page holds.
func live(p *place, life []step) error {
	type stored struct {
		handle store.Handle
		page   []byte
	}
	var kept []stored
	c, err := p.container("a")
	if err != nil {
		return err
	}
	handles := func() (all []store.Handle) {
		for _, s := range kept {
			all = append(all, s.handle)
		}
		return all
	}
	for i, s := range life {
		r := rand.New(rand.NewPCG(s.seed, 0))
		var errs error
		switch s.what {
		case putPages:
			pages := make([][]byte, min(s.count, modelMaxPages-len(kept)))
			for n := range pages {
				pages[n] = s.kind.Page(s.seed + uint64(n))
			}
			added, err := c.store(pages...)
			for n, h := range added {
				kept = append(kept, stored{h, pages[n]})
			}
			errs = err
		case freePages:
			for range min(s.count, len(kept)) {
				n := r.IntN(len(kept))
				c.space.Free(kept[n].handle)
				kept = slices.Delete(kept, n, n+1)
			}
		case readPages:
			for range min(s.count, len(kept)) {
				one := kept[r.IntN(len(kept))]
				errs = errors.Join(errs, c.expect(one.handle, one.page))
			}
		case newAgent:
			c, errs = p.takeOver(handles()...)
		}
		if errs != nil {
			return fmt.Errorf("step %d, %v: %w", i, s, errs)
		}
	}
	for _, one := range kept {
		if err := c.expect(one.handle, one.page); err != nil {
			return fmt.Errorf("at the end: %w", err)
		}
	}
	return nil
}

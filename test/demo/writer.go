package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"
)

// writer rewrites the hot values, a few at a time, and has redis fork for its save
// in between. Nobody else writes, so what the save must hold is known exactly: the
// versions at the moment of the BGSAVE.
type writer struct {
	to     *server
	values *dataset
	now    versions

	writes int      // values rewritten
	saved  versions // as of the BGSAVE
}

// lead is how long values are rewritten before the save, so that redis forks with
// eviction at work.
const lead = 500 * time.Millisecond

// saveWhileWriting returns when redis has finished its save.
func (w *writer) saveWhileWriting(ctx context.Context) error {
	choose := rand.New(rand.NewPCG(3, 4))
	hot := min(hotValues, w.values.len())
	begin := time.Now()
	for {
		which := choose.Perm(hot)[:min(16, hot)]
		for _, i := range which {
			w.now[i]++
		}
		if err := w.to.set(ctx, w.values, w.now, which); err != nil {
			return err
		}
		w.writes += len(which)
		time.Sleep(2 * time.Millisecond) // a steady load, not all that the CPUs can do
		switch {
		case w.saved != nil:
			if saving, err := w.to.saving(ctx); err != nil || !saving {
				return err
			}
		case time.Since(begin) > lead:
			if err := w.to.client.BgSave(ctx).Err(); err != nil {
				return fmt.Errorf("tell redis to save: %w", err)
			}
			w.saved = slices.Clone(w.now)
		}
	}
}

package main

import (
	"context"
	"errors"
	"fmt"
)

// refaults measures the way back: all of a region, in order and in random order,
// against the kernel's swap, where the same pages go and come from. firstTouches
// measures what never was anywhere, against the program alone.

func refaults(ctx context.Context, b *bench) (err error) {
	ours, err := b.managed(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, ours.end()) }()
	if err := prepareRegion(ours, b.runPages); err != nil {
		return err
	}
	device, why := makeSwap(ctx, b.dir)
	if why != nil {
		b.report.skip("the kernel's swap", why)
		return refaultsAlone(ctx, b, ours)
	}
	defer func() { err = errors.Join(err, device.remove()) }()
	theirs, err := b.native(ctx)
	if err != nil {
		return err
	}
	// Before the device goes: what is swapped would have to be read back.
	defer func() { err = errors.Join(err, theirs.end()) }()
	if err := prepareRegion(theirs, b.runPages); err != nil {
		return err
	}
	for r := range b.repetitions {
		for _, order := range []string{"sequential", "random"} {
			if err := refaultOnce(ctx, b, ours, theirs, device.name, order, r); err != nil {
				return err
			}
		}
	}
	return nil
}

func prepareRegion(p *program, pages int) error {
	if _, err := p.do("map far %d 1", pages); err != nil {
		return err
	}
	_, err := p.do("fill")
	return err
}

// refaultOnce sends the pages away and has them come back, here and there. They are
// written in between, so that swap does not find old copies good.
func refaultOnce(ctx context.Context, b *bench, ours, theirs *program, device, order string, repetition int) error {
	for _, p := range []*program{ours, theirs} {
		if _, err := p.do("fill"); err != nil {
			return err
		}
	}
	_, out, err := ours.agent.evict(ctx, b.runPages)
	if err != nil {
		return err
	}
	paged, err := theirs.do("pageout")
	if err != nil {
		return err
	}
	if paged["pages"] < int64(b.runPages)*9/10 {
		return fmt.Errorf("MADV_PAGEOUT sent only %d of %d pages to swap", paged["pages"], b.runPages)
	}
	ourWalk, err := ours.do("walk %s %d", order, repetition)
	if err != nil {
		return fmt.Errorf("under farpage: %w", err)
	}
	theirWalk, err := theirs.do("walk %s %d", order, repetition)
	if err != nil {
		return fmt.Errorf("with swap: %w", err)
	}
	ourOut := float64(out.Nanoseconds()) / 1e3 / float64(b.runPages)
	b.report.pair("evict, in runs, beside swap", "µs/page", ourOut, device, paged.perPage())
	b.report.pair("refault, "+order, "µs/page", ourWalk.perPage(), device, theirWalk.perPage())
	return nil
}

func refaultsAlone(ctx context.Context, b *bench, ours *program) error {
	for r := range b.repetitions {
		for _, order := range []string{"sequential", "random"} {
			if _, err := ours.do("fill"); err != nil {
				return err
			}
			if _, _, err := ours.agent.evict(ctx, b.runPages); err != nil {
				return err
			}
			walk, err := ours.do("walk %s %d", order, r)
			if err != nil {
				return err
			}
			b.report.alone("refault, "+order, "µs/page", walk.perPage())
		}
	}
	return nil
}

// firstTouches writes to each page of a new mapping, in order.
func firstTouches(ctx context.Context, b *bench) error {
	return b.compare(ctx, func(ours, theirs *program) error {
		return b.turns(ctx, "first touch", "µs/page", ours, theirs, answer.perPage, "first %d", b.touchPages)
	})
}

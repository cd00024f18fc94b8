package main

import (
	"context"
	"errors"
	"time"
)

// evictions measures how long it takes to send pages far: all of a region, in runs,
// and every second page of one, which makes each page a run of its own.
func evictions(ctx context.Context, b *bench) (err error) {
	p, err := b.managed(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.end()) }()
	for _, kind := range []struct {
		name          string
		pages, stride int
	}{{"evict, in runs", b.runPages, 1}, {"evict, single pages", b.singlePages, 2}} {
		if _, err := p.do("map far %d %d", kind.pages*kind.stride, kind.stride); err != nil {
			return err
		}
		for range b.repetitions {
			if _, err := p.do("fill"); err != nil {
				return err
			}
			if err := evictOnce(ctx, b, p, kind.name, kind.pages); err != nil {
				return err
			}
		}
	}
	return nil
}

// evictOnce evicts what was just filled. To evict all ends when all that can be far
// is, and the store has all of it.
func evictOnce(ctx context.Context, b *bench, p *program, name string, pages int) error {
	agentBefore, err := threadsOf(p.agent.pid)
	if err != nil {
		return err
	}
	targetBefore, err := threadsOf(p.pid)
	if err != nil {
		return err
	}
	evicted, took, err := p.agent.evict(ctx, pages)
	if err != nil {
		return err
	}
	if err := p.agent.stored(ctx); err != nil {
		return err
	}
	agentAfter, err := threadsOf(p.agent.pid)
	if err != nil {
		return err
	}
	targetAfter, err := threadsOf(p.pid)
	if err != nil {
		return err
	}
	engine, err := engineThread(p.agent.pid)
	if err != nil {
		return err
	}
	serving, _ := usage(agentBefore, agentAfter, func(tid int, _ thread) bool { return tid == engine })
	storing, _ := usage(agentBefore, agentAfter, func(tid int, _ thread) bool { return tid != engine })
	helper, _ := usage(targetBefore, targetAfter, shimHelper)
	each := func(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e3 / float64(evicted) }
	b.report.alone(name+": wall", "µs/page", each(took))
	b.report.alone(name+": CPU of the engine", "µs/page", each(serving))
	b.report.alone(name+": CPU of the store", "µs/page", each(storing))
	b.report.alone(name+": CPU of the helper", "µs/page", each(helper))
	return nil
}

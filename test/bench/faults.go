package main

import (
	"context"
	"errors"
	"fmt"
)

// placement says on which CPUs the thread that faults and whoever answers are, with
// all their other threads.
type placement struct {
	name             string
	target, answerer []int // CPUs
}

// placements are unpinned, both on one CPU, and each on its own.
func placements() ([]placement, error) {
	cpus, err := ownCPUs()
	if err != nil || len(cpus) == 0 {
		return nil, err
	}
	list := []placement{{"unpinned", cpus, cpus}, {"one CPU", cpus[:1], cpus[:1]}}
	if len(cpus) > 1 {
		list = append(list, placement{"two CPUs", cpus[:1], cpus[1:2]})
	}
	return list, nil
}

// faulting is two targets that fault alike: one that farpage serves, one that the C
// loop serves.
type faulting struct {
	b           *bench
	ours, loops *program
}

func startFaulting(ctx context.Context, b *bench) (*faulting, error) {
	ours, err := b.managed(ctx)
	if err != nil {
		return nil, err
	}
	loops, err := b.looped(ctx, b.faultPages)
	if err != nil {
		return nil, errors.Join(err, ours.end())
	}
	f := &faulting{b, ours, loops}
	for _, p := range []*program{ours, loops} {
		if _, err := p.do("map far %d 1", b.faultPages); err != nil {
			return nil, errors.Join(err, f.end())
		}
	}
	// The C loop gives the same bytes from its buffer.
	if _, err := ours.do("fill"); err != nil {
		return nil, errors.Join(err, f.end())
	}
	return f, nil
}

func (f *faulting) end() error { return errors.Join(f.ours.end(), f.loops.end()) }

func (f *faulting) place(at placement) error {
	return errors.Join(
		pin(f.ours.pid, at.target...), pin(f.ours.agent.pid, at.answerer...),
		pin(f.loops.pid, at.target...), pin(f.loops.helper.Process.Pid, at.answerer...))
}

// missing makes a region's pages missing in both targets: far, or never touched.
func (f *faulting) missing(ctx context.Context, region string) error {
	if region == "zero" {
		for _, p := range []*program{f.ours, f.loops} {
			if _, err := p.do("map zero %d 1", f.b.faultPages); err != nil {
				return err
			}
		}
		return nil
	}
	if _, _, err := f.ours.agent.evict(ctx, f.b.faultPages); err != nil {
		return err
	}
	if err := f.ours.agent.stored(ctx); err != nil {
		return err
	}
	_, err := f.loops.do("drop")
	return err
}

// faults measures, in the thread that faults, how long a touch of one page takes.
func faults(ctx context.Context, b *bench) (err error) {
	f, err := startFaulting(ctx, b)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.end()) }()
	list, err := placements()
	if err != nil {
		return err
	}
	if len(list) < 3 {
		b.report.skip("faults on two CPUs", errors.New("there is one CPU"))
	}
	for _, at := range list {
		if err := f.place(at); err != nil {
			return err
		}
		for _, kind := range []struct {
			region, name string
			faults, rest int
		}{
			{"far", "", b.faults, 0},
			{"zero", "", b.faults, 0},
			{"far", " after 1 ms", b.restedFaults, 1000},
		} {
			for r := range b.repetitions {
				name := fmt.Sprintf("fault, %s page%s, %s, ", kind.region, kind.name, at.name)
				if err := f.once(ctx, name, kind.region, kind.faults, r, kind.rest); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// once has both targets touch the same pages, one by one in random order.
func (f *faulting) once(ctx context.Context, name, region string, count, seed, rest int) error {
	if err := f.missing(ctx, region); err != nil {
		return err
	}
	ours, err := f.ours.do("single %s %d %d %d", region, count, seed, rest)
	if err != nil {
		return fmt.Errorf("under farpage: %w", err)
	}
	loops, err := f.loops.do("single %s %d %d %d", region, count, seed, rest)
	if err != nil {
		return fmt.Errorf("with the C loop: %w", err)
	}
	for _, point := range []string{"p50", "p99"} {
		f.b.report.pair(name+point, "µs", ours.us(point), "C loop", loops.us(point))
	}
	return nil
}

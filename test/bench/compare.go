package main

import (
	"context"
	"errors"
)

// compare runs f with a target under farpage and one without.
func (b *bench) compare(ctx context.Context, f func(ours, theirs *program) error) (err error) {
	ours, err := b.managed(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, ours.end()) }()
	theirs, err := b.native(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, theirs.end()) }()
	return f(ours, theirs)
}

const alone = "the program alone"

// turns has both targets do the same in turn. One that goes first has made neither
// better nor worse for the other, so the order is changed each time.
func (b *bench) turns(ctx context.Context, measure, unit string, ours, theirs *program, value func(answer) float64, command string, values ...any) error {
	for r := range b.repetitions {
		var got [2]float64
		for k := range got {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			who := []*program{ours, theirs}[(r+k)%2]
			a, err := who.do(command, values...)
			if err != nil {
				return err
			}
			got[(r+k)%2] = value(a)
		}
		b.report.pair(measure, unit, got[0], alone, got[1])
	}
	return nil
}

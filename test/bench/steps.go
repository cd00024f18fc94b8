package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// The moments of one fault, in the order in which they come when all goes well.
const (
	faulted   = iota // the thread is in the kernel with its fault
	called           // the kernel wakes who answers
	told             // its poll has returned
	read             // it has read the fault
	answering        // it gives the page
	woken            // the kernel wakes the thread
	back             // the thread is on a CPU
	moments
)

// stepNames say what happens before each moment.
var stepNames = [moments]string{
	called: "fault to its wake-up", told: "wake-up to out of poll", read: "read of the fault",
	answering: "finding the answer", woken: "UFFDIO_COPY to its wake-up", back: "wake-up to the thread running",
}

// steps takes a fault on a far page apart, by the kernel's own events. Tracing makes
// each step a little longer.
func steps(ctx context.Context, b *bench) (err error) {
	f, err := startFaulting(ctx, b)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.end()) }()
	t, err := openTracer(b.dir)
	if err != nil {
		b.report.skip("the steps of a fault", err)
		return nil
	}
	defer func() { err = errors.Join(err, t.close()) }()
	list, err := placements()
	if err != nil {
		return err
	}
	answerer, err := engineThread(f.ours.agent.pid)
	if err != nil {
		return err
	}
	for _, at := range list[1:] {
		err := f.stepsAt(ctx, t, at, answerer)
		if errors.Is(err, errNotShown) {
			b.report.skip("the steps of a fault, "+at.name, err)
		} else if err != nil {
			return err
		}
	}
	return nil
}

// errNotShown says that a trace has not enough of its faults from end to end: not
// every kernel tells of all switches from the idle task.
var errNotShown = errors.New("the trace does not show the faults")

// stepsAt measures with the threads placed.
func (f *faulting) stepsAt(ctx context.Context, t *tracer, at placement, answerer int) error {
	if err := f.place(at); err != nil {
		return err
	}
	var ours, loops [][moments]float64
	for r := range f.b.repetitions {
		if err := f.missing(ctx, "far"); err != nil {
			return err
		}
		our, err := f.trace(t, f.ours, answerer, r)
		if err != nil {
			return fmt.Errorf("under farpage: %w", err)
		}
		loop, err := f.trace(t, f.loops, f.loops.helper.Process.Pid, r)
		if err != nil {
			return fmt.Errorf("with the C loop: %w", err)
		}
		ours, loops = append(ours, our), append(loops, loop)
	}
	for r := range ours {
		for step := called; step < moments; step++ {
			f.b.report.pair("step, far page, "+at.name+": "+stepNames[step], "µs", ours[r][step], "C loop", loops[r][step])
		}
		f.b.report.pair("steps, far page, "+at.name+": all of these", "µs", ours[r][faulted], "C loop", loops[r][faulted])
	}
	return nil
}

// trace has a target fault and returns how long each step took in the middle, in µs,
// the sum of them first.
func (f *faulting) trace(t *tracer, p *program, answerer, repetition int) ([moments]float64, error) {
	var middles [moments]float64
	// The trace's buffers hold some 30 events for each fault.
	count := min(f.b.faults, 1000)
	events, tick, err := t.record(p.pid, answerer, func() error {
		_, err := p.do("single far %d %d 0", count, repetition)
		return err
	})
	if err != nil {
		return middles, err
	}
	// Where the next fault comes before who answers is asleep, there is no waking to
	// be seen: that one is left out.
	found := faultsIn(events, p.pid, answerer)
	if len(found) <= count/50 {
		return middles, fmt.Errorf("%w: %d of %d", errNotShown, len(found), count)
	}
	for step := called; step < moments; step++ {
		var took []float64
		for _, at := range found {
			took = append(took, float64(at[step]-at[step-1])*tick/1e3)
		}
		slices.Sort(took)
		middles[step] = took[len(took)/2]
		middles[faulted] += middles[step]
	}
	return middles, nil
}

// faultsIn finds the faults of a thread for which each moment came, in order.
func faultsIn(events []event, thread, answerer int) [][moments]uint64 {
	var all [][moments]uint64
	var at [moments]uint64
	next := moments
	for _, e := range events {
		if e.tid == thread && e.name == "page_fault_user" {
			at = [moments]uint64{}
			next = faulted
		}
		if next == moments || !e.is(next, thread, answerer) {
			continue
		}
		at[next] = e.ticks
		if next++; next == moments && slices.IsSorted(at[:]) {
			all = append(all, at)
		}
	}
	return all
}

// is says whether an event is a moment of a fault.
func (e event) is(moment, thread, answerer int) bool {
	woke := func(tid int) bool { return e.name == "sched_waking" && e.field("pid") == strconv.Itoa(tid) }
	runs := func(tid int) bool { return e.name == "sched_switch" && e.field("next_pid") == strconv.Itoa(tid) }
	switch moment {
	case faulted:
		return e.tid == thread && e.name == "page_fault_user"
	case called:
		return e.tid == thread && woke(answerer)
	case told:
		return e.tid == answerer && e.name == "sys_exit" && e.call() != unix.SYS_READ
	case read:
		return e.tid == answerer && e.name == "sys_exit" && e.call() == unix.SYS_READ
	case answering:
		return e.tid == answerer && e.name == "sys_enter" && e.call() == unix.SYS_IOCTL
	case woken:
		return e.tid == answerer && woke(thread)
	case back:
		return runs(thread)
	}
	return false
}

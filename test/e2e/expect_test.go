package e2e

import (
	"bytes"
	"testing"
)

// mostResidentBytes is what a program may have resident at most: the first tests'
// bound. The promise itself is tighter (10 % or 8 MiB).
func mostResidentBytes(budget int64) int64 { return budget + max(budget/4, 16<<20) }

// Fewer pages than these and the program did not have its memory far.
const fewestPages = 1000

func (o outcome) log(t *testing.T) {
	t.Helper()
	s := o.stats
	t.Logf("%.1f s, peak %v; %d faults (%d far, %d zero; p50 %d us, p99 %d us), %d pages evicted, %d restored, %d forks, %d execs",
		o.duration.Seconds(), o.peak, s.Faults.Total, s.Faults.ServedFar, s.Faults.ServedZero, s.Faults.P50Us, s.Faults.P99Us,
		s.EvictedPages, s.RestoredPages, s.Forks, s.Execs)
}

// expectSame says that the program did what it does without farpage.
func (o outcome) expectSame(t *testing.T, native outcome) {
	t.Helper()
	if o.status != native.status {
		t.Errorf("exit status %d, without farpage %d\nstderr:\n%s", o.status, native.status, tail(o.stderr))
	}
	if !bytes.Equal(o.stdout, native.stdout) {
		t.Errorf("stdout differs:\n%s\nwithout farpage:\n%s\nstderr:\n%s",
			tail(linesWithout(o.stdout, native.stdout)), tail(linesWithout(native.stdout, o.stdout)), tail(o.stderr))
	}
}

// linesWithout are the lines of a text that another does not have.
func linesWithout(text, other []byte) []byte {
	known := map[string]bool{}
	for line := range bytes.Lines(other) {
		known[string(line)] = true
	}
	var rest []byte
	for line := range bytes.Lines(text) {
		if !known[string(line)] {
			rest = append(rest, line...)
		}
	}
	return rest
}

// expectSound says that nothing was found wrong by the agent itself.
func (o outcome) expectSound(t *testing.T) {
	t.Helper()
	s := o.stats
	if s.Schema != 1 || s.BudgetBytes != o.budget {
		t.Errorf("schema %d, budget %d: want 1, %d", s.Schema, s.BudgetBytes, o.budget)
	}
	if s.Faults.Unexplained != 0 {
		t.Errorf("%d faults were unexplained\nstderr:\n%s", s.Faults.Unexplained, tail(o.stderr))
	}
	if s.Errors.Store != 0 || s.Errors.Checksum != 0 || s.Errors.Protocol != 0 {
		t.Errorf("errors: %+v\nstderr:\n%s", s.Errors, tail(o.stderr))
	}
	if s.Processes.Unmanaged != 0 {
		t.Errorf("%d processes were unmanaged\nstderr:\n%s", s.Processes.Unmanaged, tail(o.stderr))
	}
}

// expectFar says that the program's memory really was far, and came back.
func (o outcome) expectFar(t *testing.T) {
	t.Helper()
	if o.stats.EvictedPages <= fewestPages || o.stats.RestoredPages <= fewestPages {
		t.Errorf("%d pages evicted, %d restored: want more than %d of each", o.stats.EvictedPages, o.stats.RestoredPages, fewestPages)
	}
}

func (o outcome) expectInBudget(t *testing.T) {
	t.Helper()
	if most := mostResidentBytes(o.budget); o.peak.Samples == 0 || o.peak.PeakBytes > most {
		t.Errorf("peak %v: want at most %.1f MiB", o.peak, float64(most)/(1<<20))
	}
}

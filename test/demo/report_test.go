package main

import (
	"io"
	"strings"
	"testing"

	"github.com/farpage/farpage/api"
	"github.com/farpage/farpage/test/container"
)

// good is what a run with farpage looks like when all holds.
func good() *result {
	return &result{
		farpage:  true,
		resident: container.Resident{PeakBytes: budgetBytes + slackBytes, Samples: 100},
		stats:    api.Container{Stats: api.Stats{FarBytes: mib}},
		farBytes: mib, saveEvicted: 1,
		readBack: &checked{right: 10}, save: &checked{right: 10},
	}
}

func TestReportFailsWhenAnythingDoesNotHold(t *testing.T) {
	if err := report(io.Discard, []*result{good()}); err != nil {
		t.Errorf("a good run: %v", err)
	}
	for what, spoil := range map[string]func(*result){
		"a wrong value":             func(r *result) { r.readBack.wrong = 1 },
		"a wrong value in the save": func(r *result) { r.save.wrong = 1 },
		"nothing read back":         func(r *result) { r.readBack.right = 0 },
		"nothing in the save":       func(r *result) { r.save.right = 0 },
		"never sampled":             func(r *result) { r.resident.Samples = 0 },
		"over the budget":           func(r *result) { r.resident.PeakBytes++ },
		"nothing far":               func(r *result) { r.farBytes = 0 },
		"no eviction in the save":   func(r *result) { r.saveEvicted = 0 },
		"an unexplained fault":      func(r *result) { r.stats.Faults.Unexplained = 1 },
		"a checksum that failed":    func(r *result) { r.stats.Errors.Checksum = 1 },
	} {
		r := good()
		spoil(r)
		if report(io.Discard, []*result{r}) == nil {
			t.Errorf("%s goes unnoticed", what)
		}
	}
}

func TestWrongValuesAreDescribed(t *testing.T) {
	lost := make([]byte, 3*4096)
	for i := range lost {
		lost[i] = 'x'
	}
	clear(lost[4096:8192])
	for _, c := range []struct {
		got, want, says string
	}{
		{"", "abc", "has 0 bytes instead of 3"},
		{"abX", "abc", `1 differ, from 2 to 2; what was read there begins with "X"`},
		{string(lost), strings.Repeat("x", len(lost)), "4096 differ, from 4096 to 8191; what was read there is all zeros"},
	} {
		var seen checked
		seen.compare("key", []byte(c.want), []byte(c.want))
		seen.compare("key", []byte(c.got), []byte(c.want))
		if seen.right != 1 || seen.wrong != 1 || !strings.Contains(seen.examples[0], c.says) {
			t.Errorf("%+v does not say %q", seen, c.says)
		}
	}
}

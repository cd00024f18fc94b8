package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strconv"
	"text/tabwriter"
)

// report collects lines in the order in which they first came.
type report struct {
	repetitions int
	lines       []*line
	notes       []string
}

// line is one measure: samples of farpage's, and where there is something to hold
// them against, samples of that, taken in turn. Less is better in all of them.
type line struct {
	Measure string    `json:"measure"`
	Unit    string    `json:"unit"`
	Farpage []float64 `json:"farpage"`
	Against string    `json:"against,omitempty"`
	Other   []float64 `json:"other,omitempty"`
}

// spread is what is printed of samples.
type spread struct{ min, median, max float64 }

// pair adds one repetition to a line.
func (r *report) pair(measure, unit string, farpage float64, against string, other float64) {
	l := r.line(measure, unit, against)
	l.Farpage = append(l.Farpage, farpage)
	l.Other = append(l.Other, other)
}

// alone adds one repetition to a line that has nothing to be held against.
func (r *report) alone(measure, unit string, farpage float64) {
	l := r.line(measure, unit, "")
	l.Farpage = append(l.Farpage, farpage)
}

// skip notes why something was not measured.
func (r *report) skip(what string, why error) {
	r.notes = append(r.notes, fmt.Sprintf("%s: not measured: %v", what, why))
}

func (r *report) line(measure, unit, against string) *line {
	i := slices.IndexFunc(r.lines, func(l *line) bool { return l.Measure == measure && l.Against == against })
	if i >= 0 {
		return r.lines[i]
	}
	l := &line{Measure: measure, Unit: unit, Against: against}
	r.lines = append(r.lines, l)
	return l
}

// whole says which lines have too few samples, or impossible ones.
func (r *report) whole() error {
	var errs []error
	for _, l := range r.lines {
		if len(l.Farpage) < r.repetitions || l.Against != "" && len(l.Other) < r.repetitions {
			errs = append(errs, fmt.Errorf("%s: %d and %d samples, want %d", l.Measure, len(l.Farpage), len(l.Other), r.repetitions))
		}
		for _, v := range slices.Concat(l.Farpage, l.Other) {
			if v < 0 || math.IsNaN(v) || math.IsInf(v, 0) {
				errs = append(errs, fmt.Errorf("%s: a sample is %v", l.Measure, v))
			}
		}
	}
	return errors.Join(errs...)
}

// ratios are farpage's samples divided by what was measured beside each.
func (l *line) ratios() []float64 {
	var all []float64
	for i := range min(len(l.Farpage), len(l.Other)) {
		if l.Other[i] > 0 {
			all = append(all, l.Farpage[i]/l.Other[i])
		}
	}
	return all
}

func spreadOf(samples []float64) spread {
	if len(samples) == 0 {
		return spread{}
	}
	s := slices.Sorted(slices.Values(samples))
	return spread{s[0], s[len(s)/2], s[len(s)-1]}
}

// String is the median, and the range in brackets.
func (s spread) String() string {
	return digits(s.median) + " [" + digits(s.min) + " " + digits(s.max) + "]"
}

// digits prints three that count.
func digits(v float64) string {
	decimals := 0
	if v != 0 {
		decimals = max(0, 2-int(math.Floor(math.Log10(math.Abs(v)))))
	}
	return strconv.FormatFloat(v, 'f', min(decimals, 3), 64)
}

// print writes the table.
func (r *report) print(out io.Writer) error {
	t := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	fmt.Fprintf(t, "MEASURE\tUNIT\tFARPAGE\tAGAINST\t\tRATIO\n")
	for _, l := range r.lines {
		fmt.Fprintf(t, "%s\t%s\t%s", l.Measure, l.Unit, spreadOf(l.Farpage))
		if l.Against != "" {
			fmt.Fprintf(t, "\t%s\t%s\t%s", l.Against, spreadOf(l.Other), spreadOf(l.ratios()))
		}
		fmt.Fprintln(t)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(out, "\nMedians, [minimum maximum], of %d repetitions in turn; a ratio is that of each pair.\n", r.repetitions)
	for _, note := range r.notes {
		fmt.Fprintln(out, note)
	}
	return err
}

func (r *report) writeJSON(path string) error {
	b, err := json.MarshalIndent(struct {
		Lines []*line  `json:"lines"`
		Notes []string `json:"notes"`
	}{r.lines, r.notes}, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(b, '\n'), 0o644)
}

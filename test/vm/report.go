package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/farpage/farpage/test/vm/steps"
)

// report prints what the side inside says, and remembers it for the verdict.
type report struct {
	out    io.Writer
	began  time.Time // of the step
	at     string    // the step that is under way; empty: none
	passed []string
	failed []string
}

func newReport(out io.Writer) *report { return &report{out: out} }

// line takes a line of the side inside.
func (r *report) line(text []byte) {
	text = bytes.TrimSpace(text)
	if len(text) == 0 {
		return
	}
	l, err := steps.Decode(text)
	if err != nil {
		r.failed = append(r.failed, err.Error())
		return
	}
	switch l.State {
	case steps.Began:
		r.at, r.began = l.Step, time.Now()
		fmt.Fprintf(r.out, "%s  %s\n", r.began.Format(time.TimeOnly), l.Step)
	case steps.Note, steps.Wrong:
		word := "          "
		if l.State == steps.Wrong {
			word = "    WRONG "
			r.failed = append(r.failed, l.Step)
		}
		fmt.Fprintf(r.out, "%s%s\n", word, strings.ReplaceAll(strings.TrimSpace(l.Text), "\n", "\n          "))
	case steps.Passed:
		r.passed, r.at = append(r.passed, l.Step), ""
		fmt.Fprintf(r.out, "          passed, %d s\n", int(time.Since(r.began).Seconds()))
	case steps.Failed:
		r.failed = append(r.failed, l.Step)
		fmt.Fprintf(r.out, "    FAILED\n%s\n", l.Text)
	default:
		r.failed = append(r.failed, fmt.Sprintf("the side inside says %q", text))
	}
}

// brokenOff says that the VM ended in the middle of a step which had not failed.
func (r *report) brokenOff() bool { return r.at != "" && len(r.failed) == 0 }

// verdict says what was wrong: ended is how the VM did. Every step must have passed, in
// its order, and nothing else have been said.
func (r *report) verdict(ended error) error {
	errs := []error{ended}
	if r.brokenOff() {
		errs = append(errs, fmt.Errorf("the VM ended in the middle of %q", r.at))
	}
	said := map[string]bool{}
	for _, what := range r.failed {
		if !said[what] {
			errs = append(errs, fmt.Errorf("failed: %s", what))
		}
		said[what] = true
	}
	for i, name := range steps.Names {
		if i >= len(r.passed) || r.passed[i] != name {
			errs = append(errs, fmt.Errorf("did not pass, or not in its turn: %q and what follows it", name))
			break
		}
	}
	if more := len(r.passed) - len(steps.Names); more > 0 {
		errs = append(errs, fmt.Errorf("%d steps more than there are", more))
	}
	return errors.Join(errs...)
}

// shutdownsInOrder reads the console: systemd tells there whom it had to wait for when
// the host went down.
func shutdownsInOrder(console string) error {
	text, err := os.ReadFile(console)
	if err != nil {
		return err
	}
	var errs []error
	for line := range strings.Lines(string(text)) {
		if strings.Contains(line, "Waiting for process") && strings.Contains(line, "farpage") {
			errs = append(errs, fmt.Errorf("the host's end waited: %s", strings.TrimSpace(line)))
		}
	}
	return errors.Join(errs...)
}

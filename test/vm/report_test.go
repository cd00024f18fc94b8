package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/farpage/farpage/test/vm/steps"
)

// all are the lines of a run in which everything passed.
func all() (lines []steps.Line) {
	for _, name := range steps.Names {
		lines = append(lines, steps.Line{Step: name, State: steps.Began}, steps.Line{Step: name, State: steps.Passed})
	}
	return lines
}

func TestVerdict(t *testing.T) {
	last := steps.Names[len(steps.Names)-1]
	for name, c := range map[string]struct {
		lines []steps.Line
		ended error
		want  string // empty: all is well
	}{
		"all passed":            {lines: all()},
		"notes do no harm":      {lines: append([]steps.Line{{Step: "x", State: steps.Note, Text: "a\nb"}}, all()...)},
		"the VM says nothing":   {want: "did not pass, or not in its turn: \"" + steps.Names[0]},
		"it ends early":         {lines: all()[:2*len(steps.Names)-1], want: "in the middle of \"" + last},
		"a step is left out":    {lines: slices.Delete(all(), 4, 6), want: steps.Names[2]},
		"one passes twice":      {lines: append(all(), all()[:2]...), want: "more than there are"},
		"something is wrong":    {lines: append(all(), steps.Line{Step: last, State: steps.Wrong, Text: "left: x"}), want: "failed: " + last},
		"a step fails":          {lines: append(all()[:5], steps.Line{Step: steps.Names[2], State: steps.Failed}), want: "failed: " + steps.Names[2]},
		"a word nobody knows":   {lines: append(all(), steps.Line{State: "else"}), want: "else"},
		"the VM ends in a mess": {lines: all(), ended: errors.New("exit status 1"), want: "exit status 1"},
	} {
		var out bytes.Buffer
		r := newReport(&out)
		for _, l := range c.lines {
			r.line(bytes.TrimSpace(l.Encode()))
		}
		err := r.verdict(c.ended)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

func TestWhatIsNoLineIsAFailure(t *testing.T) {
	r := newReport(&bytes.Buffer{})
	for _, l := range all() {
		r.line(l.Encode())
	}
	r.line([]byte("panic: x"))
	if err := r.verdict(nil); err == nil || !strings.Contains(err.Error(), "panic: x") {
		t.Error(err)
	}
}

func TestShutdownThatWaitsForFarpageIsAFailure(t *testing.T) {
	console := filepath.Join(t.TempDir(), "console")
	const others = "[  100.1] systemd-shutdown[1]: Waiting for process: 77 (sleep)\r\nfarpage is fine\r\n"
	for text, want := range map[string]bool{others: true, others + "[  101.2] systemd-shutdown[1]: Waiting for process: 12 (farpage-keeper)\r\n": false} {
		if err := os.WriteFile(console, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := shutdownsInOrder(console); (err == nil) != want {
			t.Errorf("%q: %v", text, err)
		}
	}
}

package hook

import (
	"bytes"
	"strings"
	"testing"
)

func TestACommandLineOfAnotherVersionStopsNoContainer(t *testing.T) {
	for _, args := range [][]string{
		{"--from-the-future", "prestart"},
		{"--socket-dir"},
		{"poststop"},
		{},
		{"prestart", "createRuntime"},
	} {
		var stdout, stderr bytes.Buffer
		if status := Main("v1", args, strings.NewReader("not even JSON"), &stdout, &stderr); status != 0 {
			t.Errorf("%q: status %d", args, status)
		}
		if !strings.HasPrefix(stderr.String(), "farpage-hook: ") || !strings.Contains(stderr.String(), "nothing is done") {
			t.Errorf("%q: %q", args, stderr.String())
		}
		if stdout.Len() > 0 {
			t.Errorf("%q: %q on standard output", args, stdout.String())
		}
	}
}

func TestHelpAndVersionAreForPeople(t *testing.T) {
	var stdout, stderr bytes.Buffer
	if status := Main("v1.2.3", []string{"--version"}, nil, &stdout, &stderr); status != 0 || stdout.String() != "farpage-hook v1.2.3\n" {
		t.Errorf("%d, %q", status, stdout.String())
	}
	stdout.Reset()
	if status := Main("v1.2.3", []string{"--help"}, nil, &stdout, &stderr); status != 0 || !strings.Contains(stdout.String(), "-socket-dir folder") {
		t.Errorf("%d, %q", status, stdout.String())
	}
	if stderr.Len() > 0 {
		t.Errorf("standard error: %q", stderr.String())
	}
}

package main

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// agentLimits are those of setrlimit(2) that a program may well run under and the
// agent not: it maps much address space and sizes large files in memory.
var agentLimits = []struct {
	resource int
	name     string
	option   string // of a shell's ulimit
	enough   uint64
}{
	{unix.RLIMIT_AS, "RLIMIT_AS", "-v", unix.RLIM_INFINITY},
	{unix.RLIMIT_FSIZE, "RLIMIT_FSIZE", "-f", unix.RLIM_INFINITY},
	{unix.RLIMIT_DATA, "RLIMIT_DATA", "-d", unix.RLIM_INFINITY},
	{unix.RLIMIT_CPU, "RLIMIT_CPU", "-t", unix.RLIM_INFINITY},
	{unix.RLIMIT_NOFILE, "RLIMIT_NOFILE", "-n", 1024},
}

// liftLimits frees the agent of the limits of whoever has started it: under `farpage
// run` they are meant for the command. What is hard goes with CAP_SYS_RESOURCE only.
func liftLimits() {
	for _, l := range agentLimits {
		var has unix.Rlimit
		if unix.Getrlimit(l.resource, &has) != nil || has.Cur >= l.enough {
			continue
		}
		if unix.Setrlimit(l.resource, &unix.Rlimit{Cur: l.enough, Max: max(has.Max, l.enough)}) != nil {
			_ = unix.Setrlimit(l.resource, &unix.Rlimit{Cur: has.Max, Max: has.Max}) // what there is will do
		}
	}
}

// withLimits adds to what has failed which hard limits may be the reason.
func withLimits(err error) error {
	var low []string
	for _, l := range agentLimits {
		var has unix.Rlimit
		if unix.Getrlimit(l.resource, &has) == nil && has.Max < l.enough {
			low = append(low, fmt.Sprintf("%s is %d (ulimit %s)", l.name, has.Max, l.option))
		}
	}
	if err == nil || len(low) == 0 {
		return err
	}
	return fmt.Errorf("%w; farpage's agent has the limits of whoever starts it, and hard ones may be too low: %s; raise them, or set them inside: farpage run ... -- sh -c 'ulimit ...; exec CMD'", err, strings.Join(low, ", "))
}

package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"time"

	"github.com/farpage/farpage/api"
	"github.com/farpage/farpage/test/vm/steps"
)

// test is one step that is being done.
type test struct {
	*session
	name   string
	began  time.Time
	failed bool
	goesOn bool // after the reboot
}

// stopped is what fatalf panics with.
type stopped struct{}

func (t *test) errorf(format string, args ...any) {
	t.failed = true
	t.say(t.name, steps.Wrong, fmt.Sprintf(format, args...))
}

func (t *test) fatalf(format string, args ...any) {
	t.errorf(format, args...)
	panic(stopped{})
}

func (t *test) notef(format string, args ...any) {
	t.say(t.name, steps.Note, fmt.Sprintf(format, args...))
}

// patience is for what takes a second on a host whose CPU is not emulated.
const patience = 4 * time.Minute

// try runs a command and returns all that it says.
func (t *test) try(args ...string) (string, error) {
	ctx, cancel := context.WithTimeoutCause(context.Background(), patience, errors.New("it does not end"))
	defer cancel()
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.WaitDelay = 5 * time.Second
	out, err := cmd.CombinedOutput()
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return strings.TrimSpace(string(out)), err
}

func (t *test) must(args ...string) string {
	out, err := t.try(args...)
	if err != nil {
		t.fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// contains checks for all of the texts.
func (t *test) contains(what, text string, wanted ...string) {
	for _, w := range wanted {
		if !strings.Contains(text, w) {
			t.errorf("%s: want %q in\n%s", what, w, text)
		}
	}
}

// wait waits until something holds.
func (t *test) wait(what string, holds func() bool) {
	for deadline := time.Now().Add(patience); !holds(); time.Sleep(300 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.fatalf("waited %v: %s", patience, what)
		}
	}
}

// agent is a client of the agent.
func agent() *api.Client { return api.NewClientIn(api.DefaultSocketDir) }

// list is what the agent serves.
func (t *test) list() []api.Container {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	all, err := agent().List(ctx)
	if err != nil {
		t.fatalf("ask the agent: %v", err)
	}
	return all
}

// expectEmpty waits until the agent has no container any more.
func (t *test) expectEmpty() {
	t.wait("the agent still lists containers", func() bool { return len(t.list()) == 0 })
}

// journal is what systemd's journal has on farpage and the engines since the step began.
func (t *test) journal() string {
	read := func(args ...string) string {
		out, err := t.try(append([]string{"journalctl", "--no-pager", "--no-hostname", "--output", "short-monotonic", "--boot"}, args...)...)
		if err != nil {
			return err.Error()
		}
		return out
	}
	return "the journal of farpage ends with\n" + read(append([]string{"--lines", "80"}, ofFarpage...)...) +
		"\nthat of the host with\n" + read("--since", fmt.Sprintf("@%d", t.began.Unix()), "--lines", "60")
}

// ofFarpage is what journalctl takes for the lines of the agent, of systemd on it, of the
// hook and of the runtime: one or the other.
var ofFarpage = []string{"_SYSTEMD_UNIT=farpage.service", "+", "UNIT=farpage.service", "+", "SYSLOG_IDENTIFIER=farpage-hook", "+", "SYSLOG_IDENTIFIER=farpage-runtime"}

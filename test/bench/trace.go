package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// tracer is an instance of the kernel's event tracer (tracefs), of our own: nobody
// else's tracing is touched.
type tracer struct {
	instance string
	mounted  string // tracefs, where it had to be mounted
}

// event is one line of a trace.
type event struct {
	tid    int    // the thread that it happened in
	ticks  uint64 // of the CPU's clock
	name   string
	fields string
}

// traced are the events that a fault leaves on its way, and the fields that say whose
// they are.
var traced = map[string][]string{
	"exceptions/page_fault_user": {"common_pid"},
	"sched/sched_waking":         {"pid"},
	"sched/sched_switch":         {"prev_pid", "next_pid"},
	"raw_syscalls/sys_enter":     {"common_pid"},
	"raw_syscalls/sys_exit":      {"common_pid"},
}

// openTracer makes an instance, and mounts tracefs under dir where it is not there.
func openTracer(dir string) (t *tracer, err error) {
	t = &tracer{}
	root := "/sys/kernel/tracing"
	if _, err := os.Stat(filepath.Join(root, "instances")); err != nil {
		root = filepath.Join(dir, "tracing")
		if err := os.Mkdir(root, 0o700); err != nil {
			return nil, err
		}
		if err := unix.Mount("tracefs", root, "tracefs", 0, ""); err != nil {
			return nil, errors.Join(os.NewSyscallError("mount tracefs", err), os.Remove(root))
		}
		t.mounted = root
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, t.close())
		}
	}()
	instance := filepath.Join(root, "instances", fmt.Sprintf("farpage-bench-%d", os.Getpid()))
	if err := os.Mkdir(instance, 0o700); err != nil {
		return nil, err
	}
	t.instance = instance
	err = errors.Join(t.write("tracing_on", "0"), t.write("trace_clock", "x86-tsc"), t.write("buffer_size_kb", "16384"))
	for name := range traced {
		err = errors.Join(err, t.write(filepath.Join("events", name, "enable"), "1"))
	}
	return t, err
}

func (t *tracer) write(file, text string) error {
	return os.WriteFile(filepath.Join(t.instance, file), []byte(text), 0)
}

// record traces two threads while f runs. tick is how many ns one of the events'
// ticks lasts.
func (t *tracer) record(a, b int, f func() error) (events []event, tick float64, err error) {
	for name, fields := range traced {
		var either []string
		for _, field := range fields {
			either = append(either, fmt.Sprintf("%s==%d||%s==%d", field, a, field, b))
		}
		if err := t.write(filepath.Join("events", name, "filter"), strings.Join(either, "||")); err != nil {
			return nil, 0, err
		}
	}
	if err := errors.Join(t.write("trace", ""), t.write("tracing_on", "1")); err != nil {
		return nil, 0, err
	}
	begun := time.Now()
	err = t.mark()
	if err == nil {
		err = f()
	}
	took := time.Since(begun)
	if err = errors.Join(err, t.mark(), t.write("tracing_on", "0")); err != nil {
		return nil, 0, err
	}
	events, err = t.read()
	if err != nil {
		return nil, 0, err
	}
	var marks []uint64
	for _, e := range events {
		if e.name == "tracing_mark_write" {
			marks = append(marks, e.ticks)
		}
	}
	if len(marks) != 2 || marks[1] <= marks[0] {
		return nil, 0, fmt.Errorf("the trace has %d marks, want 2", len(marks))
	}
	return events, float64(took.Nanoseconds()) / float64(marks[1]-marks[0]), nil
}

// mark puts an event into the trace, to hold its clock against ours.
func (t *tracer) mark() error { return t.write("trace_marker", "bench\n") }

// read parses the trace: "  comm-TID  [CPU] flags TICKS: NAME: FIELDS".
func (t *tracer) read() ([]event, error) {
	file, err := os.Open(filepath.Join(t.instance, "trace"))
	if err != nil {
		return nil, err
	}
	defer file.Close()
	var events []event
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		line := lines.Text()
		if strings.HasPrefix(line, "#") {
			continue
		}
		// A command's name may hold blanks; the CPU's bracket comes after it.
		who, rest, found := strings.Cut(line, " [0")
		words := strings.Fields(rest)
		if !found || len(words) < 4 {
			continue
		}
		who = strings.TrimSpace(who)
		tid, err := strconv.Atoi(who[strings.LastIndexByte(who, '-')+1:])
		if err != nil {
			continue
		}
		ticks, err := strconv.ParseUint(strings.TrimSuffix(words[2], ":"), 10, 64)
		if err != nil {
			return nil, fmt.Errorf("trace: %q: %w", line, err)
		}
		_, fields, _ := strings.Cut(rest, words[3])
		events = append(events, event{tid, ticks, strings.TrimSuffix(words[3], ":"), strings.TrimSpace(fields)})
	}
	return events, lines.Err()
}

// close takes the instance away, and the mount.
func (t *tracer) close() error {
	var errs []error
	if t.instance != "" {
		errs = append(errs, os.Remove(t.instance))
	}
	if t.mounted != "" {
		errs = append(errs, os.NewSyscallError("unmount tracefs", unix.Unmount(t.mounted, 0)), os.Remove(t.mounted))
	}
	return errors.Join(errs...)
}

// field is the value of "NAME=VALUE" in an event.
func (e event) field(name string) string {
	for word := range strings.FieldsSeq(e.fields) {
		if value, ok := strings.CutPrefix(word, name+"="); ok {
			return value
		}
	}
	return ""
}

// call is the number of a system call that is entered or left.
func (e event) call() int {
	words := strings.Fields(e.fields)
	if len(words) < 2 || words[0] != "NR" {
		return -1
	}
	number, err := strconv.Atoi(words[1])
	if err != nil {
		return -1
	}
	return number
}

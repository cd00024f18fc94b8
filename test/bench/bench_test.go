package main

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/farpage/farpage/internal/need"
)

// tiny is enough to see that each measure works, and says nothing about speed.
var tiny = sizes{
	repetitions: 1, faults: 40, restedFaults: 10, faultPages: 512, runPages: 1024, singlePages: 256, touchPages: 512,
	spawns: 3, forks: 3, forkedPages: 512, shellPrograms: 3, maps: 10,
	idle: time.Second, threadsMiB: 16, redisKeys: 2048, redisGets: 64,
}

// requireAll skips where the bench cannot run, and fails there when nothing may be
// skipped.
func requireAll(t *testing.T) options {
	t.Helper()
	o := options{bin: "../../bin"}
	if path := os.Getenv("FARPAGE_BIN"); path != "" {
		o.bin = filepath.Dir(path)
	}
	reason := ""
	if os.Geteuid() != 0 {
		reason = "the bench needs root: run `sudo make test`"
	} else if _, err := os.Stat(filepath.Join(o.bin, "farpage")); err != nil {
		reason = "no bin/farpage: run `make build` first"
	} else if _, err := exec.LookPath("gcc"); err != nil {
		reason = "gcc is not installed: run `sudo scripts/ensure-packages.sh test`"
	}
	if reason == "" {
		return o
	}
	need.Skip(t, reason)
	return o
}

func TestEachMeasureGivesLinesWithPositiveNumbers(t *testing.T) {
	o := requireAll(t)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	var out, progress bytes.Buffer
	r, err := run(ctx, o, regexp.MustCompile(""), tiny, &out, &progress)
	if err != nil {
		t.Fatalf("%v\n%s%s", err, progress.Bytes(), out.Bytes())
	}
	t.Logf("\n%s%s", out.Bytes(), progress.Bytes())
	for _, want := range []string{
		"fault, far page, unpinned, p50", "fault, far page, one CPU, p99", "fault, zero page, one CPU, p50",
		"evict, in runs: wall", "evict, single pages: CPU of the helper", "refault, sequential", "refault, random", "first touch",
		"fork, exec, wait: bell rung", "fork, exec, wait: bell silent", "fork, exit, wait:", "shell's loop", "farpage run",
		"mmap and munmap, 64 KiB", "mmap and munmap, 4 MiB", "idle agent: CPU", "idle agent: context switches",
		"threads8 over 16 MiB, a half", "threads8 over 16 MiB, a quarter",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("there is no line %q", want)
		}
	}
	for _, l := range r.lines {
		if len(l.Farpage) < tiny.repetitions || l.Against != "" && len(l.Other) != len(l.Farpage) {
			t.Errorf("%s: %d samples against %d", l.Measure, len(l.Farpage), len(l.Other))
		}
		for _, v := range append(l.Farpage, l.Other...) {
			if v <= 0 {
				t.Errorf("%s: a sample is %v", l.Measure, v)
			}
		}
	}
}

// The target compares what it reads: the C loop's bytes are right, and pages that
// nobody has given their content are found.
func TestTheLoopGivesTheBytesThatTheTargetExpects(t *testing.T) {
	requireAll(t)
	root, err := findRoot()
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{sizes: tiny, dir: t.TempDir()}
	if err := compile(t.Context(), root, b.dir); err != nil {
		t.Fatal(err)
	}
	p, err := b.looped(t.Context(), b.faultPages)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := p.end(); err != nil {
			t.Error(err)
		}
	}()
	for _, command := range []string{
		"map far 512 1", "single far 512 1 0", "drop", "single far 512 2 0", "walk random 3", "map zero 512 1", "single zero 512 4 0",
	} {
		if _, err := p.do("%s", command); err != nil {
			t.Error(err)
		}
	}
	plain, err := b.native(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := plain.end(); err != nil {
			t.Error(err)
		}
	}()
	if _, err := plain.do("map far 512 1"); err != nil {
		t.Fatal(err)
	}
	if _, err := plain.do("single far 512 1 0"); err == nil || !strings.Contains(err.Error(), "wrong") {
		t.Errorf("pages that were never filled: %v, want an error that calls one wrong", err)
	}
}

func TestATraceIsTakenApartIntoFaults(t *testing.T) {
	const thread, engine = 10, 20
	at := func(tid int, ticks uint64, name, fields string) event { return event{tid, ticks, name, fields} }
	whole := []event{
		at(thread, 100, "page_fault_user", "address=0x1"),
		at(thread, 101, "sched_waking", "comm=x pid=20 prio=98"),
		at(thread, 103, "sched_switch", "prev_pid=10 ==> next_comm=x next_pid=20"),
		at(engine, 106, "sys_exit", "NR 441 = 1"),
		at(engine, 110, "sys_exit", "NR 0 = 32"),
		at(engine, 115, "sys_enter", "NR 16 (4c)"),
		at(engine, 121, "sched_waking", "comm=t pid=10"),
		at(engine, 122, "sys_exit", "NR 16 = 0"),
		at(engine, 128, "sched_switch", "prev_pid=20 ==> next_pid=10"),
	}
	// In the second one who answers was awake already.
	events := append(append(append([]event{}, whole...), whole[0], whole[3], whole[4]), whole...)
	found := faultsIn(events, thread, engine)
	if len(found) != 2 {
		t.Fatalf("%d faults, want 2", len(found))
	}
	if want := [moments]uint64{100, 101, 106, 110, 115, 121, 128}; found[0] != want {
		t.Errorf("moments %v, want %v", found[0], want)
	}
}

func TestNumbersArePrintedWithThreeDigits(t *testing.T) {
	for v, want := range map[float64]string{0: "0", 0.01234: "0.012", 1.2345: "1.23", 12.345: "12.3", 123.45: "123", 12345: "12345"} {
		if got := digits(v); got != want {
			t.Errorf("%v: %s, want %s", v, got, want)
		}
	}
	if s := spreadOf([]float64{3, 1, 2}); s != (spread{1, 2, 3}) {
		t.Errorf("spread %v", s)
	}
}

package container

import (
	"os"
	"testing"
	"time"
)

// python's bytearray touches every byte, so that the size is known. Children are
// forked afterwards and share it.
const python = `
import os, sys, time
data = bytearray(b'x') * (32 << 20)
for _ in range(3):
    if os.fork() == 0:
        break
time.sleep(60)
`

func TestWatchCountsSharedPagesOnce(t *testing.T) {
	needContainers(t, "python3")
	c := start(t, Config{Args: []string{PythonPath, "-c", python}, Python: true})
	w := Watch(c.Pids, 20*time.Millisecond)
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		pids, err := c.Pids()
		if len(pids) == 4 {
			break
		}
		if err != nil || time.Now().After(end) {
			t.Fatalf("pids %v, %v; output: %s", pids, err, c.Output())
		}
	}
	time.Sleep(200 * time.Millisecond)
	seen := w.Stop()
	if seen.Err != nil || seen.Samples == 0 {
		t.Fatalf("%+v", seen)
	}
	const mib = 1 << 20
	for what, bytes := range map[string]int64{"peak": seen.PeakBytes, "last": seen.LastBytes} {
		if bytes < 32*mib || bytes > 48*mib {
			t.Errorf("%s is %d MiB, want 32 and a little; %+v", what, bytes/mib, seen)
		}
	}
}

// Memory handed on from parent to child over and over: when a parent exits in the
// middle of a sample, its half was counted already and the child's is the whole.
const handedOn = `
import os, time
if os.fork() > 0:
    while True:
        os.wait()
data = bytearray(b'x') * (32 << 20)
while True:
    if os.fork() > 0:
        time.sleep(0.002)
        os._exit(0)
    time.sleep(0.004)
`

func TestWatchIsNotMisledByForksAndExits(t *testing.T) {
	needContainers(t, "python3")
	c := start(t, Config{Args: []string{PythonPath, "-c", handedOn}, Python: true})
	w := Watch(c.Pids, time.Millisecond)
	time.Sleep(3 * time.Second)
	seen := w.Stop()
	const mib = 1 << 20
	if seen.Err != nil || seen.Samples < 20 || seen.PeakBytes < 32*mib || seen.PeakBytes > 44*mib {
		t.Errorf("%d MiB, want 32 and a little; %+v", seen.PeakBytes/mib, seen)
	}
}

func TestWatchSaysWhenProcessesCannotBeListed(t *testing.T) {
	w := Watch(func() ([]int, error) { return nil, os.ErrPermission }, time.Millisecond)
	if seen := w.Stop(); seen.Samples != 0 || seen.Err == nil {
		t.Errorf("%+v", seen)
	}
}

// What moves while the kernel walks counts twice in Pss_Anon: a process here keeps 32 MiB
// of 256 and moves them on and on, and one CPU is all that it and the sampler have, so
// that walks are interrupted.
const moving = `
import mmap, os
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
m = mmap.mmap(-1, 256 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
step, kept = 256 << 10, 32 << 20
block = b'x' * step
at = 0
while True:
    m[at:at + step] = block
    m.madvise(mmap.MADV_DONTNEED, (at - kept) % (256 << 20), step)
    at = (at + step) % (256 << 20)
`

func TestWatchCountsNothingTwiceThatMoves(t *testing.T) {
	needContainers(t, "python3")
	c := start(t, Config{Args: []string{PythonPath, "-c", moving}, Python: true})
	var samplers []*Watcher
	for range 8 { // they interrupt each other
		samplers = append(samplers, Watch(c.Pids, time.Millisecond))
	}
	time.Sleep(3 * time.Second)
	for _, w := range samplers {
		seen := w.Stop()
		const mib = 1 << 20
		if seen.Err != nil || seen.Samples == 0 || seen.PeakBytes < 32*mib || seen.PeakBytes > 44*mib {
			t.Errorf("%d MiB, want 32 and a little; %+v", seen.PeakBytes/mib, seen)
		}
	}
}

func TestParseField(t *testing.T) {
	for _, c := range []struct {
		text, field string
		bytes       int64
		found, ok   bool
	}{
		{"5581-7ffd ---p 0 00:00 0 [rollup]\nRss: 9 kB\nPss_Anon:      1234 kB\nPss_File: 5 kB\n", "Pss_Anon", 1234 << 10, true, true},
		{"Name:\tx\nRssAnon:\t   4116 kB\n", "RssAnon", 4116 << 10, true, true},
		{"", "Pss_Anon", 0, false, true},
		{"Rss: 9 kB\n", "Pss_Anon", 0, false, true},
		{"Pss_Anon: many kB\n", "Pss_Anon", 0, true, false},
	} {
		bytes, found, err := parseField([]byte(c.text), c.field)
		if bytes != c.bytes || found != c.found || (err == nil) != c.ok {
			t.Errorf("%q: %d, %t, %v", c.text, bytes, found, err)
		}
	}
}

package container

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Watcher samples how much anonymous memory a group of processes keeps resident.
type Watcher struct {
	stop chan struct{}
	done chan struct{}

	mu     sync.Mutex
	result Resident // guarded by mu
}

// Resident is what a Watcher has seen so far.
type Resident struct {
	LastBytes int64
	PeakBytes int64
	Samples   int           // whole samples; 0 says that nothing was seen
	Skipped   int           // samples dropped because processes came or went meanwhile
	LongestUs int64         // the longest time between two samples
	PeakAfter time.Duration // since Watch
	PeakParts []Part        // what PeakBytes is the sum of
	Err       error         // why the last sample failed, if it did
}

// Part is one process's part of a sample.
type Part struct {
	Pid     int
	Command string
	Bytes   int64
}

func (r Resident) String() string {
	const mib = 1 << 20
	var text strings.Builder
	fmt.Fprintf(&text, "%.1f MiB after %.1f s, of %d samples (%d dropped, %d ms apart at most):", float64(r.PeakBytes)/mib,
		r.PeakAfter.Seconds(), r.Samples, r.Skipped, r.LongestUs/1000)
	for _, part := range r.PeakParts {
		fmt.Fprintf(&text, " %s[%d] %.1f", part.Command, part.Pid, float64(part.Bytes)/mib)
	}
	return text.String()
}

// Watch samples every so often, until Stop, the sum of Pss_Anon
// (/proc/PID/smaps_rollup) over the processes that pids lists, of each at most what it
// had in all. A page that a fork's two sides share counts once. It needs root.
func Watch(pids func() ([]int, error), every time.Duration) *Watcher {
	w := &Watcher{stop: make(chan struct{}), done: make(chan struct{})}
	go w.loop(pids, every)
	return w
}

func (w *Watcher) loop(pids func() ([]int, error), every time.Duration) {
	defer close(w.done)
	start := time.Now()
	last := start
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		parts, whole, err := sample(pids)
		now := time.Now()
		w.mu.Lock()
		r := &w.result
		switch r.Err = err; {
		case err != nil:
		case !whole:
			r.Skipped++
		default:
			r.LongestUs = max(r.LongestUs, now.Sub(last).Microseconds())
			last = now
			r.Samples++
			r.LastBytes = 0
			for _, part := range parts {
				r.LastBytes += part.Bytes
			}
			if r.LastBytes > r.PeakBytes {
				r.PeakBytes, r.PeakAfter, r.PeakParts = r.LastBytes, now.Sub(start), parts
			}
		}
		w.mu.Unlock()
		select {
		case <-w.stop:
			return
		case <-tick.C:
		}
	}
}

// Seen is what was seen until now.
func (w *Watcher) Seen() Resident {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.result
}

// Stop ends the sampling and returns what was seen. It may be called once.
func (w *Watcher) Stop() Resident {
	close(w.stop)
	<-w.done
	return w.Seen()
}

// sample takes one sample. It takes time, and a fork, an exec or an exit in the
// middle moves a page's share to a process that was read before or after: the page
// would count for one and a half. So the processes are identified before and
// after; whole says that they stayed the same in one of a few tries.
func sample(pids func() ([]int, error)) (parts []Part, whole bool, err error) {
	for range 4 {
		before, err := identify(pids)
		if err != nil {
			return nil, false, err
		}
		parts = make([]Part, 0, len(before))
		for i, p := range before {
			if sharesMemory(p, before[:i]) {
				continue
			}
			bytes, err := pssAnonBytes(p.pid)
			if err != nil {
				return nil, false, err
			}
			parts = append(parts, Part{Pid: p.pid, Command: p.command, Bytes: bytes})
		}
		after, err := identify(pids)
		if err != nil {
			return nil, false, err
		}
		if slices.Equal(before, after) {
			return parts, true, nil
		}
	}
	return parts, false, nil
}

// process tells a process's memory from the one that its pid had before an exec,
// and from another process of the same pid.
type process struct {
	pid        int
	command    string
	startTime  string // fields 22 and 28 of /proc/PID/stat
	startStack string
}

func identify(pids func() ([]int, error)) ([]process, error) {
	list, err := pids()
	if err != nil {
		return nil, err
	}
	processes := make([]process, 0, len(list))
	for _, pid := range list {
		text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
		if gone(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("identify process: %w", err)
		}
		// The name, field 2, may hold blanks and brackets.
		open, closed := bytes.IndexByte(text, '('), bytes.LastIndexByte(text, ')')
		fields := strings.Fields(string(text[closed+1:]))
		if len(fields) < 26 {
			return nil, fmt.Errorf("identify process %d: unexpected stat %q", pid, text)
		}
		if state := fields[0]; state == "Z" || state == "X" {
			continue // has no memory any more
		}
		processes = append(processes, process{pid: pid, command: string(text[open+1 : closed]), startTime: fields[22-3], startStack: fields[28-3]})
	}
	return processes, nil
}

// sharesMemory says whether a process has the memory of one of the others, as a
// vfork child has until it execs.
func sharesMemory(p process, others []process) bool {
	const kcmpVM = 1 // KCMP_VM, linux/kcmp.h
	for _, other := range others {
		if other.startStack != p.startStack {
			continue
		}
		order, _, errno := unix.Syscall6(unix.SYS_KCMP, uintptr(p.pid), uintptr(other.pid), kcmpVM, 0, 0, 0)
		if errno == 0 && order == 0 {
			return true
		}
	}
	return false
}

// pssAnonBytes is Pss_Anon of a process; 0 when it is gone.
//
// The kernel walks the memory to sum it up, and may have to wait for a CPU meanwhile.
// What is moved then from where it has been to where it comes to counts twice. How much a
// process has in all, shared or not, the kernel keeps as a number (RssAnon): before and
// after the walk it bounds the sum.
func pssAnonBytes(pid int) (int64, error) {
	before, err := kernelBytes(pid, "status", "RssAnon")
	if err != nil {
		return 0, err
	}
	shares, err := kernelBytes(pid, "smaps_rollup", "Pss_Anon")
	if err != nil {
		return 0, err
	}
	after, err := kernelBytes(pid, "status", "RssAnon")
	if err != nil {
		return 0, err
	}
	return min(shares, max(before, after)), nil
}

// kernelBytes reads a figure from a file of /proc/PID; 0 when the process is gone or
// exiting, so that its memory is.
func kernelBytes(pid int, file, field string) (int64, error) {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/" + file)
	if gone(err) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("sample resident memory: %w", err)
	}
	bytes, found, err := parseField(text, field)
	if err != nil {
		return 0, fmt.Errorf("sample resident memory: %w", err)
	}
	if !found && file == "smaps_rollup" && len(text) > 0 {
		return 0, errors.New("sample resident memory: this kernel's smaps_rollup has no " + field + " (needs Linux 5.10)")
	}
	return bytes, nil
}

// parseField finds "FIELD: N kB".
func parseField(text []byte, field string) (bytes int64, found bool, err error) {
	for line := range strings.Lines(string(text)) {
		value, found := strings.CutPrefix(line, field+":")
		if !found {
			continue
		}
		kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
		return kib << 10, true, err
	}
	return 0, false, nil
}

func gone(err error) bool {
	return errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH)
}

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// thread is what the kernel says of one thread.
type thread struct {
	name     string
	ran      time.Duration // on a CPU
	switches int64         // context switches
}

// threadsOf reads all threads of a process, by their ids.
func threadsOf(pid int) (map[int]thread, error) {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
	if err != nil {
		return nil, err
	}
	all := map[int]thread{}
	for _, task := range tasks {
		tid, err := strconv.Atoi(filepath.Base(task))
		if err != nil {
			return nil, err
		}
		one, err := readThread(task)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue // it has just ended
		}
		if err != nil {
			return nil, err
		}
		all[tid] = one
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("process %d has ended", pid)
	}
	return all, nil
}

func readThread(task string) (one thread, err error) {
	schedstat, err := os.ReadFile(filepath.Join(task, "schedstat"))
	if err != nil {
		return one, err
	}
	status, err := os.ReadFile(filepath.Join(task, "status"))
	if err != nil {
		return one, err
	}
	ran, _, _ := strings.Cut(string(schedstat), " ")
	nanoseconds, err := strconv.ParseInt(ran, 10, 64)
	if err != nil {
		return one, fmt.Errorf("schedstat %q: %w", schedstat, err)
	}
	one.ran = time.Duration(nanoseconds)
	for line := range strings.Lines(string(status)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		value = strings.TrimSpace(value)
		switch name {
		case "Name":
			one.name = value
		case "voluntary_ctxt_switches", "nonvoluntary_ctxt_switches":
			n, err := strconv.ParseInt(value, 10, 64)
			if err != nil {
				return one, err
			}
			one.switches += n
		}
	}
	return one, nil
}

// usage sums up what threads did since `before`; those that have ended since are not
// in it.
func usage(before, after map[int]thread, which func(tid int, t thread) bool) (ran time.Duration, switches int64) {
	for tid, now := range after {
		if which(tid, now) {
			ran += now.ran - before[tid].ran
			switches += now.switches - before[tid].switches
		}
	}
	return ran, switches
}

// engineThread finds the thread of an agent that serves its only container: it alone
// has a priority above the ordinary.
func engineThread(agent int) (engine int, err error) {
	threads, err := threadsOf(agent)
	if err != nil {
		return 0, err
	}
	for tid := range threads {
		attributes, err := unix.SchedGetAttr(tid, 0)
		if err != nil || attributes.Policy != unix.SCHED_FIFO && attributes.Nice != -20 {
			continue
		}
		if engine != 0 {
			return 0, fmt.Errorf("process %d has two threads with a priority of their own: %d and %d", agent, engine, tid)
		}
		engine = tid
	}
	if engine == 0 {
		return 0, fmt.Errorf("process %d has no thread with a priority of its own", agent)
	}
	return engine, nil
}

func anyThread(int, thread) bool { return true }

// shimHelper says whether a thread is the one that the shim runs in a target.
func shimHelper(_ int, t thread) bool { return t.name == "farpage" }

// pin keeps all threads of a process, and those that they make, on the given CPUs.
func pin(pid int, cpus ...int) error {
	var set unix.CPUSet
	for _, cpu := range cpus {
		set.Set(cpu)
	}
	threads, err := threadsOf(pid)
	if err != nil {
		return err
	}
	for tid := range threads {
		if err := unix.SchedSetaffinity(tid, &set); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("pin thread %d: %w", tid, os.NewSyscallError("sched_setaffinity", err))
		}
	}
	return nil
}

// ownCPUs are the CPUs that this process may use.
func ownCPUs() ([]int, error) {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return nil, os.NewSyscallError("sched_getaffinity", err)
	}
	var cpus []int
	for cpu := range 8 * len(set) * 8 {
		if set.IsSet(cpu) {
			cpus = append(cpus, cpu)
		}
	}
	return cpus, nil
}

package group

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Process is what one process has resident of private anonymous memory.
type Process struct {
	Pid     int
	Command string
	Bytes   int64 // Pss_Anon: a page shared after a fork counts in parts
}

// Peak is the largest sum that was seen, and of what.
type Peak struct {
	Bytes     int64
	Processes []Process
	Samples   int
}

func (p Peak) String() string {
	var text strings.Builder
	fmt.Fprintf(&text, "%.1f MiB of %d samples:", float64(p.Bytes)/(1<<20), p.Samples)
	for _, process := range p.Processes {
		fmt.Fprintf(&text, " %s[%d] %.1f", process.Command, process.Pid, float64(process.Bytes)/(1<<20))
	}
	return text.String()
}

// Resident lists the group's processes whose executable is not one of `except`.
func (g *Group) Resident(except ...string) ([]Process, error) {
	pids, err := g.Pids()
	if err != nil {
		return nil, err
	}
	var processes []Process
	for _, pid := range pids {
		if runsOneOf(pid, except) {
			continue
		}
		anon, err := pssAnon(pid)
		if gone(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		processes = append(processes, Process{Pid: pid, Command: command(pid), Bytes: anon})
	}
	return processes, nil
}

// Sample measures every interval until stop is closed. It leaves out processes
// that run one of `except`: the agent is no part of what it serves.
func (g *Group) Sample(stop <-chan struct{}, interval time.Duration, except ...string) (Peak, error) {
	var peak Peak
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		processes, err := g.Resident(except...)
		if err != nil {
			return peak, err
		}
		var sum int64
		for _, process := range processes {
			sum += process.Bytes
		}
		peak.Samples++
		if sum > peak.Bytes {
			peak.Bytes, peak.Processes = sum, processes
		}
		select {
		case <-stop:
			return peak, nil
		case <-tick.C:
		}
	}
}

func runsOneOf(pid int, executables []string) bool {
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil {
		return false
	}
	exe = strings.TrimSuffix(exe, " (deleted)")
	for _, executable := range executables {
		if exe == executable {
			return true
		}
	}
	return false
}

func command(pid int) string {
	name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		return "?"
	}
	return strings.TrimSpace(string(name))
}

// gone says that a process ended between being listed and being read.
func gone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH)
}

// pssAnon is in bytes. A process that has no memory any more (a zombie) has 0.
func pssAnon(pid int) (int64, error) {
	path := fmt.Sprintf("/proc/%d/smaps_rollup", pid)
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	for line := range bytes.Lines(text) {
		value, found := bytes.CutPrefix(line, []byte("Pss_Anon:"))
		if !found {
			continue
		}
		kib, err := strconv.ParseInt(string(bytes.TrimSuffix(bytes.TrimSpace(value), []byte(" kB"))), 10, 64)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", path, err)
		}
		return kib << 10, nil
	}
	return 0, nil
}

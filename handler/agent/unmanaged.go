package agent

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/farpage/farpage/api"
	"github.com/farpage/farpage/handler/target"
)

// unmanaged adds the container's processes that the engine does not have, with the
// reason.
func (c *container) unmanaged(s *api.Container) {
	managed := map[int]bool{os.Getpid(): true}
	for _, p := range s.ProcessList {
		managed[p.Pid] = true
	}
	var all []int
	if c.req.Cgroup != "" {
		all = inCgroup(c.req.Cgroup)
	} else {
		all = descendants(c.req.Pid)
	}
	for _, pid := range all {
		if managed[pid] {
			continue
		}
		s.ProcessList = append(s.ProcessList, api.Process{
			Pid: pid, Command: target.Command(pid), State: "unmanaged", Reason: c.reasons.of(pid),
		})
		s.Processes.Unmanaged++
	}
}

// inCgroup returns the processes in a cgroup.
func inCgroup(cgroup string) []int {
	b, err := os.ReadFile(filepath.Join(cgroup, "cgroup.procs"))
	if err != nil {
		return nil
	}
	return numbers(b)
}

// descendants returns the processes that a process has started, and they in turn.
func descendants(pid int) []int {
	var all []int
	for next := []int{pid}; len(next) > 0; next = next[1:] {
		tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", next[0]))
		if err != nil {
			continue
		}
		for _, t := range tasks {
			b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/children", next[0], t.Name()))
			if err != nil {
				continue
			}
			for _, child := range numbers(b) {
				if child != os.Getpid() {
					all, next = append(all, child), append(next, child)
				}
			}
		}
	}
	return all
}

func numbers(text []byte) []int {
	var out []int
	for _, w := range bytes.Fields(text) {
		if n, err := strconv.Atoi(string(w)); err == nil && n > 0 {
			out = append(out, n)
		}
	}
	return out
}

// reasons finds out why processes are not managed. A program file may be on a file
// system of the container's own making, where reading never ends: nobody waits for
// that, and it is begun once per process.
type reasons struct {
	mu    sync.Mutex
	found map[int]*reason // guarded by mu
}

type reason struct {
	start uint64 // of the process
	done  chan struct{}
	text  string // once done is closed
}

// reasonWait is how long a program file may take to read.
const reasonWait = 200 * time.Millisecond

func (r *reasons) of(pid int) string {
	start := target.StartTime(pid)
	r.mu.Lock()
	known := r.found[pid]
	if known == nil || known.start != start {
		known = &reason{start: start, done: make(chan struct{})}
		if r.found == nil || len(r.found) > 10000 {
			r.found = map[int]*reason{}
		}
		r.found[pid] = known
		go func() {
			known.text = look(pid)
			close(known.done)
		}()
	}
	r.mu.Unlock()
	select {
	case <-known.done:
		return known.text
	case <-time.After(reasonWait):
		return "its program file cannot be read in time"
	}
}

// look says why a process is not managed.
func look(pid int) string {
	exe, err := elf.Open(fmt.Sprintf("/proc/%d/exe", pid))
	if errors.Is(err, os.ErrNotExist) {
		return "it is ending"
	}
	if err != nil {
		return fmt.Sprintf("its program file cannot be read: %v", err)
	}
	defer exe.Close()
	if exe.Machine != elf.EM_X86_64 {
		return fmt.Sprintf("it is a program for %v; the shim is for x86-64", exe.Machine)
	}
	for _, p := range exe.Progs {
		if p.Type == elf.PT_INTERP {
			return "its shim has not handed it over (yet)"
		}
	}
	return "it is a static program: no library can be preloaded into it"
}

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/farpage/farpage/api"
	"github.com/farpage/farpage/test/container"
)

// What the programs get and use: several times their budget.
const (
	image       = "farpage.example/test:latest"
	budgetBytes = 8 << 20
	annotation  = "io.farpage.local=8Mi"
	programMiB  = 24
)

// mostBytes is what may be resident (promise 2).
const mostBytes = budgetBytes + max(budgetBytes/10, 8<<20)

// programSays is what threads8 says when every page was right.
var (
	programSays = fmt.Sprintf("threads8: %d pages right", programMiB<<20/4096)
	program     = []string{"threads8", strconv.Itoa(programMiB)}
)

// watched is what was seen of a container while a command ran.
type watched struct {
	container api.Container      // what the agent said last
	resident  container.Resident // from outside
	cgroup    string
	confined  string // by AppArmor
}

// watch runs a command that makes the agent evict from a container, and looks at that
// container meanwhile: id is the beginning of its id, or empty when the command makes it.
func (t *test) watch(id string, run func() string) (said string, seen watched) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	known := map[string]bool{}
	if id == "" {
		for _, c := range t.list() {
			known[c.ID] = true
		}
	}
	ended := make(chan watched, 1)
	go func() { ended <- look(ctx, id, known) }()
	said = run()
	cancel()
	return said, <-ended
}

// look is done until the context ends, or the container.
func look(ctx context.Context, id string, known map[string]bool) (w watched) {
	client := agent()
	var watcher *container.Watcher
	for ; ctx.Err() == nil; time.Sleep(200 * time.Millisecond) {
		all, err := client.List(ctx)
		if err != nil {
			continue
		}
		for _, c := range all {
			if known[c.ID] || !strings.HasPrefix(c.ID, id) || len(c.ProcessList) == 0 {
				continue
			}
			if watcher == nil {
				cgroup, err := cgroupOf(c.ProcessList[0].Pid)
				if err != nil {
					continue
				}
				w.cgroup = cgroup
				watcher = container.Watch(func() ([]int, error) { return pidsIn(cgroup) }, 100*time.Millisecond)
			}
			w.container = c
			if confined, err := os.ReadFile(fmt.Sprintf("/proc/%d/attr/current", c.ProcessList[0].Pid)); err == nil {
				w.confined = strings.TrimSpace(string(confined))
			}
		}
	}
	if watcher != nil {
		w.resident = watcher.Stop()
	}
	return w
}

// cgroupOf is the folder of a process's cgroup (cgroups(7), v2).
func cgroupOf(pid int) (string, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return "", err
	}
	path, is := strings.CutPrefix(strings.TrimSpace(string(text)), "0::/")
	if !is || path == "" {
		return "", fmt.Errorf("process %d is in %q", pid, text)
	}
	return filepath.Join("/sys/fs/cgroup", path), nil
}

func pidsIn(cgroup string) (pids []int, err error) {
	text, err := os.ReadFile(filepath.Join(cgroup, "cgroup.procs"))
	if os.IsNotExist(err) {
		return nil, nil
	}
	for field := range strings.FieldsSeq(string(text)) {
		pid, err := strconv.Atoi(field)
		if err != nil {
			return nil, err
		}
		pids = append(pids, pid)
	}
	return pids, err
}

// fit checks what was seen of a container that uses so much: that its pages went far, and
// that it kept its budget.
func (t *test) fit(what string, w watched, usedBytes int64) {
	t.notef("%s: peak %s; %d pages evicted, %d restored; %s", what, w.resident, w.container.EvictedPages, w.container.RestoredPages, w.cgroup)
	if w.resident.PeakBytes == 0 || w.resident.PeakBytes > mostBytes || w.resident.Err != nil {
		t.errorf("%s: resident was %d bytes, want at most %d (%v)", what, w.resident.PeakBytes, mostBytes, w.resident.Err)
	}
	s := w.container
	if least := (usedBytes - mostBytes) / 4096; s.EvictedPages < least || s.BudgetBytes != budgetBytes {
		t.errorf("%s: budget %d bytes, %d pages evicted, want %d at least", what, s.BudgetBytes, s.EvictedPages, least)
	}
	if s.Faults.Unexplained != 0 || s.Errors != (api.Errors{}) {
		t.errorf("%s: %+v", what, s)
	}
}

// stat is what `farpage stat` says of a container.
func (t *test) stat(id string) (c api.Container) {
	if err := json.Unmarshal([]byte(t.must("farpage", "stat", id, "--json")), &c); err != nil {
		t.fatalf("farpage stat %s: %v", id, err)
	}
	return c
}

// managed checks that a program is among the managed processes.
func (t *test) managed(processes []api.Process, command string) {
	for _, p := range processes {
		if p.Command == command && p.State == "managed" {
			return
		}
	}
	t.errorf("%s is not managed: %+v", command, processes)
}

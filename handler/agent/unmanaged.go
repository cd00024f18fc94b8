package agent

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/farpage/farpage/api"
	"github.com/farpage/farpage/handler/target"
)

// unmanaged lists the container's processes that the engine does not have, with
// the reason.
func unmanaged(c *container, s *api.Container) {
	managed := map[int]bool{}
	for _, p := range s.ProcessList {
		managed[p.Pid] = true
	}
	for _, pid := range pids(c.req.Cgroup) {
		if managed[pid] {
			continue
		}
		s.ProcessList = append(s.ProcessList, api.Process{
			Pid: pid, Command: target.Command(pid), State: "unmanaged", Reason: reason(pid),
		})
		s.Processes.Unmanaged++
	}
}

// pids returns the processes in a cgroup.
func pids(cgroup string) []int {
	if cgroup == "" {
		return nil
	}
	b, err := os.ReadFile(filepath.Join(cgroup, "cgroup.procs"))
	if err != nil {
		return nil
	}
	var out []int
	for _, w := range bytes.Fields(b) {
		if pid, err := strconv.Atoi(string(w)); err == nil && pid > 0 {
			out = append(out, pid)
		}
	}
	return out
}

// reason says why a process is not managed.
func reason(pid int) string {
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

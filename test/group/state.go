package group

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// State describes each thread of the group; see Threads.
func (g *Group) State() string {
	pids, err := g.Pids()
	if err != nil {
		return err.Error()
	}
	return Threads(pids)
}

// Threads describes each thread of some processes and where in the kernel it is,
// for the report on a run that hangs. It reads nothing of the threads' own memory,
// which may be what hangs.
func Threads(pids []int) string {
	var text strings.Builder
	for _, pid := range pids {
		tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
		for _, task := range tasks {
			fmt.Fprintf(&text, "pid %d tid %s %s: %s in %s, system call %s\n", pid, filepath.Base(task),
				read(task, "comm"), statusLine(task), read(task, "wchan"), read(task, "syscall"))
			text.WriteString(indent(read(task, "stack")))
		}
	}
	return text.String()
}

func read(task, name string) string {
	text, err := os.ReadFile(filepath.Join(task, name))
	if err != nil {
		return "?"
	}
	return strings.TrimSpace(string(text))
}

func statusLine(task string) string {
	for line := range strings.Lines(read(task, "status")) {
		if state, found := strings.CutPrefix(line, "State:"); found {
			return strings.TrimSpace(state)
		}
	}
	return "?"
}

func indent(text string) string {
	var indented strings.Builder
	for line := range strings.Lines(text) {
		indented.WriteString("\t" + strings.TrimSpace(line) + "\n")
	}
	return indented.String()
}

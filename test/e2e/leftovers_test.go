package e2e

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// things are what a run of farpage could leave behind: a process, a mount, a
// file. Each is a line for a reader.
type things []string

// without says what is there that was not there before. What is about to end
// gets a moment for it.
func (now things) without(before things) things {
	for range 100 {
		now = slices.DeleteFunc(now, func(thing string) bool { return slices.Contains(before, thing) })
		if len(now) == 0 {
			return nil
		}
		time.Sleep(20 * time.Millisecond)
		now = whatIsThere()
	}
	return slices.DeleteFunc(now, func(thing string) bool { return slices.Contains(before, thing) })
}

func whatIsThere() things {
	return slices.Concat(processes(), mounts(), socketDirs(), files(hostFolders+"*"), cgroups())
}

// mark is in the environment of all that these tests start, so that a farpage
// that somebody else runs beside them is not taken for theirs.
var mark = fmt.Sprintf("FARPAGE_E2E=%d", os.Getpid())

// processes are those of these tests that run farpage. A keeper has given up the
// memory with its environment, but it is in its group's cgroup.
func processes() things {
	var found things
	for _, dir := range farpageProcesses() {
		environment, _ := os.ReadFile(filepath.Join(dir, "environ"))
		cgroup, _ := os.ReadFile(filepath.Join(dir, "cgroup"))
		if !strings.Contains(string(environment), mark+"\x00") && !strings.Contains(string(cgroup), cgroupPrefix) {
			continue
		}
		comm, _ := os.ReadFile(filepath.Join(dir, "comm"))
		found = append(found, fmt.Sprintf("process %s (%s)", filepath.Base(dir), strings.TrimSpace(string(comm))))
	}
	return found
}

func farpageProcesses() []string {
	links, _ := filepath.Glob("/proc/[0-9]*/exe")
	var dirs []string
	for _, link := range links {
		exe, err := os.Readlink(link)
		if err == nil && strings.TrimSuffix(exe, " (deleted)") == farpagePath() {
			dirs = append(dirs, filepath.Dir(link))
		}
	}
	return dirs
}

// socketDirs are those that no living agent was started with, of these tests or
// of whoever else runs farpage here.
func socketDirs() things {
	var pids []int
	entries, _ := os.ReadDir("/proc")
	for _, entry := range entries {
		if pid, err := strconv.Atoi(entry.Name()); err == nil {
			pids = append(pids, pid)
		}
	}
	inUse := privateDirs(pids)
	return slices.DeleteFunc(files("/run/farpage/*"), func(thing string) bool {
		return slices.Contains(inUse, strings.TrimPrefix(thing, "file "))
	})
}

func mounts() things {
	file, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil
	}
	defer file.Close()
	var found things
	for lines := bufio.NewScanner(file); lines.Scan(); {
		if fields := strings.Fields(lines.Text()); len(fields) > 4 && strings.Contains(fields[4], "farpage") {
			found = append(found, "mount "+fields[4])
		}
	}
	return found
}

func files(pattern string) things {
	var found things
	names, _ := filepath.Glob(pattern)
	for _, name := range names {
		found = append(found, "file "+name)
	}
	return found
}

// cgroupPrefix is what the names of this test process's groups begin with.
var cgroupPrefix = fmt.Sprintf("farpage-test-%d-", os.Getpid())

func cgroups() things {
	return append(files("/sys/fs/cgroup/"+cgroupPrefix+"*"), files("/sys/fs/cgroup/unified/"+cgroupPrefix+"*")...)
}

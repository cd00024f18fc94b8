package main

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// leftOver finds what is there of farpage but files: processes, mounts, cgroups, and what
// is in /run.
func leftOver() (found []string) {
	found = named("farpage")
	mounts, err := os.ReadFile("/proc/1/mountinfo")
	if err != nil {
		found = append(found, err.Error())
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, "farpage") {
			found = append(found, "a mount: "+strings.TrimSpace(line))
		}
	}
	for _, root := range []string{"/sys/fs/cgroup", "/run", "/tmp", "/dev/shm", "/var/tmp"} {
		err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
			if path == dir {
				return fs.SkipDir
			}
			if strings.Contains(entry.Name(), "farpage") {
				found = append(found, path)
			}
			return nil // cgroups and files of /run come and go
		})
		if err != nil {
			found = append(found, err.Error())
		}
	}
	return found
}

// named finds processes that are called so or run a program that is.
func named(name string) (found []string) {
	processes, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range processes {
		comm, _ := os.ReadFile(p + "/comm")
		exe, _ := os.Readlink(p + "/exe")
		if strings.Contains(string(comm), name) || strings.Contains(exe, name) {
			found = append(found, fmt.Sprintf("process %s: %s (%s)", filepath.Base(p), strings.TrimSpace(string(comm)), exe))
		}
	}
	return found
}

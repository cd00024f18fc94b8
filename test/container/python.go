package container

import (
	"fmt"
	"os/exec"
	"strings"
)

// PythonPath is where Config.Python puts the interpreter.
const PythonPath = "/usr/bin/python3"

// putPython copies the host's python3 and its standard library, without packages
// that were installed beside it. The interpreter finds the library by the prefix
// it was built with, so that keeps its path.
func (r *rootfs) putPython() error {
	// Debian's own first: one that comes first in PATH may be a script that
	// chooses among versions.
	program := PythonPath
	if _, err := exec.LookPath(program); err != nil {
		program = "python3"
	}
	out, err := exec.Command(program, "-I", "-c",
		"import os, sys, sysconfig; print(os.path.realpath(sys.executable)); print(sysconfig.get_path('stdlib'))").Output()
	if err != nil {
		return fmt.Errorf("ask %s where its standard library is: %w", program, err)
	}
	binary, library, found := strings.Cut(strings.TrimSpace(string(out)), "\n")
	if !found {
		return fmt.Errorf("ask %s where its standard library is: unexpected answer %q", program, out)
	}
	if err := r.put(binary, PythonPath); err != nil {
		return err
	}
	return r.putTree(library, "site-packages", "dist-packages", "test", "idlelib", "tkinter")
}

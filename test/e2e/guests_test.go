package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

const guestSource = "../guest"

// builds is the folder that the guests are compiled into, once for all tests.
type builds struct {
	once sync.Once
	path string
	err  error
	log  []byte
}

var buildDir builds

func (b *builds) build() {
	if b.path, b.err = os.MkdirTemp("", "guests-"); b.err != nil {
		return
	}
	b.log, b.err = exec.Command("make", "-s", "-C", guestSource, "BUILD="+b.path).CombinedOutput()
}

// guest compiles the guests when it is the first to ask for one.
func guest(t *testing.T, name string) string {
	t.Helper()
	buildDir.once.Do(buildDir.build)
	if buildDir.err != nil {
		t.Fatalf("build the guests: %v\n%s", buildDir.err, buildDir.log)
	}
	return filepath.Join(buildDir.path, name)
}

func pythonGuest(t *testing.T, name string) []string {
	t.Helper()
	script, err := filepath.Abs(filepath.Join(guestSource, name))
	if err != nil {
		t.Fatal(err)
	}
	// The distribution's own: what PATH has may be a shell script that looks for one.
	return []string{requireProgram(t, "python3", "/usr/bin/python3"), script}
}

package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// farpagePath is absolute. FARPAGE_BIN names another one to test.
func farpagePath() string {
	path := os.Getenv("FARPAGE_BIN")
	if path == "" {
		path = "../../bin/farpage"
	}
	absolute, err := filepath.Abs(path)
	if err != nil {
		return path
	}
	return absolute
}

// skip skips the test with a reason a reader can act on. Where everything must
// be tested (CI=true or FARPAGE_REQUIRE=1) it fails it instead.
func skip(t *testing.T, reason string) {
	t.Helper()
	if os.Getenv("CI") == "true" || os.Getenv("FARPAGE_REQUIRE") == "1" {
		t.Fatal("must not be skipped here: " + reason)
	}
	t.Skip(reason)
}

func requireFarpage(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		skip(t, "farpage run needs root: run `sudo make test`")
	}
	if _, err := os.Stat(farpagePath()); err != nil {
		skip(t, "no bin/farpage: run `make build` first")
	}
}

// requireProgram says where the program is: at the first of the given paths that
// exists, else where PATH has it.
func requireProgram(t *testing.T, name string, paths ...string) string {
	t.Helper()
	for _, path := range paths {
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	path, err := exec.LookPath(name)
	if err != nil {
		skip(t, name+" is not installed: run `sudo scripts/ensure-packages.sh test`")
	}
	return path
}

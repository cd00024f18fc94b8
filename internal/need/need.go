// Package need says what a test cannot do without. It is for tests only.
//
// A test that is skipped shows nothing, so it is skipped on a developer's machine
// only: where everything must run (CI=true, or FARPAGE_REQUIRE=1) the same want fails
// it. A test in test/deps keeps tests from skipping in any other way.
package need

import (
	"os"
	"os/exec"
	"testing"
)

// Skip skips a test, and says why in words that tell what to do about it.
func Skip(tb testing.TB, why string) {
	tb.Helper()
	if os.Getenv("CI") == "true" || os.Getenv("FARPAGE_REQUIRE") == "1" {
		tb.Fatal("must not be skipped here: " + why)
	}
	tb.Skip(why)
}

// Root skips a test that only root can run. what is the thing that needs it.
func Root(tb testing.TB, what string) {
	tb.Helper()
	if os.Geteuid() != 0 {
		Skip(tb, what+" needs root: run `sudo make test`")
	}
}

// Program returns the path of an installed program.
func Program(tb testing.TB, name string) string {
	tb.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		Skip(tb, name+" is not installed: run `sudo scripts/ensure-packages.sh test`")
	}
	return path
}

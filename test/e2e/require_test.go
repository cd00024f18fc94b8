package e2e

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/farpage/farpage/internal/need"
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

func requireFarpage(t *testing.T) {
	t.Helper()
	need.Root(t, "farpage run")
	if _, err := os.Stat(farpagePath()); err != nil {
		need.Skip(t, "no bin/farpage: run `make build` first")
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
	return need.Program(t, name)
}

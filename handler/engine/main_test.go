package engine_test

import (
	"fmt"
	"os"
	"runtime"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	// As the agent does: an engine's thread keeps its P while it is in the kernel.
	runtime.GOMAXPROCS(runtime.NumCPU() + 8)
	status := m.Run()
	guests.remove()
	if err := goleak.Find(); err != nil {
		fmt.Fprintln(os.Stderr, "FAIL: goroutines are left:", err)
		status = max(status, 1)
	}
	os.Exit(status)
}

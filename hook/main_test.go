package hook

import (
	"os"
	"testing"
)

// asHook makes the test binary behave as farpage-hook, so that real runtimes can call
// it in the end-to-end tests.
const asHook = "FARPAGE_TEST_AS_HOOK"

func TestMain(m *testing.M) {
	if os.Getenv(asHook) != "" {
		os.Exit(Main("test", os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}

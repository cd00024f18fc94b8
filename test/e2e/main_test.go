// Package e2e runs programs as they are under bin/farpage, by `farpage run` and in
// runc containers with the hook and an agent of the tests' own, and compares: exit
// status and output as without it, every byte right, the memory that was
// resident (measured from outside) within the budget, nothing left behind.
//
// A budget is measured with nothing else going on, so none of these tests is
// parallel, and `make test` runs the package by itself.
//
// Environment: FARPAGE_BIN is another farpage than bin/farpage; FARPAGE_REQUIRE=1
// (and CI=true) makes a failure of what would be skipped; FARPAGE_CHURN_SECONDS and
// FARPAGE_CHURN_ARGS are for the churn.
package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestMain(m *testing.M) {
	os.Exit(runAll(m))
}

func runAll(m *testing.M) (status int) {
	before := whatIsThere()
	dir, err := prepareEnvironment()
	if err != nil {
		fmt.Fprintln(os.Stderr, "FAIL:", err)
		return 1
	}
	defer func() {
		if err := os.RemoveAll(dir); err != nil {
			fmt.Fprintln(os.Stderr, "FAIL:", err)
			status = max(status, 1)
		}
	}()
	go cleanUpWhenInterrupted(dir)

	status = m.Run()
	for _, thing := range whatIsThere().without(before) {
		fmt.Fprintln(os.Stderr, "FAIL: left behind:", thing)
		status = max(status, 1)
	}
	return status
}

// prepareEnvironment makes a folder in which all others are made, t.TempDir's
// included, so that they can be removed at once, and marks what is started.
func prepareEnvironment() (string, error) {
	dir, err := os.MkdirTemp("", "farpage-e2e-")
	if err != nil {
		return "", err
	}
	name, value, _ := strings.Cut(mark, "=")
	//nolint:forbidigo // the commands that the tests start shall have both
	return dir, errors.Join(os.Setenv("TMPDIR", dir), os.Setenv(name, value))
}

// cleanUpWhenInterrupted does what the tests' clean-up functions would do.
func cleanUpWhenInterrupted(dir string) {
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, os.Interrupt, syscall.SIGTERM)
	fmt.Fprintln(os.Stderr, "FAIL:", <-interrupted)
	containers.closeAll()
	groups.closeAll()
	removeHostFolders()
	// The test that was interrupted may still be about to write there.
	for range 5 {
		_ = os.RemoveAll(dir)
		time.Sleep(100 * time.Millisecond)
	}
	os.Exit(1)
}

package e2e

import (
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"
)

// churnSeconds is a minute, or what FARPAGE_CHURN_SECONDS says.
func churnSeconds(t *testing.T) int {
	t.Helper()
	text := os.Getenv("FARPAGE_CHURN_SECONDS")
	if text == "" {
		return 60
	}
	seconds, err := strconv.Atoi(text)
	if err != nil || seconds < 1 {
		t.Fatalf("FARPAGE_CHURN_SECONDS=%q: want a number of seconds", text)
	}
	return seconds
}

// hogCPUs burns two CPUs until the test ends; a hog ends by itself soon after.
func hogCPUs(t *testing.T, seconds int) {
	t.Helper()
	for range 2 {
		hog := exec.Command(guest(t, "hog"), strconv.Itoa(seconds+120))
		if err := hog.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = hog.Process.Kill()
			_ = hog.Wait()
		})
	}
}

// FARPAGE_CHURN_ARGS adds to the command, for instance `--seed 7 --without fork`.
func TestChurnOfAllMemoryCallsLosesNoByteOnLoadedCPUs(t *testing.T) {
	requireFarpage(t)
	seconds := churnSeconds(t)
	argv := append([]string{guest(t, "churn"), "--threads", "8", "--seconds", strconv.Itoa(seconds)},
		strings.Fields(os.Getenv("FARPAGE_CHURN_ARGS"))...)
	hogCPUs(t, seconds)
	far := startFar(t, t.TempDir(), argv...).wait(time.Duration(seconds)*time.Second + 10*time.Minute)
	far.log(t)
	t.Logf("%s", far.stderr)
	if far.status != 0 || string(far.stdout) != "churn: 8 threads right\n" {
		t.Errorf("exit status %d, stdout %q\nstderr:\n%s", far.status, far.stdout, far.stderr)
	}
	far.expectSound(t)
	far.expectFar(t)
}

// Programs that move, grow and shrink memory without looking at it, by MREMAP_DONTUNMAP too,
// send events in bursts. With one thread they come in the order in which they happened.
func TestMovesInBurstsLoseNoByte(t *testing.T) {
	requireFarpage(t)
	const seconds = 10
	for name, who := range map[string][]string{"one thread": {"--alone"}, "one of three threads": {"--threads", "1"}} {
		argv := append([]string{guest(t, "churn"), "--seconds", strconv.Itoa(seconds), "--only", "read,write,dance,grow,shrink,replace,trim,move,fixed"}, who...)
		far := startFarWithoutStats(t, "--local", "4Mi", "--", argv).wait(10 * time.Minute)
		if far.status != 0 || string(far.stdout) != "churn: 1 threads right\n" {
			t.Errorf("%s: exit status %d, stdout %q\nstderr:\n%s", name, far.status, far.stdout, far.stderr)
		}
	}
}

package e2e

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/farpage/farpage/oci/policy"
)

// One agent, three containers, one of which does what it can to disturb.
func TestHostileContainerHarmsNeitherTheAgentNorTheOthers(t *testing.T) {
	host := startHost(t)
	neighbours := []struct {
		program
		local string
	}{
		{guestProgram("threads8", "192"), "48Mi"},
		{guestProgram("forktree", "64"), "32Mi"},
	}
	natives := make([]programOutcome, len(neighbours))
	for i, n := range neighbours {
		natives[i] = n.runNative(t)
	}
	pid, before := host.Pid(), host.descriptors()

	dir := t.TempDir()
	stop := filepath.Join(dir, "stop")
	hostile := host.startContained(t, dir, "16Mi", nil, guest(t, "hostile"), policy.MountPoint+"/sock", stop)
	jobs := make([]job, len(neighbours))
	for i, n := range neighbours {
		jobs[i] = host.startContained(t, t.TempDir(), n.local, nil, n.argv(t)...)
	}
	for i, n := range neighbours {
		far := jobs[i].wait(5 * time.Minute)
		far.log(t)
		n.expectRight(t, programOutcome{outcome: far}, natives[i])
	}
	if err := os.WriteFile(stop, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	attacker := hostile.wait(2 * time.Minute)
	attacker.log(t)
	t.Logf("%s%+v", attacker.stderr, attacker.stats.Errors)
	if attacker.status != 0 || string(attacker.stdout) != "hostile: all attempts refused\n" {
		t.Errorf("exit status %d, stdout %q\nstderr:\n%s", attacker.status, attacker.stdout, tail(attacker.stderr))
	}
	if attacker.stats.Errors.Protocol == 0 {
		t.Error("no protocol errors are counted for the hostile container")
	}
	if host.Pid() != pid || host.Ended().Err() != nil {
		t.Fatal("the agent has ended")
	}
	// A moment for what the last connections held.
	after := host.descriptors()
	for deadline := time.Now().Add(5 * time.Second); after > before && time.Now().Before(deadline); after = host.descriptors() {
		time.Sleep(20 * time.Millisecond)
	}
	if after > before {
		t.Errorf("the agent has %d descriptors open, %d before", after, before)
	}
}

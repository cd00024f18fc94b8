package engines

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/farpage/farpage/internal/need"
	"github.com/farpage/farpage/test/container"
)

// unitSetting is a setting of a unit.
func unitSetting(t *testing.T, unit, name string) string {
	t.Helper()
	text, err := os.ReadFile("../../oci/install/units/" + unit)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if value, found := strings.CutPrefix(line, name+"="); found {
			return strings.TrimSpace(value)
		}
	}
	t.Fatalf("%s has no %s", unit, name)
	return ""
}

// The agent does its work with the capabilities that its unit leaves it, without new
// privileges, and without a network.
func TestAgentWorksWithWhatItsUnitLeavesIt(t *testing.T) {
	need.Program(t, "setpriv")
	set := []string{"-all"}
	for _, capability := range strings.Fields(unitSetting(t, "farpage.service", "CapabilityBoundingSet")) {
		set = append(set, "+"+strings.ToLower(strings.TrimPrefix(capability, "CAP_")))
	}
	if unitSetting(t, "farpage.service", "PrivateNetwork") != "yes" || unitSetting(t, "farpage.service", "NoNewPrivileges") != "yes" {
		t.Fatal("the unit has changed: this test is about another one")
	}
	h := startHost(t, "unshare", "--net", "setpriv", "--bounding-set", strings.Join(set, ","), "--no-new-privs")
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", h.Pid()))
	if err != nil {
		t.Fatal(err)
	}
	contains(t, "the agent's status", string(status), "NoNewPrivs:\t1")
	if strings.Contains(string(status), "CapEff:\t000001ff") {
		t.Errorf("the agent has all capabilities:\n%s", status)
	}
	c, err := container.Start(t.Context(), container.Config{
		Args: []string{"/usr/bin/threads8", "64"}, Files: map[string]string{"/usr/bin/threads8": guest(t, "threads8")},
		Annotations: map[string]string{"io.farpage.local": "32Mi"}, Prestart: container.Hook(h.bin, h.SocketDir()), Dir: t.TempDir(),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}()
	if status, err := c.Wait(t.Context()); err != nil || status != 0 {
		t.Errorf("exit status %d (%v)\n%s", status, err, c.Output())
	}
	contains(t, "the program", c.Output(), "16384 pages right")
	h.expectEmpty(t)
	if log := h.Log(); strings.Contains(log, "warn") || strings.Contains(log, "error") {
		t.Errorf("the agent's log:\n%s", log)
	}
}

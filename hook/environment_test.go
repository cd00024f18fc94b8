package hook

import (
	"strings"
	"testing"

	"github.com/farpage/farpage/api"
)

func withEnvironment(variables ...string) map[string]any {
	return map[string]any{"root": map[string]any{"path": "rootfs"}, "process": map[string]any{"env": variables}}
}

func TestEnvironmentCountsOnlyWhereTheOperatorLetsIt(t *testing.T) {
	for _, c := range []struct {
		name     string
		config   map[string]any
		about    api.Agent
		status   int
		output   string // part of what is said; empty: nothing
		reported bool   // the container is opted in, and (here) cannot be set up
	}{
		{"it is off", withEnvironment("FARPAGE_LOCAL=64Mi"), api.Agent{}, 0, "", false},
		{"it is on", withEnvironment("FARPAGE_LOCAL=64Mi"), api.Agent{Environment: true}, 0, "starts unmanaged", true},
		{"nothing is in it", withEnvironment("PATH=/bin"), api.Agent{Environment: true}, 0, "", false},
		{
			"a typo", withEnvironment("FARPAGE_LOCAL=64Mi", "FARPAGE_FARR=1Gi"),
			api.Agent{Environment: true},
			1,
			"does not start, because of its environment: annotation io.farpage.farr", false,
		},
	} {
		agent := startAgent(t, t.TempDir())
		agent.about = c.about
		status, output := runHook(t, Options{SocketDir: agent.socketDir}, newBundle(t, c.config))
		if status != c.status || c.output == "" && output != "" || !strings.Contains(output, c.output) {
			t.Errorf("%s: status %d and %q, want %d and %q", c.name, status, output, c.status, c.output)
		}
		if got := len(agent.asked()) > 0; got != c.reported {
			t.Errorf("%s: the agent was told: %v, want %v", c.name, got, c.reported)
		}
	}
}

func TestEnvironmentOfAContainerIsNotLookedAtWithoutAnAgent(t *testing.T) {
	status, output := runHook(t, Options{SocketDir: socketDir(t)}, newBundle(t, withEnvironment("FARPAGE_LOCAL=64Mi")))
	if status != 0 || output != "" {
		t.Errorf("status %d and %q, want 0 and nothing", status, output)
	}
}

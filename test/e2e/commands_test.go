package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/farpage/farpage/api"
)

// farpage runs one of the commands that talk to an agent.
func farpage(t *testing.T, args ...string) (stdout, stderr string, status int) {
	t.Helper()
	command := exec.CommandContext(t.Context(), farpagePath(), args...)
	var out, err bytes.Buffer
	command.Stdout, command.Stderr = &out, &err
	var exit *exec.ExitError
	if failed := command.Run(); failed != nil && !errors.As(failed, &exit) {
		t.Fatal(failed)
	}
	return out.String(), err.String(), command.ProcessState.ExitCode()
}

// command is one that must succeed, told where the agent's sockets are.
func (h *host) command(t *testing.T, args ...string) string {
	t.Helper()
	stdout, stderr, status := farpage(t, append(args, "--socket-dir", h.SocketDir())...)
	if status != 0 || stderr != "" {
		t.Fatalf("farpage %v: status %d, %s", args, status, stderr)
	}
	return stdout
}

func (h *host) ps(t *testing.T) []api.Container {
	t.Helper()
	var all []api.Container
	decode(t, h.command(t, "ps", "--json"), &all)
	return all
}

func decode(t *testing.T, text string, into any) {
	t.Helper()
	decoder := json.NewDecoder(strings.NewReader(text))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(into); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
}

// residentNow is the sum of Pss_Anon, from outside.
func (c *contained) residentNow() int64 {
	c.t.Helper()
	w := watch(c.t, c.container.Pids)
	time.Sleep(5 * sampleInterval)
	return w().LastBytes
}

func TestEvictedContainerIsSmallAndReadsItsBytesBack(t *testing.T) {
	host := startHost(t)
	dir := shortTempDir(t)
	c := host.startContained(t, dir, "96Mi", nil, redisCommand(t, dir)...)
	server := redis(t, dir, c)
	keys := seeded("evict").Perm(8 << 10) // 32 MiB
	server.set(keys, 1)
	id := c.container.ID()

	list := host.command(t, "ps")
	for _, want := range []string{id[:12], "redis-server", "managed", "96 MiB"} {
		if !strings.Contains(list, want) {
			t.Errorf("ps does not show %q:\n%s", want, list)
		}
	}
	if before := c.residentNow(); before < 32<<20 {
		t.Fatalf("%d MiB resident before eviction: want all of 32", before>>20)
	}
	// A prefix of the id is enough.
	said := host.command(t, "evict", id[:len(id)-4], "--bytes", "8Mi")
	if !strings.Contains(said, "2048 pages (8.0 MiB) evicted") {
		t.Errorf("evict --bytes 8Mi says %q", said)
	}
	said = host.command(t, "evict", id, "--all")
	if !strings.HasSuffix(said, " evicted\n") {
		t.Errorf("evict --all says %q", said)
	}
	// What is left: redis goes on with its timers, and some pages never go.
	if after := c.residentNow(); after > 12<<20 {
		t.Errorf("%d MiB resident after evict --all, %s", after>>20, said)
	}

	var stats api.Container
	decode(t, host.command(t, "stat", id, "--json"), &stats)
	if !stats.Armed || stats.ID != id || stats.BudgetBytes != 96<<20 || stats.FarBytes < 20<<20 || stats.EvictedPages < 20<<20/4096 {
		t.Errorf("stat after eviction: %+v", stats)
	}
	text := host.command(t, "stat", id)
	for _, want := range []string{id, "resident", "of 96 MiB", "redis-server: managed"} {
		if !strings.Contains(text, want) {
			t.Errorf("stat does not show %q:\n%s", want, text)
		}
	}
	server.expect(keys, func(int) int { return 1 })
	far := server.shutdown()
	far.expectSound(t)
	far.expectFar(t)
}

func TestCommandsThatCannotBeDoneSayWhatToDo(t *testing.T) {
	host := startHost(t)
	there, gone := host.SocketDir(), filepath.Join(t.TempDir(), "none")
	for _, test := range []struct {
		name   string
		args   []string
		says   []string
		status int
	}{
		{"stat of nobody", []string{"stat", "nobody", "--socket-dir", there}, []string{`no container "nobody"`, "farpage ps"}, 1},
		{"evict of nobody", []string{"evict", "nobody", "--all", "--socket-dir", there}, []string{`no container "nobody"`, "farpage ps"}, 1},
		{"evict nothing", []string{"evict", "nobody", "--socket-dir", there}, []string{"--bytes SIZE", "--all"}, 1},
		{"evict both", []string{"evict", "nobody", "--all", "--bytes", "1Mi", "--socket-dir", there}, []string{"--bytes SIZE", "--all"}, 1},
		{"evict a bad size", []string{"evict", "nobody", "--bytes", "much", "--socket-dir", there}, []string{"--bytes", "much"}, 1},
		{"stat of whom", []string{"stat", "--socket-dir", there}, []string{"1 arg"}, 1},
		{"ps without agent", []string{"ps", "--socket-dir", gone}, []string{"not running", gone, "farpage agent"}, 1},
		{"stat without agent", []string{"stat", "x", "--socket-dir", gone}, []string{"not running", "farpage agent"}, 1},
		{"evict without agent", []string{"evict", "x", "--all", "--socket-dir", gone}, []string{"not running", "farpage agent"}, 1},
		{"run without a budget", []string{"run", "--", "true"}, []string{"--local SIZE"}, 125},
		{"run of nothing", []string{"run", "--local", "32Mi"}, []string{"1 arg"}, 125},
		{"unknown flag", []string{"ps", "--jsn"}, []string{"--jsn"}, 1},
		{"unknown store", []string{"agent", "--store", "tape:", "--socket-dir", gone, "--state-dir", gone}, []string{"tape:", "mem:"}, 1},
		{"second agent", []string{"agent", "--socket-dir", there, "--state-dir", filepath.Join(filepath.Dir(there), "state")}, []string{"another agent", "--state-dir"}, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			stdout, stderr, status := farpage(t, test.args...)
			if status != test.status || stdout != "" || !strings.HasPrefix(stderr, "farpage: ") {
				t.Errorf("status %d, stdout %q, stderr %q: want status %d and only an error of farpage's", status, stdout, stderr, test.status)
			}
			for _, want := range test.says {
				if !strings.Contains(stderr, want) {
					t.Errorf("%q does not say %q", stderr, want)
				}
			}
		})
	}
}

package hook

import (
	"bytes"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/farpage/farpage/internal/syslog"
	"github.com/farpage/farpage/oci/policy"
)

// newBundle writes a config.json and returns the state that a runtime would give for it.
// The container's process is the test itself: it has no cgroup and no mount namespace of
// its own, and so whatever is opted in is refused.
func newBundle(t *testing.T, config map[string]any) state {
	t.Helper()
	dir := t.TempDir()
	text, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), text, 0o600); err != nil {
		t.Fatal(err)
	}
	return state{ID: "c1", Pid: os.Getpid(), Bundle: dir}
}

// runHook runs the hook and returns its status and what it printed.
func runHook(t *testing.T, o Options, stdin any) (status int, output string) {
	t.Helper()
	text, isText := stdin.(string)
	if !isText {
		encoded, err := json.Marshal(stdin)
		if err != nil {
			t.Fatal(err)
		}
		text = string(encoded)
	}
	var stderr bytes.Buffer
	status = Run(t.Context(), o, strings.NewReader(text), &stderr)
	return status, stderr.String()
}

func annotated(annotations map[string]string) map[string]any {
	return map[string]any{"root": map[string]any{"path": "rootfs"}, "annotations": annotations}
}

func TestAContainerThatIsNotOptedInIsLetAlone(t *testing.T) {
	agent := startAgent(t, t.TempDir())
	missing := state{ID: "c1", Pid: 1, Bundle: "/nowhere"}
	pause := newBundle(t, annotated(map[string]string{policy.KeyLocal: "1G", "io.kubernetes.cri.container-type": "sandbox"}))
	sidecar := newBundle(t, annotated(map[string]string{policy.KeyLocal + "/redis": "1G", "io.kubernetes.cri.container-name": "sidecar"}))
	for name, s := range map[string]state{
		"no annotations":                       newBundle(t, map[string]any{}),
		"annotations of others":                newBundle(t, annotated(map[string]string{"io.kubernetes.cri-o.Name": "x"})),
		"a bundle that is out of reach":        missing,
		"the pause process of an opted-in pod": pause,
		"another container of the pod":         sidecar,
	} {
		if status, output := runHook(t, Options{SocketDir: agent.socketDir}, s); status != 0 || output != "" {
			t.Errorf("%s: status %d, output %q", name, status, output)
		}
	}
	if asked := agent.asked(); len(asked) > 0 {
		t.Errorf("the agent was asked for %+v", asked)
	}
}

func TestAWrongAnnotationStopsTheContainerWithAMessage(t *testing.T) {
	agent := startAgent(t, t.TempDir())
	for _, annotations := range []map[string]string{
		{policy.KeyLocal: "256MB"},
		{policy.KeyLocal: "256MB", policy.KeyOnFailure: "open"},
		{policy.KeyFar: "1G"},
		{policy.KeyLocal: "256Mi", "io.farpage.locl": "1G"},
		{policy.KeyLocal: "50%"}, // of no limit
	} {
		status, output := runHook(t, Options{SocketDir: agent.socketDir}, newBundle(t, annotated(annotations)))
		_, _, err := policy.Parse(annotations, 0)
		if want := "farpage: container c1 does not start: " + err.Error() + "\n"; status != 1 || output != want {
			t.Errorf("status %d\ngot  %swant %s", status, output, want)
		}
	}
	// Also where only the state is there to be read.
	status, output := runHook(t, Options{SocketDir: agent.socketDir}, state{ID: "c1", Bundle: "/nowhere", Annotations: map[string]string{policy.KeyLocal: "x"}})
	if status != 1 || !strings.Contains(output, `annotation io.farpage.local="x": not a size`) {
		t.Errorf("status %d, %q", status, output)
	}
	if asked := agent.asked(); len(asked) > 0 {
		t.Errorf("the agent was asked for %+v", asked)
	}
}

func TestAStateThatCannotBeReadStopsNoContainer(t *testing.T) {
	for _, stdin := range []string{"", "{", "[]", `{"pid":"x"}`, strings.Repeat(" ", maxJSONBytes+1)} {
		status, output := runHook(t, Options{}, stdin)
		if status != 0 || !strings.HasPrefix(output, "farpage: reading the container's state from standard input: ") {
			t.Errorf("status %d, output %q", status, output)
		}
	}
}

func TestAReasonIsReportedOrStopsTheContainer(t *testing.T) {
	local := map[string]string{policy.KeyLocal: "256Mi"}
	closed := map[string]string{policy.KeyLocal: "256Mi", policy.KeyOnFailure: "closed"}
	withoutRoot := func(annotations map[string]string) state {
		return newBundle(t, map[string]any{"annotations": annotations})
	}
	withoutBundle := func(annotations map[string]string) state {
		return state{ID: "c1", Pid: os.Getpid(), Bundle: "/nowhere", Annotations: annotations}
	}
	for name, c := range map[string]struct {
		of   func(map[string]string) state
		want string
	}{
		"no root":   {withoutRoot, "config.json names no root file system (root.path)"},
		"no bundle": {withoutBundle, "the container's configuration cannot be read: open /nowhere/config.json: no such file or directory"},
	} {
		agent := startAgent(t, t.TempDir())
		status, output := runHook(t, Options{SocketDir: agent.socketDir}, c.of(local))
		if want := "farpage: container c1 starts unmanaged: " + c.want + "\n"; status != 0 || output != want {
			t.Errorf("%s, open: status %d, output %q", name, status, output)
		}
		if asked := agent.asked(); len(asked) != 1 || asked[0].ID != "c1" || asked[0].Unmanaged != c.want || asked[0].Policy.LocalBytes != 256<<20 {
			t.Errorf("%s, open: the agent was told %+v", name, asked)
		}

		agent = startAgent(t, t.TempDir())
		status, output = runHook(t, Options{SocketDir: agent.socketDir}, c.of(closed))
		if want := "farpage: container c1 does not start, because it cannot be set up and io.farpage.on-failure is closed: " + c.want + "\n"; status != 1 || output != want {
			t.Errorf("%s, closed: status %d, output %q", name, status, output)
		}
		if asked := agent.asked(); len(asked) > 0 {
			t.Errorf("%s, closed: the agent was told %+v", name, asked)
		}
	}
}

func TestAReportThatReachesNobodyIsNotAnErrorOfItsOwn(t *testing.T) {
	s := newBundle(t, map[string]any{"annotations": map[string]string{policy.KeyLocal: "256Mi"}})
	status, output := runHook(t, Options{SocketDir: socketDir(t)}, s)
	if status != 0 || strings.Count(output, "\n") != 1 {
		t.Errorf("status %d, output %q", status, output)
	}
}

func TestWhatTheHookSaysIsInTheHostsLogToo(t *testing.T) {
	socket := filepath.Join(socketDir(t), "log")
	log, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	_, output := runHook(t, Options{SyslogSocket: socket}, newBundle(t, annotated(map[string]string{policy.KeyFar: "1G"})))
	datagram := make([]byte, 4096)
	n, err := log.Read(datagram)
	if err != nil {
		t.Fatal(err)
	}
	_, message, _ := strings.Cut(string(datagram[:n]), "]: ")
	if !strings.HasPrefix(string(datagram), "<28>") || "farpage: "+message+"\n" != output {
		t.Errorf("the log got %q, standard error %q", datagram[:n], output)
	}
}

func TestALogThatIsFullOrMissingIsNotWaitedFor(t *testing.T) {
	socket := filepath.Join(socketDir(t), "log")
	log, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	start := time.Now()
	for range 20 { // more than net.unix.max_dgram_qlen, 10 by default; nobody reads
		syslog.Warn(socket, "farpage-hook", "message")
	}
	syslog.Warn(socket+"-missing", "farpage-hook", "message")
	if took := time.Since(start); took > 20*time.Second {
		t.Errorf("it took %v", took)
	}
}

func FuzzTheStateNeverPanics(f *testing.F) {
	f.Add(`{"ociVersion":"1.0.2","id":"c","pid":1,"bundle":"/b","annotations":{"io.farpage.local":"1G"}}`)
	f.Add(`{"annotations":null}`)
	f.Fuzz(func(t *testing.T, text string) {
		s, err := readState(strings.NewReader(text))
		if err == nil {
			s.Bundle = "" // nothing of the machine is read
			_, _, _ = readContainer(s, nil)
		}
	})
}

package wrapper

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestCommandLinesOfRuntimesAreUnderstood(t *testing.T) {
	for _, c := range []struct{ line, command, bundle, log string }{
		{"--root /run/docker/runtime-runc/moby --log /run/x/log.json --log-format json create --bundle /run/x --pid-file /run/x/init.pid abc", "create", "/run/x", "/run/x/log.json"},
		{"--systemd-cgroup --root=/r --log=/l create --no-pivot -b /b id", "create", "/b", "/l"},
		{"-root /r -log /l run -bundle=/b id", "run", "/b", "/l"},
		{"--cgroup-manager systemd --debug create --bundle /b create", "create", "/b", ""},
		{"--root create --log state exec id", "exec", "", "state"},
		{"--version", "", "", ""},
		{"", "", "", ""},
		{"run id -- --bundle /x", "run", "", ""},
	} {
		args := strings.Fields(c.line)
		if command, bundle, log := commandOf(args), valueOf(args, "--bundle", "-b"), valueOf(args, "--log"); command != c.command || bundle != c.bundle || log != c.log {
			t.Errorf("%s: %q, %q, %q", c.line, command, bundle, log)
		}
	}
}

// asWrapper makes this test program a farpage-runtime: it has to become another program.
const asWrapper = "FARPAGE_TEST_WRAPPER"

func TestMain(m *testing.M) {
	if os.Getenv(asWrapper) != "" {
		os.Exit(Main("test", os.Args[1:], os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}

// runtimeThat makes a runtime that prints what it was called with, knows one bundle, and
// prints the configuration that it finds.
func runtimeThat(t *testing.T, bundle string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "runtime")
	script := `#!/bin/sh
case " $* " in
*" state "*) echo '{"bundle": "` + bundle + `"}';;
*) echo "called: $*"; for last; do :; done; [ -f "$last" ] && cat "$last"; exit 7;;
esac
`
	if err := os.WriteFile(path, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// call runs the wrapper with a runtime and a hook that is there.
func wrap(t *testing.T, runtime string, args ...string) (stdout, stderr string, status int) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, append([]string{"--farpage-runtime", runtime, "--farpage-hook=" + self, "--farpage-socket-dir", "/run/x"}, args...)...)
	cmd.Env = []string{asWrapper + "=1", "PATH=/bin:/usr/bin"}
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	_ = cmd.Run() // the status says it
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

func writeFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestWithoutAnAnnotationTheBundleStaysByteForByte(t *testing.T) {
	for _, config := range []string{
		`{"root": {"path": "rootfs"},   "process": {"env": ["A=1"]}}`,
		`{"annotations": {"io.kubernetes.cri.container-type": "sandbox", "io.farpage.local": "64Mi"}, "root": {"path": "r"}}`,
		`{"annotations": {"com.example/io.farpage.local": "64Mi"}, "root": {"path": "r"}}`,
		`not even JSON`,
	} {
		dir := t.TempDir()
		path := filepath.Join(dir, "config.json")
		writeFile(t, path, config)
		stdout, stderr, status := wrap(t, runtimeThat(t, dir), "--root", "/r", "create", "--bundle", dir, "id")
		if want := "called: --root /r create --bundle " + dir + " id\n"; stdout != want || status != 7 {
			t.Errorf("%s: status %d, %q, want %q\n%s", config, status, stdout, want, stderr)
		}
		if got := readFile(t, path); got != config {
			t.Errorf("%s became %s", config, got)
		}
	}
}

func TestAnAnnotatedContainerGetsTheHookAndOnMuslThePreload(t *testing.T) {
	for _, musl := range []bool{false, true} {
		dir := t.TempDir()
		path := filepath.Join(dir, "config.json")
		writeFile(t, path, `{"annotations": {"io.farpage.local": "64Mi"}, "root": {"path": "rootfs"}, "process": {"env": ["LD_PRELOAD=/own.so"]}}`)
		if musl {
			writeFile(t, filepath.Join(dir, "rootfs/lib/ld-musl-x86_64.so.1"), "")
		}
		for range 2 { // engines may call it again for the same bundle
			if stdout, stderr, status := wrap(t, runtimeThat(t, dir), "create", "--bundle", dir, "id"); status != 7 || stderr != "" || !strings.HasPrefix(stdout, "called: create") {
				t.Fatalf("status %d, %q, %q", status, stdout, stderr)
			}
		}
		var got struct {
			Hooks map[string][]struct {
				Path string
				Args []string
			}
			Process struct{ Env []string }
		}
		if err := json.Unmarshal([]byte(readFile(t, path)), &got); err != nil {
			t.Fatal(err)
		}
		self, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		hooks := got.Hooks["createRuntime"]
		if len(got.Hooks) != 1 || len(hooks) != 1 || hooks[0].Path != self || strings.Join(hooks[0].Args, " ") != "farpage-hook --socket-dir /run/x createRuntime" {
			t.Errorf("musl %v: hooks %+v", musl, got.Hooks)
		}
		want := "LD_PRELOAD=/own.so"
		if musl {
			want += ":/dev/farpage/libfarpage.so"
		}
		if len(got.Process.Env) != 1 || got.Process.Env[0] != want {
			t.Errorf("musl %v: %q, want %q", musl, got.Process.Env, want)
		}
	}
}

func TestAProcessThatIsStartedLaterHasThePreloadOfItsContainer(t *testing.T) {
	const before = `{"env": ["A=1"], "args": ["sh"]}`
	const preloading = `{"args":["sh"],"env":["A=1","LD_PRELOAD=/dev/farpage/libfarpage.so"]}` + "\n"
	for _, c := range []struct{ config, want string }{
		{`{"process": {"env": ["LD_PRELOAD=/dev/farpage/libfarpage.so"]}}`, preloading},
		{`{"process": {"env": []}}`, before},
	} {
		dir := t.TempDir()
		writeFile(t, filepath.Join(dir, "config.json"), c.config)
		process := filepath.Join(dir, "process.json")
		writeFile(t, process, before)
		stdout, stderr, status := wrap(t, runtimeThat(t, dir), "--root", "/r", "exec", "--process", process, "--detach", "id")
		if status != 7 || stderr != "" || stdout != "called: --root /r exec --process "+process+" --detach id\n" {
			t.Errorf("status %d, %q, %q", status, stdout, stderr)
		}
		if got := readFile(t, process); got != c.want {
			t.Errorf("%s: %q, want %q", c.config, got, c.want)
		}
	}
}

func TestItsOwnTroubleStopsAContainerOnlyWhereThatIsAskedFor(t *testing.T) {
	for _, onFailure := range []string{"open", "closed"} {
		dir := t.TempDir()
		config := `{"annotations": {"io.farpage.local": "64Mi", "io.farpage.on-failure": "` + onFailure + `"}, "root": {"path": "r"}}`
		writeFile(t, filepath.Join(dir, "config.json"), config)
		log := filepath.Join(dir, "log.json")
		stdout, stderr, status := wrap(t, runtimeThat(t, dir), "--farpage-hook", "/no/hook", "--log", log, "create", "--bundle", dir, "id")
		const why = "farpage's hook is not there (stat /no/hook: no such file or directory): install it, or name it by --farpage-hook"
		switch onFailure {
		case "open":
			if status != 7 || !strings.HasPrefix(stdout, "called: ") || stderr != "farpage-runtime: the container starts unmanaged: "+why+"; the runtime is called as the engine called it\n" {
				t.Errorf("open: status %d, %q, %q", status, stdout, stderr)
			}
			if _, err := os.Stat(log); err == nil {
				t.Errorf("open: the engine's log says %s", readFile(t, log))
			}
		case "closed":
			want := "farpage-runtime: the container does not start, because it cannot be set up and io.farpage.on-failure is closed: " + why
			if status != 1 || stdout != "" || stderr != want+"\n" {
				t.Errorf("closed: status %d, %q, %q", status, stdout, stderr)
			}
			var entry struct{ Level, Msg string }
			if err := json.Unmarshal([]byte(readFile(t, log)), &entry); err != nil || entry.Level != "error" || entry.Msg != want {
				t.Errorf("closed: the engine's log: %v, %+v", err, entry)
			}
		}
		if got := readFile(t, filepath.Join(dir, "config.json")); got != config {
			t.Errorf("%s became %s", config, got)
		}
	}
}

func TestAnnotationsOfTheCommandLineHoldWhereTheContainerHasNone(t *testing.T) {
	for config, want := range map[string]string{
		`{"root": {"path": "rootfs"}}`:                                                 "64Mi",
		`{"annotations": {"com.example/x": "y"}, "root": {"path": "rootfs"}}`:          "64Mi",
		`{"annotations": {"io.farpage.local": "32Mi"}, "root": {"path": "rootfs"}}`:    "32Mi",
		`{"annotations": {"io.kubernetes.cri.container-type": "sandbox"}, "root": {}}`: "",
	} {
		dir := t.TempDir()
		path := filepath.Join(dir, "config.json")
		writeFile(t, path, config)
		_, stderr, status := wrap(t, runtimeThat(t, dir), "--farpage-annotation=io.farpage.local=64Mi", "create", "--bundle", dir, "id")
		var after struct {
			Annotations map[string]string
			Hooks       map[string][]struct{ Path string }
		}
		if err := json.Unmarshal([]byte(readFile(t, path)), &after); err != nil {
			t.Fatal(err)
		}
		if status != 7 || after.Annotations["io.farpage.local"] != want || len(after.Hooks["createRuntime"]) != min(len(want), 1) {
			t.Errorf("%s: status %d, %+v\n%s", config, status, after, stderr)
		}
	}
	for _, wrong := range []string{"io.farpage.local", "local=64Mi", ""} {
		if _, stderr, status := wrap(t, "true", "--farpage-annotation", wrong, "create", "id"); status != 1 || !strings.Contains(stderr, "want io.farpage.KEY=VALUE") {
			t.Errorf("%q: status %d, %s", wrong, status, stderr)
		}
	}
}

func TestARuntimeIsFoundWithoutAPath(t *testing.T) {
	t.Setenv("PATH", "")
	if path, err := runtimePath("sh"); err != nil || !filepath.IsAbs(path) {
		t.Errorf("%q, %v", path, err)
	}
	if path, err := runtimePath("no-such-runtime"); err == nil {
		t.Errorf("no-such-runtime is %s", path)
	}
}

func TestARuntimeThatIsNotThereIsNamed(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for runtime, want := range map[string]string{
		"no-such-runtime": "the runtime that does the work, no-such-runtime, is not to be found",
		self:              "is this program itself: name runc or crun",
	} {
		log := filepath.Join(t.TempDir(), "log.json")
		_, stderr, status := wrap(t, runtime, "--log", log, "start", "id")
		if status != 1 || !strings.Contains(stderr, want) || !strings.Contains(readFile(t, log), want) {
			t.Errorf("%s: status %d, %q", runtime, status, stderr)
		}
	}
	for _, args := range [][]string{{"--farpage-hok", "x"}, {"--farpage-runtime"}, {}} {
		var stdout, stderr bytes.Buffer
		if status := Main("v1", args, &stdout, &stderr); status != 1 || !strings.Contains(stderr.String(), "usage: farpage-runtime") {
			t.Errorf("%q: status %d, %q", args, status, stderr.String())
		}
	}
}

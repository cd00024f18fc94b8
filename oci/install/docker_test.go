package install

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// hostWith is a host that has one file; nil: not even that.
func hostWith(t *testing.T, path string, content []byte) Host {
	t.Helper()
	h := Host{Root: t.TempDir(), Bin: "/usr/bin"}
	if content != nil {
		putFile(t, h, path, content)
	}
	return h
}

func putFile(t *testing.T, h Host, path string, content []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(h.path(path)), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(h.path(path), content, 0o640); err != nil {
		t.Fatal(err)
	}
}

// apply makes a plan's changes.
func apply(t *testing.T, plan Plan, err error) {
	t.Helper()
	if err == nil {
		err = plan.Apply()
	}
	if err != nil {
		t.Fatal(err)
	}
}

// mustRead is the content of a file, "(none)" when it is not there.
func mustRead(t *testing.T, h Host, path string) string {
	t.Helper()
	text, err := h.read(path)
	if err != nil {
		t.Fatal(err)
	}
	if text == nil {
		return "(none)"
	}
	return string(text)
}

func TestDockersConfigurationGetsTheRuntimeAndLosesItWithoutATrace(t *testing.T) {
	for _, c := range []struct{ name, before, after string }{
		{"no file", "(none)", `{
  "runtimes": {
    "farpage": {
      "path": "/usr/bin/farpage-runtime"
    }
  }
}
`},
		{"settings in their order", `{
    "log-driver": "journald",
    "bip": "10.0.0.1/24"
}
`, `{
    "log-driver": "journald",
    "bip": "10.0.0.1/24",
    "runtimes": {
      "farpage": {
        "path": "/usr/bin/farpage-runtime"
      }
    }
}
`},
		{
			"another runtime", `{"runtimes": {"nvidia": {"path": "nvidia-container-runtime", "args": []}}, "debug": true}`,
			`{"runtimes": {"nvidia": {"path": "nvidia-container-runtime", "args": []},"farpage": { "path": "/usr/bin/farpage-runtime" }}, "debug": true}`,
		},
		{"no line end", `{"debug": true}`, `{"debug": true,"runtimes": { "farpage": { "path": "/usr/bin/farpage-runtime" } }}`},
		{
			"tabs and strange keys", "{\n\t\"a\\\"b\\\\\": \"}\",\n\t\"runtimes\": {\n\t\t\"x\": {}\n\t}\n}",
			"{\n\t\"a\\\"b\\\\\": \"}\",\n\t\"runtimes\": {\n\t\t\"x\": {},\n\t\t\"farpage\": {\n\t\t  \"path\": \"/usr/bin/farpage-runtime\"\n\t\t}\n\t}\n}",
		},
	} {
		var content []byte
		if c.before != "(none)" {
			content = []byte(c.before)
		}
		h := hostWith(t, daemonJSON, content)
		plan, err := Docker(h, DockerOptions{})
		apply(t, plan, err)
		got := mustRead(t, h, daemonJSON)
		if got != c.after {
			t.Errorf("%s: installed\n%s\nwant\n%s", c.name, got, c.after)
		}
		if again, err := Docker(h, DockerOptions{}); err != nil || len(again.Changes) > 0 {
			t.Errorf("%s: the second time: %v\n%s", c.name, err, again.Diff())
		}
		plan, err = RemoveDocker(h)
		apply(t, plan, err)
		if got := mustRead(t, h, daemonJSON); got != c.before {
			t.Errorf("%s: uninstalled\n%q\nwant\n%q", c.name, got, c.before)
		}
		if plan, err := RemoveDocker(h); err != nil || len(plan.Changes) > 0 {
			t.Errorf("%s: uninstalled twice: %v\n%s", c.name, err, plan.Diff())
		}
	}
}

func TestADefaultRuntimeOfSomebodyElseStays(t *testing.T) {
	h := hostWith(t, daemonJSON, []byte(`{"default-runtime": "nvidia"}`))
	if _, err := Docker(h, DockerOptions{Default: true}); err == nil || !strings.Contains(err.Error(), `default-runtime is "nvidia" already`) {
		t.Error(err)
	}
	h = hostWith(t, daemonJSON, nil)
	plan, err := Docker(h, DockerOptions{Default: true})
	apply(t, plan, err)
	var got struct {
		Default string `json:"default-runtime"`
	}
	if err := json.Unmarshal([]byte(mustRead(t, h, daemonJSON)), &got); err != nil || got.Default != "farpage" {
		t.Errorf("%v, %+v", err, got)
	}
	plan, err = RemoveDocker(h)
	apply(t, plan, err)
	if got := mustRead(t, h, daemonJSON); got != "(none)" {
		t.Errorf("left: %q", got)
	}
}

func TestAConfigurationThatDockerWouldNotReadIsNotTouched(t *testing.T) {
	for before, want := range map[string]string{
		"{\n\"debug\": true,\n}":  "line 3: ",
		`[]`:                      "cannot unmarshal array",
		`{"runtimes": ["a"]}`:     "runtimes: it is no object",
		"{} // a comment":         "line 1: ",
		`{"runtimes": "farpage"}`: "runtimes: it is no object",
	} {
		h := hostWith(t, daemonJSON, []byte(before))
		if _, err := Docker(h, DockerOptions{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", before, err, want)
		}
		if got := mustRead(t, h, daemonJSON); got != before {
			t.Errorf("%q became %q", before, got)
		}
	}
}

func TestAFileThatIsChangedMeanwhileIsNotOverwritten(t *testing.T) {
	h := hostWith(t, daemonJSON, []byte(`{}`))
	plan, err := Docker(h, DockerOptions{})
	if err != nil {
		t.Fatal(err)
	}
	putFile(t, h, daemonJSON, []byte(`{"debug": true}`))
	if err := plan.Apply(); err == nil || !strings.Contains(err.Error(), "changed meanwhile") {
		t.Error(err)
	}
	if got := mustRead(t, h, daemonJSON); got != `{"debug": true}` {
		t.Errorf("the file holds %q", got)
	}
}

// Whatever is in the file, and however it is written, comes back.
func TestAnyConfigurationComesBack(t *testing.T) {
	var value func(depth int) *rapid.Generator[any]
	value = func(depth int) *rapid.Generator[any] {
		if depth == 0 {
			return rapid.OneOf(rapid.String().AsAny(), rapid.Int().AsAny(), rapid.Bool().AsAny())
		}
		return rapid.OneOf(
			rapid.String().AsAny(), rapid.SliceOfN(value(depth-1), 0, 3).AsAny(),
			rapid.MapOfN(rapid.String(), value(depth-1), 0, 3).AsAny())
	}
	rapid.Check(t, func(rt *rapid.T) {
		content := rapid.MapOfN(rapid.String(), value(2), 0, 4).Draw(rt, "settings")
		delete(content, defaultRuntime)
		if rapid.Bool().Draw(rt, "runtimes") {
			content["runtimes"] = rapid.MapOfN(rapid.StringMatching(`[a-e]{1,2}`), value(1), 1, 3).Draw(rt, "others")
		} else {
			delete(content, "runtimes")
		}
		indent := rapid.SampledFrom([]string{"", " ", "    ", "\t"}).Draw(rt, "indent")
		before, err := json.MarshalIndent(content, "", indent)
		if indent == "" {
			before, err = json.Marshal(content)
		}
		if err != nil {
			rt.Fatal(err)
		}
		if len(content) == 0 {
			before = append(before, '\n') // {} alone
		}
		after, err := setIn(before, "runtimes", "farpage", "{\n  \"path\": \"/x\"\n}")
		if err != nil {
			rt.Fatalf("%s: %v", before, err)
		}
		var read map[string]any
		if err := json.Unmarshal(after, &read); err != nil {
			rt.Fatalf("%s\nbecame\n%s\n%v", before, after, err)
		}
		if got := fmt.Sprint(lookUp(read, "runtimes", "farpage", "path")); got != "/x" {
			rt.Fatalf("%s\nbecame\n%s", before, after)
		}
		back, err := removeIn(after, "runtimes", "farpage")
		if err != nil || string(back) != string(before) && len(content) > 0 {
			rt.Fatalf("%s\nbecame\n%s\nand then %v\n%s", before, after, err, back)
		}
	})
}

// executable makes a file of a host a program.
func executable(t *testing.T, h Host, path string) {
	t.Helper()
	if err := os.Chmod(h.path(path), 0o755); err != nil {
		t.Fatal(err)
	}
}

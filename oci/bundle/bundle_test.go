package bundle

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func mustParse(t *testing.T, text string) Document {
	t.Helper()
	d, err := Parse("config.json", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func encoded(t *testing.T, d Document) string {
	t.Helper()
	text, err := d.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(text))
}

func TestPreloadComesBehindWhatIsPreloadedAlready(t *testing.T) {
	for before, after := range map[string]string{
		`{}`:                                 `{"env":["LD_PRELOAD=/x.so"]}`,
		`{"env":["A=1"]}`:                    `{"env":["A=1","LD_PRELOAD=/x.so"]}`,
		`{"env":["LD_PRELOAD=/a.so /b.so"]}`: `{"env":["LD_PRELOAD=/a.so:/b.so:/x.so"]}`,
		`{"env":["LD_PRELOAD="]}`:            `{"env":["LD_PRELOAD=/x.so"]}`,
		`{"env":["LD_PRELOAD=/a","LD_PRELOAD=b"]}`: `{"env":["LD_PRELOAD=/a","LD_PRELOAD=b:/x.so"]}`,
		`{"env":["LD_PRELOAD_X=/a"]}`:              `{"env":["LD_PRELOAD_X=/a","LD_PRELOAD=/x.so"]}`,
	} {
		d := mustParse(t, before)
		if !d.Preload("/x.so") || encoded(t, d) != after {
			t.Errorf("%s became %s, want %s", before, encoded(t, d), after)
		}
		if d.Preload("/x.so") || encoded(t, d) != after {
			t.Errorf("%s: the second time: %s", before, encoded(t, d))
		}
	}
}

func TestHookIsAddedOnce(t *testing.T) {
	hook := Hook{"/usr/bin/farpage-hook", []string{"farpage-hook", "createRuntime"}}
	const added = `{"args":["farpage-hook","createRuntime"],"path":"/usr/bin/farpage-hook"}`
	for _, c := range []struct {
		before, after string
		added         bool
	}{
		{`{}`, `{"hooks":{"createRuntime":[` + added + `]}}`, true},
		{`{"hooks":null}`, `{"hooks":{"createRuntime":[` + added + `]}}`, true},
		{`{"hooks":{"createRuntime":[{"path":"/a"}],"poststop":[]}}`, `{"hooks":{"createRuntime":[{"path":"/a"},` + added + `],"poststop":[]}}`, true},
		{`{"hooks":{"prestart":[{"path":"/opt/farpage-hook"}]}}`, `{"hooks":{"prestart":[{"path":"/opt/farpage-hook"}]}}`, false},
	} {
		d := mustParse(t, c.before)
		if was, err := d.AddHook("createRuntime", hook); err != nil || was != c.added || encoded(t, d) != c.after {
			t.Errorf("%s: %v, %v, %s", c.before, was, err, encoded(t, d))
		}
	}
	for _, wrong := range []string{`{"hooks":[]}`, `{"hooks":{"createRuntime":{}}}`} {
		if _, err := mustParse(t, wrong).AddHook("createRuntime", hook); err == nil {
			t.Errorf("%s: no error", wrong)
		}
	}
}

func TestWhatIsNoObjectIsRefused(t *testing.T) {
	for _, text := range []string{``, `[]`, `null`, `{} {}`, `{"a":`, `"x"`} {
		if _, err := Parse("config.json", []byte(text)); err == nil || !strings.Contains(err.Error(), "config.json") {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// What is not known here stays as it was, numbers too.
func TestADocumentKeepsWhatItHolds(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		numbers := rapid.SliceOf(rapid.Uint64()).Draw(rt, "numbers")
		text, err := json.Marshal(map[string]any{
			"numbers": numbers, "float": rapid.Float64().Draw(rt, "float"), "text": rapid.String().Draw(rt, "text"),
			"<&>": []any{nil, true, map[string]any{}},
		})
		if err != nil {
			rt.Fatal(err)
		}
		d, err := Parse("x", text)
		if err != nil {
			rt.Fatal(err)
		}
		again, err := d.Encode()
		if err != nil {
			rt.Fatal(err)
		}
		var a, b any
		if json.Unmarshal(text, &a) != nil || json.Unmarshal(again, &b) != nil || !reflect.DeepEqual(a, b) {
			rt.Fatalf("%s became %s", text, again)
		}
		var back struct{ Numbers []uint64 }
		if err := json.Unmarshal(again, &back); err != nil || !reflect.DeepEqual(append([]uint64{}, numbers...), append([]uint64{}, back.Numbers...)) {
			rt.Fatalf("%v became %v (%v)", numbers, back.Numbers, err)
		}
	})
}

func TestAFileIsReplacedWithItsMode(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.json")
	if err := os.WriteFile(path, []byte(`{"a": 1}`), 0o640); err != nil {
		t.Fatal(err)
	}
	d, err := Read(path)
	if err != nil {
		t.Fatal(err)
	}
	d["b"] = "<"
	if err := d.Write(path); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil || string(text) != `{"a":1,"b":"<"}`+"\n" {
		t.Errorf("%q, %v", text, err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if names, err := os.ReadDir(filepath.Dir(path)); err != nil || len(names) != 1 {
		t.Errorf("%v, %v", names, err)
	}
}

func TestMuslsLoaderIsFoundInsideOfTheImageOnly(t *testing.T) {
	root := t.TempDir()
	if HasMusl(root) {
		t.Error("an empty image has musl")
	}
	outside := filepath.Join(t.TempDir(), "ld-musl-x86_64.so.1")
	if err := os.WriteFile(outside, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(root, "lib"), 0o755); err != nil {
		t.Fatal(err)
	}
	loader := filepath.Join(root, "lib", "ld-musl-x86_64.so.1")
	if err := os.Symlink(outside, loader); err != nil {
		t.Fatal(err)
	}
	if HasMusl(root) {
		t.Error("a link out of the image counts")
	}
	// As Alpine has it with merged folders: an absolute link, inside of the image.
	if err := os.Remove(loader); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "libc.so"), nil, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/libc.so", loader); err != nil {
		t.Fatal(err)
	}
	if !HasMusl(root) {
		t.Error("an absolute link inside of the image does not count")
	}
}

package hook

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/farpage/farpage/oci/policy"
)

func TestPrecreateHasProgramsOfMuslPreloadTheLibrary(t *testing.T) {
	musl, glibc := t.TempDir(), t.TempDir()
	if err := os.Mkdir(filepath.Join(musl, "lib"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(musl, "lib/ld-musl-x86_64.so.1"), nil, 0o755); err != nil {
		t.Fatal(err)
	}
	config := func(root, annotation string) string {
		return `{"root":{"path":"` + root + `"},"annotations":{"` + annotation + `":"64Mi"},"process":{"env":["A=1"]}}`
	}
	for name, c := range map[string]struct {
		stdin, env string // empty: it is passed on as it is
	}{
		"musl":                    {config(musl, policy.KeyLocal), `"env":["A=1","LD_PRELOAD=/dev/farpage/libfarpage.so"]`},
		"glibc":                   {config(glibc, policy.KeyLocal), ""},
		"musl, not opted in":      {config(musl, "io.farpage.loc"), ""},
		"no process":              {`{"root":{"path":"` + musl + `"},"annotations":{"io.farpage.local":"64Mi"}}`, ""},
		"what is not to be read":  {`{"root":`, ""},
		"what is too large":       {`{"x":"` + strings.Repeat("x", 17<<20) + `"}`, ""},
		"another container's key": {`{"annotations":{"io.kubernetes.container.name":"a","io.farpage.local/b":"1G"},"process":{"env":[]},"root":{"path":"` + musl + `"}}`, ""},
	} {
		var stdout, stderr bytes.Buffer
		status := Main("v1", []string{"precreate"}, strings.NewReader(c.stdin), &stdout, &stderr)
		switch {
		case status != 0:
			t.Errorf("%s: status %d, %s", name, status, &stderr)
		case c.env == "" && stdout.String() != c.stdin:
			t.Errorf("%s: it became %.200s, %d bytes of %d", name, &stdout, stdout.Len(), len(c.stdin))
		case !strings.Contains(stdout.String(), c.env):
			t.Errorf("%s: it became %s, want %s", name, &stdout, c.env)
		}
		if said := stderr.String() != ""; said != strings.HasPrefix(name, "what is ") {
			t.Errorf("%s: it says %q", name, &stderr)
		}
	}
}

func TestAnnotationsOfTheCommandLineHoldWhereTheContainerHasNone(t *testing.T) {
	defaults := map[string]string{policy.KeyLocal: "64Mi"}
	for annotations, want := range map[string]int64{"": 64 << 20, "32Mi": 32 << 20} {
		own := map[string]string{}
		if annotations != "" {
			own[policy.KeyLocal] = annotations
		}
		c, optedIn, err := readContainer(newBundle(t, annotated(own)), defaults)
		if err != nil || !optedIn || c.policy.LocalBytes != want {
			t.Errorf("%q: %v, opted in %v, %d bytes, want %d", annotations, err, optedIn, c.policy.LocalBytes, want)
		}
	}
	var stdout, stderr bytes.Buffer
	if status := Main("v1", []string{"--annotation", "io.farpage.local", "createRuntime"}, strings.NewReader(""), &stdout, &stderr); status != 0 || !strings.Contains(stderr.String(), `"io.farpage.local" is no KEY=VALUE`) {
		t.Errorf("status %d, %q", status, &stderr)
	}
}

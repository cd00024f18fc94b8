package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/farpage/farpage/oci/policy"
)

func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestWhatTextPrintsIsReadBack(t *testing.T) {
	c := Default()
	c.Environment, c.Bounds.MaxFar = true, "8Gi"
	c.Stores["cold"] = "file:///var/lib/farpage/slots"
	text, err := c.Text()
	if err != nil {
		t.Fatal(err)
	}
	got, err := Load(write(t, text), true)
	if err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	if again, _ := got.Text(); again != text {
		t.Errorf("read back:\n%s\nwant:\n%s", again, text)
	}
}

func TestMistakesInAFileAreNamedWithTheirPlace(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"socket_dir = \"/x\"\nsokcet_dir = 1\n", ":2:1: unknown option \"sokcet_dir\""},
		{"[bounds]\nmax_locl = \"1Gi\"\n", ":2:1: unknown option \"bounds.max_locl\""},
		{"log_level = 3\n", ":1:13: "},
		{"log_level = \"loud\"\n", "log_level \"loud\": allowed are error, warn, info, debug"},
		{"socket_dir = \"run\"\n", "socket_dir \"run\" is not an absolute path"},
		{"[bounds]\nstores = [\"cold\"]\n", "bounds.stores names \"cold\", which stores does not have"},
		{"[bounds]\nmax_far = \"lots\"\n", "bounds.max_far: "},
		{"[stores]\ndefault = \"\"\n", "stores has no \"default\""},
		{"x", ":1:1: "},
	} {
		path := write(t, c.text)
		_, err := Load(path, true)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: error %v, want %q in it", c.text, err, c.want)
		}
	}
}

func TestOnlyAFileThatWasAskedForMustExist(t *testing.T) {
	path := filepath.Join(t.TempDir(), "none.toml")
	if _, err := Load(path, false); err != nil {
		t.Error(err)
	}
	if _, err := Load(path, true); err == nil {
		t.Error("a missing file that was asked for is no error")
	}
}

func TestBoundsHoldPoliciesBack(t *testing.T) {
	c := Default()
	c.Stores["cold"] = "mem:"
	c.Bounds = Bounds{MaxLocal: "1Gi", MaxFar: "4Gi", Stores: []string{"default"}}
	for _, x := range []struct {
		p    policy.Policy
		want string // of the error
		far  int64
	}{
		{policy.Policy{LocalBytes: 1 << 30, FarBytes: 1 << 30}, "", 1 << 30},
		{policy.Policy{LocalBytes: 1 << 20, FarBytes: policy.Unlimited}, "", 4 << 30},
		{policy.Policy{LocalBytes: 1<<30 + 1}, "io.farpage.local: 1073741825 bytes are more than the operator allows; allowed: up to 1Gi", 0},
		{policy.Policy{LocalBytes: 1, FarBytes: 5 << 30}, "io.farpage.far: 5368709120 bytes are more than the operator allows; allowed: up to 4Gi", 0},
		{policy.Policy{LocalBytes: 1, Store: "cold"}, "io.farpage.store: the operator does not let containers use store \"cold\"; allowed: default", 0},
		{policy.Policy{LocalBytes: 1, Store: "x"}, "io.farpage.store: this agent has no store \"x\"; it has cold, default", 0},
	} {
		got, err := c.Apply(x.p)
		if x.want == "" && (err != nil || got.FarBytes != x.far || got.Store != "default") {
			t.Errorf("%+v: %+v, %v", x.p, got, err)
		}
		if x.want != "" && (err == nil || err.Error() != x.want) {
			t.Errorf("%+v: error %v, want %q", x.p, err, x.want)
		}
	}
}

package install

import (
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"
)

const debianConfig = `version = 2

# what Debian ships
[plugins]
  [plugins."io.containerd.grpc.v1.cri"]
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = true # as the kubelet has it
`

func TestContainerdsConfigurationGetsTheRuntimeAndLosesItWithoutATrace(t *testing.T) {
	for _, c := range []struct {
		name, before, plugin string
		systemdCgroup        bool
	}{
		{"no file", "(none)", "io.containerd.grpc.v1.cri", false},
		{"Debian's", debianConfig, "io.containerd.grpc.v1.cri", true},
		{"version 3", "version = 3\n[plugins.'io.containerd.cri.v1.images']\n  snapshotter = 'overlayfs'", "io.containerd.cri.v1.runtime", false},
		{"no line end", "version = 2", "io.containerd.grpc.v1.cri", false},
	} {
		var content []byte
		if c.before != "(none)" {
			content = []byte(c.before)
		}
		h := hostWith(t, containerdConfig, content)
		plan, err := Containerd(h, ContainerdOptions{})
		apply(t, plan, err)
		got := mustRead(t, h, containerdConfig)
		if c.before != "(none)" && !strings.HasPrefix(got, c.before) {
			t.Errorf("%s: what was there is not: %s", c.name, got)
		}
		var read map[string]any
		if err := toml.Unmarshal([]byte(got), &read); err != nil {
			t.Fatalf("%s: %v\n%s", c.name, err, got)
		}
		runtime := func(keys ...string) any {
			return lookUp(read, append([]string{"plugins", c.plugin, "containerd", "runtimes", "farpage"}, keys...)...)
		}
		if runtime("options", "BinaryName") != "/usr/bin/farpage-runtime" || runtime("options", "SystemdCgroup") != c.systemdCgroup {
			t.Errorf("%s: %v", c.name, runtime())
		}
		// Who names one runtime has to name all of them.
		if runc := lookUp(read, "plugins", c.plugin, "containerd", "runtimes", "runc", "runtime_type"); runc != "io.containerd.runc.v2" {
			t.Errorf("%s: runc's runtime_type is %v", c.name, runc)
		}
		if again, err := Containerd(h, ContainerdOptions{}); err != nil || len(again.Changes) > 0 {
			t.Errorf("%s: the second time: %v\n%s", c.name, err, again.Diff())
		}
		plan, err = RemoveContainerd(h)
		apply(t, plan, err)
		if got := mustRead(t, h, containerdConfig); got != c.before {
			t.Errorf("%s: uninstalled\n%q\nwant\n%q", c.name, got, c.before)
		}
	}
}

func TestAContainerdThatCannotBeAddedToIsNotTouched(t *testing.T) {
	for before, want := range map[string]string{
		"":                     "", // as no file
		"version = 1\n":        "containerd config migrate",
		"root = \"/x\"\n":      "containerd config migrate",
		"version = 2\nplugins": "mend it first",
		"version = 2\nplugins = { x = { y = 1 } }\n": "cannot be added at its end",
		"version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.farpage]\n  runtime_type = \"mine\"\n": "farpage did not add",
		"version = 2\n" + beginMark: "take out by hand",
	} {
		h := hostWith(t, containerdConfig, []byte(before))
		_, err := Containerd(h, ContainerdOptions{})
		if want == "" {
			if err != nil {
				t.Errorf("%q: %v", before, err)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", before, err, want)
		}
	}
	h := hostWith(t, containerdConfig, []byte("version = 2\ndisabled_plugins = [\"cri\"]\n"))
	if plan, err := Containerd(h, ContainerdOptions{}); err != nil || len(plan.Notes) != 1 || !strings.Contains(plan.Notes[0], "the CRI plugin is disabled") {
		t.Errorf("%v, %q", err, plan.Notes)
	}
}

func TestNRIIsSwitchedOnWhereItIsAskedFor(t *testing.T) {
	disabled := func(t *testing.T, h Host) any {
		t.Helper()
		var read map[string]any
		if err := toml.Unmarshal([]byte(mustRead(t, h, containerdConfig)), &read); err != nil {
			t.Fatal(err)
		}
		return lookUp(read, "plugins", nriPlugin, "disable")
	}
	for _, before := range []string{debianConfig, "version = 3\n"} {
		h := hostWith(t, containerdConfig, []byte(before))
		plan, err := Containerd(h, ContainerdOptions{})
		apply(t, plan, err)
		if d := disabled(t, h); d != nil {
			t.Errorf("not asked for: disable is %v", d)
		}
		plan, err = Containerd(h, ContainerdOptions{NRI: true})
		apply(t, plan, err)
		if d := disabled(t, h); d != false {
			t.Errorf("disable is %v", d)
		}
		if again, err := Containerd(h, ContainerdOptions{}); err != nil || len(again.Changes) > 0 {
			t.Errorf("without asking again: %v\n%s", err, again.Diff())
		}
		plan, err = RemoveContainerd(h)
		apply(t, plan, err)
		if got := mustRead(t, h, containerdConfig); got != before {
			t.Errorf("left: %s", got)
		}
	}
	own := "version = 2\n[plugins.\"" + nriPlugin + "\"]\n  disable = true\n"
	if _, err := Containerd(hostWith(t, containerdConfig, []byte(own)), ContainerdOptions{NRI: true}); err == nil || !strings.Contains(err.Error(), "write disable = false into it") {
		t.Errorf("a table that is there: %v", err)
	}
}

package install

import (
	"bytes"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// containerdConfig is containerd's configuration (its --config). Its versions before 2
// merge drop-ins (`imports`) plugin by plugin, so that one for the CRI plugin would
// replace all that the file says of it: the table goes into the file itself, at its end.
const containerdConfig = "/etc/containerd/config.toml"

// The lines around what is added to a file of somebody else's.
const (
	beginMark = "# farpage: added by `farpage install`, taken out by `farpage uninstall`\n"
	endMark   = "# farpage: end\n"
)

// containerdSettings are what is needed to know of containerd's configuration.
type containerdSettings struct {
	Version         int            `toml:"version"`
	DisabledPlugins []string       `toml:"disabled_plugins"`
	Plugins         map[string]any `toml:"plugins"`
}

// criPlugin is the plugin that has the runtimes, by the version of the configuration.
func (s containerdSettings) criPlugin() string {
	if s.Version >= 3 {
		return "io.containerd.cri.v1.runtime"
	}
	return "io.containerd.grpc.v1.cri"
}

// lookUp follows keys through tables.
func lookUp(tables map[string]any, keys ...string) any {
	var at any = tables
	for _, key := range keys {
		table, ok := at.(map[string]any)
		if !ok {
			return nil
		}
		at = table[key]
	}
	return at
}

// nriPlugin is the plugin that listens for plugins like farpage-nri. containerd 1.7 has it
// disabled unless the file says otherwise.
const nriPlugin = "io.containerd.nri.v1.nri"

// ContainerdOptions are what a user may want beside the runtime.
type ContainerdOptions struct {
	NRI bool // switch NRI on, for farpage-nri
}

// Containerd adds the runtime `farpage` to containerd's CRI plugin.
func Containerd(h Host, o ContainerdOptions) (Plan, error) {
	plan := containerdPlan()
	if h.SocketDir != "" {
		return plan, fmt.Errorf("containerd calls a runtime without options of its own, which --socket-dir %s would be: give the agent its default folder, or make BinaryName a script", h.SocketDir)
	}
	old, err := h.read(containerdConfig)
	if err != nil {
		return plan, err
	}
	text := old
	if len(bytes.TrimSpace(text)) == 0 {
		text = []byte("version = 2\n") // 1.6 to 2.x read it
	}
	rest, had, err := withoutBlock(text)
	if err != nil {
		return plan, fmt.Errorf("%s: %w", containerdConfig, err)
	}
	var s containerdSettings
	if err := toml.Unmarshal(rest, &s); err != nil {
		return plan, fmt.Errorf("%s: %w: mend it first", containerdConfig, err)
	}
	if s.Version < 2 {
		return plan, fmt.Errorf("%s has version %d: `containerd config migrate` shows it as version 2, which farpage can add to", containerdConfig, s.Version)
	}
	for _, disabled := range s.DisabledPlugins {
		if disabled == "cri" || disabled == s.criPlugin() {
			plan.Notes = append(plan.Notes, "the CRI plugin is disabled in "+containerdConfig+" (disabled_plugins): Kubernetes cannot use this containerd")
		}
	}
	if lookUp(s.Plugins, s.criPlugin(), "containerd", "runtimes", runtimeName) != nil {
		if !had {
			return plan, fmt.Errorf("%s has a runtime %s already that farpage did not add: remove or rename it", containerdConfig, runtimeName)
		}
	}
	added := s.block(h.Bin)
	nri := lookUp(s.Plugins, nriPlugin)
	switch {
	case o.NRI && nri != nil && lookUp(s.Plugins, nriPlugin, "disable") != false:
		return plan, fmt.Errorf("%s has a table for the plugin %s: write disable = false into it", containerdConfig, nriPlugin)
	case nri == nil && (o.NRI || bytes.Contains(old, []byte(nriPlugin))): // asked for now, or before
		added = fmt.Appendf(added, "[plugins.%q]\n  disable = false\n", nriPlugin)
	}
	added = append(added, endMark...)
	content := append(bytes.Clone(rest), added...)
	var check containerdSettings
	if err := toml.Unmarshal(content, &check); err != nil {
		return plan, fmt.Errorf("%s: a table cannot be added at its end (%w): add this yourself\n%s", containerdConfig, err, added)
	}
	plan.change(h, containerdConfig, old, content)
	return plan, nil
}

// RemoveContainerd takes it out again.
func RemoveContainerd(h Host) (Plan, error) {
	plan := containerdPlan()
	old, err := h.read(containerdConfig)
	if err != nil {
		return plan, err
	}
	rest, had, err := withoutBlock(old)
	if err != nil || !had {
		return plan, err
	}
	if string(rest) == "version = 2\n" {
		rest = nil // it was made for this
	}
	plan.change(h, containerdConfig, old, rest)
	return plan, nil
}

func containerdPlan() Plan {
	return Plan{
		Then:    "containerd reads its configuration when it starts (containers keep running): systemctl restart containerd",
		Command: []string{"systemctl", "restart", "containerd"},
	}
}

// containerdRuntime is the runtime that containerd has by itself.
const containerdRuntime = "runc"

// block is the table that is added, without its end. A file that names a runtime has containerd forget the
// one that it would have by itself, which is added too then.
func (s containerdSettings) block(bin string) []byte {
	runtime := func(keys ...string) any {
		return lookUp(s.Plugins, append([]string{s.criPlugin(), "containerd", "runtimes", containerdRuntime}, keys...)...)
	}
	systemdCgroup, _ := runtime("options", "SystemdCgroup").(bool)
	runtimes := fmt.Sprintf("plugins.%q.containerd.runtimes.", s.criPlugin())
	var b strings.Builder
	fmt.Fprintf(&b, "\n%s[%s]\n", beginMark, runtimes+runtimeName)
	b.WriteString("  runtime_type = \"io.containerd.runc.v2\"\n")
	b.WriteString("  pod_annotations = [\"io.farpage.*\", \"io.farpage.*/*\"]\n")
	b.WriteString("  container_annotations = [\"io.farpage.*\"]\n")
	fmt.Fprintf(&b, "  [%s.options]\n    BinaryName = %q\n    SystemdCgroup = %v\n", runtimes+runtimeName, filepath.Join(bin, "farpage-runtime"), systemdCgroup)
	if runtime() == nil {
		fmt.Fprintf(&b, "[%s]\n  runtime_type = \"io.containerd.runc.v2\"\n", runtimes+containerdRuntime)
	}
	return []byte(b.String())
}

// withoutBlock returns a file as it was before a block was added.
func withoutBlock(text []byte) (rest []byte, had bool, err error) {
	begin := bytes.Index(text, []byte(beginMark))
	if begin < 0 {
		return text, false, nil
	}
	end := bytes.Index(text[begin:], []byte(endMark))
	if end < 0 {
		return nil, false, fmt.Errorf("there is %q and not the line that ends it, %q: take out by hand what farpage has added", strings.TrimSpace(beginMark), strings.TrimSpace(endMark))
	}
	if begin > 0 && text[begin-1] == '\n' {
		begin-- // the empty line before it
	}
	end += bytes.Index(text, []byte(beginMark)) + len(endMark)
	return append(bytes.Clone(text[:begin]), text[end:]...), true, nil
}

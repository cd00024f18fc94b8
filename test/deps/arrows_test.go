package deps

import "testing"

// arrow says what the packages of a folder may import of this module, and
// whether they may import other modules. Tests are free, but for the last test.
type arrow struct {
	folder  string
	ours    []string
	modules bool
	why     string
}

var arrows = []arrow{
	{folder: "handler/space", why: "what a page is, without I/O, so that it can be tested by a model"},
	{folder: "handler/evict", why: "policy, without I/O, clock or randomness of its own"},
	{
		folder: "handler", modules: true, ours: []string{"handler", "store", "oci/policy", "api", "shim", "internal/proc"},
		why: "the agent knows no engine",
	},
	{folder: "oci/policy", why: "the hook and the agent share it, and it must stay small"},
	{
		folder: "oci", modules: true, ours: []string{"oci", "api", "internal/proc", "internal/syslog"},
		why: "engines are set up without the agent's engine room",
	},
	{
		folder: "hook", modules: true, ours: []string{"hook", "oci/policy", "oci/bundle", "api", "internal/proc", "internal/syslog"},
		why: "it runs at every container's start",
	},
	{folder: "api", ours: []string{"api", "oci/policy"}, why: "everybody who talks to the agent imports it"},
	{folder: "store", modules: true, ours: []string{"store"}, why: "a store keeps pages and knows nothing of who has them"},
	{folder: "shim", why: "it only carries the library"},
}

// narrowest finds the rule of the deepest folder that a package is in.
func narrowest(name string) (arrow, bool) {
	var found arrow
	for _, rule := range arrows {
		if under(name, rule.folder) && len(rule.folder) > len(found.folder) {
			found = rule
		}
	}
	return found, found.folder != ""
}

func TestPackagesImportOnlyWhatTheirArrowsAllow(t *testing.T) {
	seen := map[string]bool{}
	for _, one := range list(t) {
		rule, held := narrowest(one.name())
		if !held {
			continue
		}
		seen[rule.folder] = true
		for _, path := range one.Imports {
			switch {
			case standard(path):
			case ours(path) && !underOneOf(inside(path), rule.ours):
				t.Errorf("%s imports %s: %s may import %v of this module: %s", one.name(), inside(path), rule.folder, rule.ours, rule.why)
			case !ours(path) && !rule.modules:
				t.Errorf("%s imports %s: %s imports no other module: %s", one.name(), path, rule.folder, rule.why)
			}
		}
	}
	for _, rule := range arrows {
		if !seen[rule.folder] {
			t.Logf("%s: no package there yet", rule.folder)
		}
	}
}

// What the hook links, its imports' imports included.
func TestHookIsLinkedWithoutEngineOrAgent(t *testing.T) {
	banned := []string{
		module + "/handler", module + "/store",
		"github.com/containerd/containerd", "github.com/containerd/nri",
		"github.com/docker", "github.com/moby/moby", "github.com/opencontainers/runc",
		"github.com/spf13/cobra", "github.com/sirupsen/logrus", "k8s.io", "google.golang.org/grpc",
	}
	for _, one := range list(t) {
		if one.name() != "cmd/farpage-hook" && !under(one.name(), "hook") {
			continue
		}
		for _, path := range one.Deps {
			if underOneOf(path, banned) {
				t.Errorf("%s is linked with %s", one.name(), path)
			}
		}
	}
}

func TestNothingOutsideTestImportsTest(t *testing.T) {
	for _, one := range list(t) {
		if under(one.name(), "test") {
			continue
		}
		for _, paths := range [][]string{one.Imports, one.TestImports, one.XTestImports} {
			for _, path := range paths {
				if ours(path) && under(inside(path), "test") {
					t.Errorf("%s imports %s", one.name(), inside(path))
				}
			}
		}
	}
}

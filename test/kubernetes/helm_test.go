// Package kubernetes renders the Helm chart with the helm that tools/helm pins, and holds
// what comes out against Kubernetes' own types. test/engines runs it.
package kubernetes

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	node "k8s.io/api/node/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

// root is the module's folder, seen from here; chart is the chart's, seen from there.
const (
	root  = "../.."
	chart = "packaging/helm/farpage"
)

// command is a command in the module's folder, with folders of its own for helm.
func command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), args[0], args[1:]...)
	cmd.Dir = root
	cmd.Env = os.Environ()
	for _, name := range []string{"HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"} {
		cmd.Env = append(cmd.Env, name+"="+t.TempDir())
	}
	return cmd
}

// program is helm itself, which `go tool -n` builds and names.
var program = sync.OnceValues(func() (string, error) {
	cmd := exec.Command("go", "tool", "-modfile=tools/helm/go.mod", "-n", "helm")
	cmd.Dir = root
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%v: %w\n%s", cmd.Args, err, out)
	}
	return strings.TrimSpace(string(out)), nil
})

// helm runs helm on the chart, with values written as in values.yaml.
func helm(t *testing.T, values string, args ...string) (string, error) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "values.yaml")
	if err := os.WriteFile(file, []byte(values), 0o600); err != nil {
		t.Fatal(err)
	}
	path, err := program()
	if err != nil {
		t.Fatal(err)
	}
	cmd := command(t, append([]string{path}, append(args, "--values", file)...)...)
	var complaint strings.Builder
	cmd.Stderr = &complaint
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("helm %q: %w\n%s%s", args, err, out, &complaint)
	}
	return string(out), err
}

// objects are what a manifest has, each kind once at most.
type objects struct {
	namespace *core.Namespace
	account   *core.ServiceAccount
	config    *core.ConfigMap
	agents    *apps.DaemonSet
	class     *node.RuntimeClass
}

// render renders the chart as the release that is named.
func render(t *testing.T, release, values string) objects {
	t.Helper()
	text, err := helm(t, values, "template", release, chart, "--namespace", "memory")
	if err != nil {
		t.Fatal(err)
	}
	o, err := decode(text)
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	return o
}

// decode reads a manifest. Fields that Kubernetes does not know are errors.
func decode(text string) (objects, error) {
	var o objects
	kinds := map[meta.TypeMeta]func() any{
		{APIVersion: "v1", Kind: "Namespace"}:                func() any { o.namespace = &core.Namespace{}; return o.namespace },
		{APIVersion: "v1", Kind: "ServiceAccount"}:           func() any { o.account = &core.ServiceAccount{}; return o.account },
		{APIVersion: "v1", Kind: "ConfigMap"}:                func() any { o.config = &core.ConfigMap{}; return o.config },
		{APIVersion: "apps/v1", Kind: "DaemonSet"}:           func() any { o.agents = &apps.DaemonSet{}; return o.agents },
		{APIVersion: "node.k8s.io/v1", Kind: "RuntimeClass"}: func() any { o.class = &node.RuntimeClass{}; return o.class },
	}
	for document := range strings.SplitSeq("\n"+text, "\n---\n") {
		var kind meta.TypeMeta
		if err := yaml.Unmarshal([]byte(document), &kind); err != nil {
			return o, err
		}
		if kind == (meta.TypeMeta{}) {
			continue // only comments
		}
		object := kinds[kind]
		if object == nil {
			return o, fmt.Errorf("an object of kind %v that is not wanted, or a second one", kind)
		}
		delete(kinds, kind)
		if err := yaml.UnmarshalStrict([]byte(document), object()); err != nil {
			return o, fmt.Errorf("%s: %w", kind.Kind, err)
		}
	}
	return o, nil
}

func TestObjectsAreReadStrictly(t *testing.T) {
	good := "apiVersion: v1\nkind: Namespace\nmetadata: {name: x}\n"
	if o, err := decode("# nothing\n---\n" + good); err != nil || o.namespace == nil || o.namespace.Name != "x" {
		t.Errorf("%+v, %v", o, err)
	}
	for name, text := range map[string]string{
		"an unknown field": "apiVersion: apps/v1\nkind: DaemonSet\nspec: {template: {spec: {hostPIDs: true}}}\n",
		"another type":     "apiVersion: apps/v1\nkind: DaemonSet\nspec: {template: {spec: {hostPID: 1}}}\n",
		"a key twice":      good + "kind: Namespace\n",
		"an unknown kind":  "apiVersion: v1\nkind: Pod\n",
		"the kind twice":   good + "---\n" + good,
	} {
		if _, err := decode(text); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
}

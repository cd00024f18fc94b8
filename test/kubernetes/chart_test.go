package kubernetes

import (
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/farpage/farpage/handler/config"
	core "k8s.io/api/core/v1"
)

// valueSets are values that people may well have; each is rendered, linted and checked.
var valueSets = map[string]string{
	"default": "",
	"nri only": `
runtimeClass: {enabled: false}
nri: {socketDir: /run/engine/nri}
`,
	"runtime class only": `
nri: {enabled: false}
runtimeClass: {name: far-memory, handler: farpage}
`,
	"all set": `
image: {repository: registry.example/memory/farpage, tag: v2, pullPolicy: Always}
imagePullSecrets: [{name: pull}]
fullnameOverride: memory-agent
namespace: {create: true}
agent:
  logLevel: debug
  logFormat: json
  environment: true
  stores:
    default: file:///var/lib/farpage/slots?max=20G&x="y"
    ram: "mem:"
  bounds: {maxLocal: 64Gi, maxFar: 1T, stores: [default]}
  resources: {limits: {memory: 8Gi}}
serviceAccount: {create: false, name: operators}
podAnnotations: {example.com/team: memory}
podLabels: {team: memory}
priorityClassName: ""
terminationGracePeriodSeconds: 60
updateStrategy: {rollingUpdate: {maxUnavailable: 10%}}
nodeSelector: {pool: memory}
tolerations: []
affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: [{matchExpressions: [{key: zone, operator: In, values: [a]}]}]}}}
`,
	"nothing optional": `
nri: {enabled: false, resources: {}}
runtimeClass: {enabled: false}
agent: {resources: {}}
serviceAccount: {create: false}
nodeSelector: {kubernetes.io/os: null, kubernetes.io/arch: null}
tolerations: []
updateStrategy: {type: OnDelete, rollingUpdate: null}
`,
}

func TestPlainManifestsAreWhatTheChartRenders(t *testing.T) {
	made := filepath.Join(t.TempDir(), "farpage.yaml")
	if out, err := command(t, "make", "--no-print-directory", "-s", "manifests", "MANIFESTS="+made).CombinedOutput(); err != nil {
		t.Fatalf("make manifests: %v\n%s", err, out)
	}
	want, err := os.ReadFile(made)
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(filepath.Join(root, "packaging/kubernetes/farpage.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != string(want) {
		t.Error("packaging/kubernetes/farpage.yaml is not what the chart renders: run `make manifests`")
	}
	o, err := decode(string(got))
	if err != nil {
		t.Fatal(err)
	}
	if o.namespace == nil || o.agents == nil || o.agents.Namespace != o.namespace.Name || o.namespace.Labels["pod-security.kubernetes.io/enforce"] != "privileged" {
		t.Errorf("the namespace %+v does not fit", o.namespace)
	}
}

func TestEachSetOfValuesRendersObjectsThatFitTogether(t *testing.T) {
	for name, values := range valueSets {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if _, err := helm(t, values, "lint", "--strict", chart); err != nil {
				t.Error(err)
			}
			o := render(t, "node", values)
			if o.agents == nil || o.config == nil {
				t.Fatalf("rendered %+v", o)
			}
			template := o.agents.Spec.Template
			for key, value := range o.agents.Spec.Selector.MatchLabels {
				if template.Labels[key] != value {
					t.Errorf("the DaemonSet selects %s=%s, its pods have %v", key, value, template.Labels)
				}
			}
			for _, namespace := range []string{o.agents.Namespace, o.config.Namespace} {
				if namespace != "memory" {
					t.Errorf("namespace %q", namespace)
				}
			}
			if a := o.account; a != nil && (a.Name != template.Spec.ServiceAccountName || a.Namespace != "memory" || *a.AutomountServiceAccountToken) {
				t.Errorf("service account %+v, the pod's is %s", a, template.Spec.ServiceAccountName)
			}
			checkPod(t, template.Spec, o.config)
		})
	}
}

// checkPod checks what the agent cannot do without, and that mounts have their volumes.
func checkPod(t *testing.T, pod core.PodSpec, settings *core.ConfigMap) {
	t.Helper()
	if !pod.HostPID || *pod.AutomountServiceAccountToken || pod.HostNetwork {
		t.Errorf("the pod: %+v", pod)
	}
	volumes, used := map[string]core.Volume{}, map[string]bool{}
	for _, v := range pod.Volumes {
		volumes[v.Name] = v
		if c := v.ConfigMap; c != nil && c.Name != settings.Name {
			t.Errorf("volume %s is of the ConfigMap %s, there is %s", v.Name, c.Name, settings.Name)
		}
	}
	for _, c := range pod.Containers {
		if !*c.SecurityContext.Privileged {
			t.Errorf("container %s is not privileged", c.Name)
		}
		inside := map[string]string{}
		for _, m := range c.VolumeMounts {
			v, there := volumes[m.Name]
			if !there {
				t.Errorf("container %s mounts %s, which is no volume", c.Name, m.Name)
			}
			used[m.Name] = true
			if v.HostPath != nil {
				inside[v.HostPath.Path] = m.MountPath
			}
		}
		// These paths are told to others, or by others.
		for _, path := range []string{"/run/farpage", "/sys/fs/cgroup"} {
			if inside[path] != path {
				t.Errorf("container %s has the node's %s at %q", c.Name, path, inside[path])
			}
		}
	}
	for name := range volumes {
		if !used[name] {
			t.Errorf("nobody mounts volume %s", name)
		}
	}
}

// names are the containers' names.
func names(containers []core.Container) []string {
	var all []string
	for _, c := range containers {
		all = append(all, c.Name)
	}
	return all
}

func TestValuesDoWhatTheySay(t *testing.T) {
	plain := render(t, "farpage", "")
	pod := plain.agents.Spec.Template.Spec
	if got := names(pod.Containers); !slices.Equal(got, []string{"agent", "nri"}) {
		t.Errorf("containers %v", got)
	}
	if plain.agents.Name != "farpage" || plain.namespace != nil || plain.account == nil || plain.class == nil || plain.class.Name != "farpage" || plain.class.Handler != "farpage" {
		t.Errorf("by default: %+v", plain)
	}
	// One agent on a node: it takes over what the last one left.
	if u := plain.agents.Spec.UpdateStrategy; u.Type != "RollingUpdate" || u.RollingUpdate.MaxSurge != nil || u.RollingUpdate.MaxUnavailable.IntValue() != 1 {
		t.Errorf("update strategy %+v", u)
	}
	if !maps.Equal(plain.class.Scheduling.NodeSelector, pod.NodeSelector) || pod.NodeSelector["kubernetes.io/arch"] != "amd64" {
		t.Errorf("the class goes to %v, agents to %v", plain.class.Scheduling, pod.NodeSelector)
	}
	if len(pod.Tolerations) != 1 || pod.Tolerations[0].Operator != core.TolerationOpExists || pod.PriorityClassName != "system-node-critical" {
		t.Errorf("tolerations %v, priority %q", pod.Tolerations, pod.PriorityClassName)
	}

	off := render(t, "memory", valueSets["nothing optional"])
	if off.agents.Name != "memory-farpage" || off.class != nil || off.account != nil || off.agents.Spec.Template.Spec.ServiceAccountName != "default" ||
		!slices.Equal(names(off.agents.Spec.Template.Spec.Containers), []string{"agent"}) || len(off.agents.Spec.Template.Spec.Tolerations) > 0 {
		t.Errorf("with all switched off: %+v", off.agents)
	}

	set := render(t, "x", valueSets["all set"])
	pod = set.agents.Spec.Template.Spec
	if set.agents.Name != "memory-agent" || set.namespace.Name != "memory" || pod.ServiceAccountName != "operators" || pod.Affinity == nil ||
		pod.NodeSelector["pool"] != "memory" || set.agents.Spec.Template.Annotations["example.com/team"] != "memory" || set.agents.Spec.Template.Labels["team"] != "memory" ||
		set.agents.Spec.UpdateStrategy.RollingUpdate.MaxUnavailable.String() != "10%" || *pod.TerminationGracePeriodSeconds != 60 {
		t.Errorf("with all set: %+v", set.agents)
	}
	for _, c := range pod.Containers {
		if c.Image != "registry.example/memory/farpage:v2" || c.ImagePullPolicy != core.PullAlways {
			t.Errorf("container %s has image %s, %s", c.Name, c.Image, c.ImagePullPolicy)
		}
	}
	if limit := pod.Containers[0].Resources.Limits.Memory().String(); limit != "8Gi" {
		t.Errorf("the agent's limit is %s", limit)
	}
	if a, b := plain.agents.Spec.Template.Annotations["checksum/config"], set.agents.Spec.Template.Annotations["checksum/config"]; a == "" || a == b {
		t.Errorf("another configuration starts no agent anew: %q and %q", a, b)
	}

	moved := render(t, "x", valueSets["nri only"])
	for _, v := range moved.agents.Spec.Template.Spec.Volumes {
		if v.Name == "nri" && v.HostPath.Path != "/run/engine/nri" {
			t.Errorf("the engine's folder is %s", v.HostPath.Path)
		}
	}
}

func TestTheAgentReadsItsConfiguration(t *testing.T) {
	read := func(values string) config.Config {
		t.Helper()
		file := filepath.Join(t.TempDir(), "config.toml")
		o := render(t, "x", values)
		if err := os.WriteFile(file, []byte(o.config.Data["config.toml"]), 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := config.Load(file, true)
		if err != nil {
			t.Fatalf("%v\n%s", err, o.config.Data)
		}
		return c
	}
	want := config.Default()
	want.Bounds.Stores = []string{}
	if got := read(""); !reflect.DeepEqual(got, want) {
		t.Errorf("by default %+v, want the agent's own defaults, %+v", got, want)
	}
	want.LogLevel, want.LogFormat, want.Environment = "debug", "json", true
	want.Stores = map[string]string{"default": `file:///var/lib/farpage/slots?max=20G&x="y"`, "ram": "mem:"}
	want.Bounds = config.Bounds{MaxLocal: "64Gi", MaxFar: "1T", Stores: []string{"default"}}
	if got := read(valueSets["all set"]); !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
}

func TestBadValuesAreRefused(t *testing.T) {
	for values, place := range map[string]string{
		"agnet: {}":                                            "agnet",
		"agent: {loglevel: info}":                              "loglevel",
		"agent: {logLevel: loud}":                              "/agent/logLevel",
		"agent: {environment: maybe}":                          "/agent/environment",
		"agent: {stores: {default: null}}":                     "default",
		"agent: {stores: {disk: ftp://x}}":                     "/agent/stores/disk",
		"agent: {bounds: {maxLocal: lots}}":                    "/agent/bounds/maxLocal",
		"agent: {bounds: {maxFar: half}}":                      "/agent/bounds/maxFar",
		"agent: {resources: {limit: {cpu: 1}}}":                "limit",
		"image: {repository: ''}":                              "/image/repository",
		"image: {tag: 'a b'}":                                  "/image/tag",
		"image: {pullPolicy: Sometimes}":                       "/image/pullPolicy",
		"imagePullSecrets: [pull]":                             "/imagePullSecrets/0",
		"nri: {enabled: 'yes'}":                                "/nri/enabled",
		"nri: {socketDir: nri}":                                "/nri/socketDir",
		"runtimeClass: {name: Far_Page}":                       "/runtimeClass/name",
		"runtimeClass: {handler: a.b}":                         "/runtimeClass/handler",
		"updateStrategy: {type: Recreate}":                     "/updateStrategy/type",
		"updateStrategy: {rollingUpdate: {maxSurge: 1}}":       "maxSurge",
		"updateStrategy: {rollingUpdate: {maxUnavailable: 0}}": "/updateStrategy/rollingUpdate/maxUnavailable",
		"terminationGracePeriodSeconds: 0":                     "/terminationGracePeriodSeconds",
		"nodeSelector: {gpu: true}":                            "/nodeSelector/gpu",
		"tolerations: {operator: Exists}":                      "/tolerations",
	} {
		t.Run(values, func(t *testing.T) {
			t.Parallel()
			_, err := helm(t, values, "template", "x", chart)
			if err == nil {
				t.Fatal("it is rendered")
			}
			if text := err.Error(); !strings.Contains(text, "schema") || !strings.Contains(text, place) {
				t.Errorf("it does not name %s:\n%s", place, text)
			}
		})
	}
}

// The image has what the pod runs.
func TestTheImageHasThePodsPrograms(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root, "packaging/Containerfile"))
	if err != nil {
		t.Fatal(err)
	}
	var copied []string
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 2 && f[0] == "COPY" {
			for _, name := range f[1 : len(f)-1] {
				copied = append(copied, f[len(f)-1]+name)
			}
		}
	}
	for _, c := range render(t, "x", "").agents.Spec.Template.Spec.Containers {
		if !slices.Contains(copied, c.Command[0]) {
			t.Errorf("container %s runs %s, the image has %v", c.Name, c.Command[0], copied)
		}
	}
	for _, path := range copied {
		if _, err := os.Stat(filepath.Join(root, "cmd", filepath.Base(path))); err != nil {
			t.Errorf("the image has %s: %v", path, err)
		}
	}
}

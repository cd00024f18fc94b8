package engines

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/farpage/farpage/api"
	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	"sigs.k8s.io/yaml"
)

// manifests are packaging/kubernetes/farpage.yaml; test/kubernetes holds it against the
// chart.
func manifests(t *testing.T) (pod core.PodTemplateSpec, config core.ConfigMap) {
	t.Helper()
	text, err := os.ReadFile("../../packaging/kubernetes/farpage.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var agents apps.DaemonSet
	for document := range strings.SplitSeq(string(text), "\n---\n") {
		var kind meta.TypeMeta
		err := yaml.Unmarshal([]byte(document), &kind)
		switch {
		case err != nil:
		case kind.Kind == "DaemonSet":
			err = yaml.UnmarshalStrict([]byte(document), &agents)
		case kind.Kind == "ConfigMap":
			err = yaml.UnmarshalStrict([]byte(document), &config)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return agents.Spec.Template, config
}

// agentsPod is the DaemonSet's pod of one node, run as a kubelet runs it.
type agentsPod struct {
	*kubelet
	spec     core.PodSpec
	settings core.ConfigMap
	updates  int

	sandbox    string
	config     *cri.PodSandboxConfig
	containers map[string]string // ids by name
	attempts   uint32
}

// startNode starts a containerd with both ways for pods to be taken in, and the
// DaemonSet's pod, whose agent is the only one.
func startNode(t *testing.T) *agentsPod {
	t.Helper()
	h := startHost(t)
	if err := h.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(h.SocketDir(), 0o755); err != nil {
		t.Fatal(err)
	}
	k := startCRI(t, h, "--nri")
	// What comes after the pod's end is for an agent of the test's own again.
	t.Cleanup(func() {
		if err := h.Again(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	k.importAgentImage(t)
	template, settings := manifests(t)
	p := &agentsPod{kubelet: k, spec: template.Spec, settings: settings}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the agents' logs:\n%s", p.logs(t))
		}
		p.remove(t)
	})
	p.run(t)
	return p
}

// importAgentImage makes the image by its Containerfile. It is called farpage:1.
func (k *kubelet) importAgentImage(t *testing.T) {
	t.Helper()
	p := newPodman(t, k.host)
	p.must("build", "--file", "../../packaging/Containerfile", "--tag", "localhost/farpage:1", k.bin)
	const archive = "/srv/test/farpage.tar"
	p.must("save", "--output", k.root+archive, "localhost/farpage:1")
	if err := k.ctr(t, "images", "import", archive); err != nil {
		t.Fatal(err)
	}
}

// node is a command on the node, in its mount namespace.
func (k *kubelet) node(args ...string) *exec.Cmd {
	return exec.Command("nsenter", append([]string{"--target", strconv.Itoa(k.supervisor.Pid), "--mount", "--root", "--wd=/"}, args...)...)
}

// run makes a pod of the DaemonSet, and waits until its agent is ready.
func (p *agentsPod) run(t *testing.T) {
	t.Helper()
	p.updates++
	p.attempts, p.containers = 0, map[string]string{}
	uid := fmt.Sprintf("farpage-%d", p.updates)
	p.config = &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: uid, Namespace: "farpage", Uid: uid},
		LogDirectory: "/srv/test/logs/" + uid,
		Linux:        &cri.LinuxPodSandboxConfig{SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: p.namespaces(), Privileged: true}},
	}
	reply, err := p.runtime.RunPodSandbox(t.Context(), &cri.RunPodSandboxRequest{Config: p.config})
	if err != nil {
		t.Fatal(err)
	}
	p.sandbox = reply.PodSandboxId
	for _, c := range p.spec.Containers {
		p.start(t, c)
	}
	p.ready(t)
}

// namespaces are the pod's. There is no network here but the node's.
func (p *agentsPod) namespaces() *cri.NamespaceOption {
	n := &cri.NamespaceOption{Network: cri.NamespaceMode_NODE}
	if p.spec.HostPID {
		n.Pid = cri.NamespaceMode_NODE
	}
	return n
}

// start starts one of the pod's containers.
func (p *agentsPod) start(t *testing.T, c core.Container) {
	t.Helper()
	config := &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: c.Name, Attempt: p.attempts}, Image: &cri.ImageSpec{Image: "localhost/farpage:1"},
		Command: c.Command, Args: c.Args, WorkingDir: c.WorkingDir, LogPath: fmt.Sprintf("%s-%d.log", c.Name, p.attempts),
		Linux: &cri.LinuxContainerConfig{
			Resources: &cri.LinuxContainerResources{
				CpuShares: c.Resources.Requests.Cpu().MilliValue() * 1024 / 1000, MemoryLimitInBytes: c.Resources.Limits.Memory().Value(),
			},
			SecurityContext: &cri.LinuxContainerSecurityContext{
				NamespaceOptions: p.namespaces(), Privileged: *c.SecurityContext.Privileged, ReadonlyRootfs: *c.SecurityContext.ReadOnlyRootFilesystem,
			},
		},
	}
	for _, e := range c.Env {
		config.Envs = append(config.Envs, &cri.KeyValue{Key: e.Name, Value: []byte(e.Value)})
	}
	for _, m := range c.VolumeMounts {
		config.Mounts = append(config.Mounts, &cri.Mount{ContainerPath: m.MountPath, HostPath: p.volume(t, m.Name), Readonly: m.ReadOnly})
	}
	created, err := p.runtime.CreateContainer(t.Context(), &cri.CreateContainerRequest{PodSandboxId: p.sandbox, SandboxConfig: p.config, Config: config})
	if err != nil {
		t.Fatal(err)
	}
	p.containers[c.Name] = created.ContainerId
	if _, err := p.runtime.StartContainer(t.Context(), &cri.StartContainerRequest{ContainerId: created.ContainerId}); err != nil {
		t.Fatal(err)
	}
}

// volume prepares a volume of the pod, and returns where it is on the node.
func (p *agentsPod) volume(t *testing.T, name string) string {
	t.Helper()
	for _, v := range p.spec.Volumes {
		switch {
		case v.Name != name:
		case v.HostPath != nil:
			check := []string{"test", "-d", v.HostPath.Path}
			if *v.HostPath.Type == core.HostPathDirectoryOrCreate {
				check = []string{"mkdir", "-p", v.HostPath.Path}
			}
			if out, err := p.node(check...).CombinedOutput(); err != nil {
				t.Fatalf("volume %s: %q: %v\n%s", name, check, err, out)
			}
			return v.HostPath.Path
		case v.ConfigMap != nil && v.ConfigMap.Name == p.settings.Name:
			path := "/srv/test/volumes/" + name
			if err := os.MkdirAll(p.root+path, 0o755); err != nil {
				t.Fatal(err)
			}
			for file, text := range p.settings.Data {
				if err := os.WriteFile(filepath.Join(p.root+path, file), []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			return path
		}
	}
	t.Fatalf("the pod has no volume %s of a kind that is known here", name)
	return ""
}

// ready waits until the probes of the pod's containers succeed.
func (p *agentsPod) ready(t *testing.T) {
	t.Helper()
	for _, c := range p.spec.Containers {
		if c.ReadinessProbe == nil {
			continue
		}
		for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(100 * time.Millisecond) {
			reply, err := p.runtime.ExecSync(t.Context(), &cri.ExecSyncRequest{
				ContainerId: p.containers[c.Name], Cmd: c.ReadinessProbe.Exec.Command, Timeout: int64(c.ReadinessProbe.TimeoutSeconds),
			})
			if err == nil && reply.ExitCode == 0 {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("container %s does not get ready: %v, %v", c.Name, err, reply)
			}
		}
	}
}

// crash kills a container, which is started again in its pod.
func (p *agentsPod) crash(t *testing.T, name string) {
	t.Helper()
	id := p.containers[name]
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := p.runtime.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: id, Timeout: 0}); err != nil {
		t.Fatal(err)
	}
	if _, err := p.runtime.RemoveContainer(ctx, &cri.RemoveContainerRequest{ContainerId: id}); err != nil {
		t.Fatal(err)
	}
	p.attempts++
	for _, c := range p.spec.Containers {
		if c.Name == name {
			p.start(t, c)
		}
	}
	p.ready(t)
}

// update does what a DaemonSet's update does: the pod is ended, then there is another one.
func (p *agentsPod) update(t *testing.T) {
	t.Helper()
	p.remove(t)
	p.run(t)
}

// remove ends the pod as a kubelet does, if there is one: each container in its time.
func (p *agentsPod) remove(t *testing.T) {
	t.Helper()
	if p.sandbox == "" {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 2*time.Minute)
	defer cancel()
	for _, id := range p.containers {
		if _, err := p.runtime.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: id, Timeout: *p.spec.TerminationGracePeriodSeconds}); err != nil {
			t.Error(err)
		}
	}
	if _, err := p.runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: p.sandbox}); err != nil {
		t.Error(err)
	}
	if _, err := p.runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: p.sandbox}); err != nil {
		t.Error(err)
	}
	// A process that is left in a cgroup of the pod keeps it from being removed.
	for name, id := range p.containers {
		_ = filepath.WalkDir("/sys/fs/cgroup", func(path string, entry fs.DirEntry, _ error) error {
			if entry != nil && entry.IsDir() && entry.Name() == id {
				procs, _ := os.ReadFile(filepath.Join(path, "cgroup.procs"))
				t.Errorf("container %s has left %s with the processes %q", name, path, procs)
			}
			return nil // cgroups come and go
		})
	}
	p.sandbox = ""
}

// logs is all that the pods' containers have written.
func (p *agentsPod) logs(t *testing.T) string {
	t.Helper()
	files, err := filepath.Glob(p.root + "/srv/test/logs/farpage-*/*.log")
	if err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&all, "%s:\n%s", filepath.Base(file), text)
	}
	return all.String()
}

// fill starts threads8 in a container and returns what it says in the end, once it has
// pages far.
func (p *agentsPod) fill(t *testing.T, id string) <-chan string {
	t.Helper()
	said := make(chan string, 1)
	go func() {
		reply, err := p.runtime.ExecSync(t.Context(), &cri.ExecSyncRequest{ContainerId: id, Cmd: []string{"/bin/threads8", "128"}, Timeout: 180})
		said <- fmt.Sprintf("%v, status %d: %s%s", err, reply.GetExitCode(), reply.GetStdout(), reply.GetStderr())
	}()
	for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		s, err := p.Stats(t.Context(), id)
		if err == nil && s.FarBytes > 16<<20 {
			return said
		}
		select {
		case early := <-said:
			t.Fatalf("it has ended before it had pages far: %s", early)
		default:
		}
		if time.Now().After(deadline) {
			t.Fatalf("nothing gets far: %+v, %v", s, err)
		}
	}
}

// keeperWarning is about the one hierarchy that is this test's own and is not mounted on the
// node.
var keeperWarning = regexp.MustCompile(`(?m)^.*it stays in the agent's, 0::/farpage-test-[^;]*: what ends.*\n`)

func TestKubernetesRunsTheAgentAsItsManifestsSay(t *testing.T) {
	p := startNode(t)
	taken := func(s api.Container) {
		if s.BudgetBytes != 32<<20 || s.EvictedPages == 0 || s.Faults.Unexplained != 0 {
			t.Errorf("%+v", s)
		}
	}
	pages := []string{"status 0: ", "32768 pages right"}
	ids := map[string]string{}
	for way, handler := range map[string]string{"class": "farpage", "nri": ""} {
		p.handler = handler
		pod, config := p.pod(t, way, map[string]string{"io.farpage.local": "1Gi", "io.farpage.local/app": "32Mi"})
		id, err := p.container(t, pod, config, "app", "glibc")
		if err != nil {
			t.Fatal(err)
		}
		ids[way] = id
		contains(t, way, p.exec(t, id, "/bin/threads8", "64"), "16384 pages right")
		taken(p.alone(t, "shop/"+way+"/app"))
	}

	// The agents go, orderly and not, while programs use what is far.
	for name, change := range map[string]func(){
		"an update": func() { p.update(t) }, "a crash": func() { p.crash(t, "agent") },
	} {
		class, nri := p.fill(t, ids["class"]), p.fill(t, ids["nri"])
		change()
		contains(t, name, <-class, pages...)
		contains(t, name, <-nri, pages...)
		for _, id := range ids {
			taken(p.alone(t, id))
		}
	}
	contains(t, "the agents' logs", p.logs(t), "took over 2 containers")

	// What comes then is taken in as before.
	p.handler = ""
	pod, config := p.pod(t, "later", map[string]string{"io.farpage.local": "32Mi"})
	id, err := p.container(t, pod, config, "app", "musl")
	if err != nil {
		t.Fatal(err)
	}
	contains(t, "later", p.exec(t, id, "/bin/musl-threads8", "64"), "16384 pages right")
	taken(p.alone(t, id))

	if log := keeperWarning.ReplaceAllString(p.logs(t), ""); strings.Contains(log, "warn") || strings.Contains(log, "error") {
		t.Errorf("the pods' logs:\n%s", log)
	}
}

package engines

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/farpage/farpage/test/container"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// kubelet talks to containerd as a kubelet does.
type kubelet struct {
	*debian
	runtime    cri.RuntimeServiceClient
	handler    string      // of the pods that are started: the RuntimeClass
	supervisor *os.Process // its child is containerd, which it starts again
}

// Where containerd listens, seen from inside: nriFolder is what its own one leads to.
const (
	criSocket = "/srv/test/containerd.sock"
	nriFolder = "/srv/test/nri"
)

// startCRI starts the containerd of a Debian 13 with farpage's runtime and two images.
func startCRI(t *testing.T, h *host, installFlags ...string) *kubelet {
	t.Helper()
	d := h.unpackDebian(t)
	// What this host needs, not farpage: no CAP_SYS_RESOURCE, no registry.
	const config = "/etc/containerd/config.toml"
	text, err := os.ReadFile(d.root + config)
	if err != nil {
		t.Fatal(err)
	}
	const plugin = "[plugins.\"io.containerd.grpc.v1.cri\"]\n"
	changed := strings.Replace(string(text), plugin, plugin+"    restrict_oom_score_adj = true\n    sandbox_image = \"localhost/pause:1\"\n", 1)
	if changed == string(text) {
		t.Fatalf("Debian's configuration of containerd is another one:\n%s", text)
	}
	if err := os.WriteFile(d.root+config, []byte(changed+d.baseConfig(t)), 0o644); err != nil {
		t.Fatal(err)
	}
	contains(t, "install", h.farpage(append([]string{"install", "containerd", "--root", d.root}, installFlags...)...), "changed /etc/containerd/config.toml")
	supervisor := d.start(t, filepath.Join(t.TempDir(), "containerd.log"), "sh", "-c",
		"mkdir "+nriFolder+" && ln -s "+nriFolder+" /run/nri && while :; do containerd --address "+criSocket+"; sleep 0.2; done")
	for deadline := time.Now().Add(30 * time.Second); d.ctr(t, "version") != nil; time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("containerd does not answer")
		}
	}
	for name, root := range map[string]string{"pause": pauseImage(t), "glibc": imageOf(t, "threads8"), "musl": imageOf(t, "musl-threads8")} {
		d.imports(t, name, root)
	}
	conn, err := grpc.NewClient("unix://"+d.root+criSocket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	k := &kubelet{d, cri.NewRuntimeServiceClient(conn), "farpage", supervisor}
	k.ready(t)
	t.Cleanup(func() { k.expectEmpty(t) }) // after those of the pods
	return k
}

func (d *debian) ctr(t *testing.T, args ...string) error {
	t.Helper()
	out, err := d.chroot(append([]string{"ctr", "--address", criSocket, "--namespace", "k8s.io"}, args...)...).CombinedOutput()
	if err != nil {
		t.Logf("ctr %q: %v\n%s", args, err, out)
	}
	return err
}

// imports makes the image localhost/NAME:1 of a root file system.
func (d *debian) imports(t *testing.T, name, root string) {
	t.Helper()
	ociImage(t, filepath.Join(d.root, "srv/test/image.tar"), "localhost/"+name+":1", root)
	if err := d.ctr(t, "images", "import", "/srv/test/image.tar"); err != nil {
		t.Fatal(err)
	}
}

// ready waits until containerd answers as Kubernetes needs it.
func (k *kubelet) ready(t *testing.T) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		_, err := k.runtime.Version(t.Context(), &cri.VersionRequest{})
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

// pauseImage is an image with a static program that does nothing.
func pauseImage(t *testing.T) string {
	t.Helper()
	root := filepath.Join(t.TempDir(), "pause")
	if err := container.WriteRootfs(root, container.Config{}); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "gcc", "-static", "-x", "c", "-o", filepath.Join(root, "usr/bin/pause"), "-")
	cmd.Stdin = strings.NewReader("#include <unistd.h>\nint main(void)\n{\n\tfor (;;)\n\t\tpause();\n}\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("gcc: %v\n%s", err, out)
	}
	return root
}

// pod starts a pod.
func (k *kubelet) pod(t *testing.T, name string, annotations map[string]string) (string, *cri.PodSandboxConfig) {
	t.Helper()
	config := &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: name, Namespace: "shop", Uid: name},
		Annotations:  annotations,
		LogDirectory: "/srv/test/logs",
		Linux: &cri.LinuxPodSandboxConfig{SecurityContext: &cri.LinuxSandboxSecurityContext{
			NamespaceOptions: &cri.NamespaceOption{Network: cri.NamespaceMode_NODE},
		}},
	}
	reply, err := k.runtime.RunPodSandbox(t.Context(), &cri.RunPodSandboxRequest{Config: config, RuntimeHandler: k.handler})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if _, err := k.runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: reply.PodSandboxId}); err != nil {
			t.Error(err)
		}
		if _, err := k.runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: reply.PodSandboxId}); err != nil {
			t.Error(err)
		}
	})
	return reply.PodSandboxId, config
}

// container starts a container of a pod that sleeps.
func (k *kubelet) container(t *testing.T, pod string, config *cri.PodSandboxConfig, name, image string, environment ...*cri.KeyValue) (string, error) {
	t.Helper()
	id, err := k.create(t, pod, config, name, image, environment...)
	if err != nil {
		return "", err
	}
	_, err = k.runtime.StartContainer(t.Context(), &cri.StartContainerRequest{ContainerId: id})
	return id, err
}

func (k *kubelet) create(t *testing.T, pod string, config *cri.PodSandboxConfig, name, image string, environment ...*cri.KeyValue) (string, error) {
	t.Helper()
	return k.createAs(t, pod, config, &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: name}, Image: &cri.ImageSpec{Image: "localhost/" + image + ":1"},
		Command: []string{"/bin/sleep", "600"}, Envs: environment,
	})
}

// createAs creates a container with the host's network.
func (k *kubelet) createAs(t *testing.T, pod string, config *cri.PodSandboxConfig, c *cri.ContainerConfig) (string, error) {
	t.Helper()
	c.LogPath = c.Metadata.Name + ".log"
	if c.Linux == nil {
		c.Linux = security(func(*cri.LinuxContainerSecurityContext) {})
	}
	created, err := k.runtime.CreateContainer(t.Context(), &cri.CreateContainerRequest{PodSandboxId: pod, SandboxConfig: config, Config: c})
	return created.GetContainerId(), err
}

func (k *kubelet) exec(t *testing.T, id string, command ...string) string {
	t.Helper()
	reply, err := k.runtime.ExecSync(t.Context(), &cri.ExecSyncRequest{ContainerId: id, Cmd: command, Timeout: 60})
	if err != nil || reply.ExitCode != 0 {
		t.Errorf("exec %q: %v, %v", command, err, reply)
	}
	return string(reply.GetStdout()) + string(reply.GetStderr())
}

func TestKubernetesTakesInTheContainersThatAPodNames(t *testing.T) {
	h := startHost(t)
	k := startCRI(t, h)
	pod, config := k.pod(t, "cache-0", map[string]string{"io.farpage.local": "64Mi", "io.farpage.local/app": "32Mi", "example.com/other": "x"})
	for name, image := range map[string]string{"app": "glibc", "second": "musl"} {
		id, err := k.container(t, pod, config, name, image)
		if err != nil {
			t.Fatal(err)
		}
		program := "/bin/threads8"
		if image == "musl" {
			program = "/bin/musl-threads8"
		}
		contains(t, name, k.exec(t, id, program, "64"), "16384 pages right")
		s := h.alone(t, "shop/cache-0/"+name) // as people call it
		budget := int64(64 << 20)
		if name == "app" {
			budget = 32 << 20
		}
		if s.ID != id || s.BudgetBytes != budget || s.EvictedPages == 0 {
			t.Errorf("%s: %+v", name, s)
		}
	}
	all, err := h.List(t.Context())
	if err != nil || len(all) != 2 {
		t.Errorf("the agent lists %d containers, want 2 and not the pause process (%v)", len(all), err)
	}
	k.testRedis(t)
}

func (k *kubelet) testRedis(t *testing.T) {
	k.imports(t, "redis", redisImage(t))
	const folder = "/srv/test/redis"
	redisFolder(t, k.root+folder)
	pod, config := k.pod(t, "redis", map[string]string{"io.farpage.local": "32Mi"})
	id, err := k.createAs(t, pod, config, &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: "redis"}, Image: &cri.ImageSpec{Image: "localhost/redis:1"},
		Command: redisCommand, Mounts: []*cri.Mount{{HostPath: folder, ContainerPath: "/data"}},
	})
	if err == nil {
		_, err = k.runtime.StartContainer(t.Context(), &cri.StartContainerRequest{ContainerId: id})
	}
	if err != nil {
		t.Fatal(err)
	}
	k.redisByValue(t, id, k.root+folder)
}

func TestATypoInAPodIsInTheKubeletsError(t *testing.T) {
	h := startHost(t)
	k := startCRI(t, h)
	pod, config := k.pod(t, "typo", map[string]string{"io.farpage.locl": "64Mi"})
	_, err := k.container(t, pod, config, "app", "glibc")
	if err == nil {
		t.Fatal("it starts")
	}
	contains(t, "the error", err.Error(), `annotation io.farpage.locl="64Mi": there is no such annotation`)

	pod, config = k.pod(t, "plain", nil)
	id, err := k.container(t, pod, config, "app", "glibc")
	if err != nil {
		t.Fatal(err)
	}
	if out := k.exec(t, id, "/bin/sh", "-c", "ls /dev /etc; cat /proc/self/mountinfo; env"); strings.Contains(out, "farpage") || strings.Contains(out, "preload") {
		t.Errorf("without annotation the container sees\n%s", out)
	}
}

package engines

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// security is a container's security context with the host's network.
func security(change func(*cri.LinuxContainerSecurityContext)) *cri.LinuxContainerConfig {
	s := &cri.LinuxContainerSecurityContext{NamespaceOptions: &cri.NamespaceOption{Network: cri.NamespaceMode_NODE}}
	change(s)
	return &cri.LinuxContainerConfig{SecurityContext: s}
}

func lockedDown(s *cri.LinuxContainerSecurityContext) {
	s.ReadonlyRootfs, s.NoNewPrivs, s.RunAsUser = true, true, &cri.Int64Value{Value: 1000}
	s.Capabilities = &cri.Capability{DropCapabilities: []string{"ALL"}}
}

// sleeper is a container that says that it has begun, and sleeps.
func sleeper(name, image string) *cri.ContainerConfig {
	return &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: name}, Image: &cri.ImageSpec{Image: "localhost/" + image + ":1"},
		Command: []string{"/bin/sh", "-c", "echo begun; exec sleep 600"},
	}
}

// starts starts a container.
func (k *kubelet) starts(t *testing.T, pod string, config *cri.PodSandboxConfig, c *cri.ContainerConfig) string {
	t.Helper()
	id, err := k.createAs(t, pod, config, c)
	if err == nil {
		_, err = k.runtime.StartContainer(t.Context(), &cri.StartContainerRequest{ContainerId: id})
	}
	if err != nil {
		t.Fatalf("%s: %v", c.Metadata.Name, err)
	}
	return id
}

// stops stops a container and removes it.
func (k *kubelet) stops(t *testing.T, id string) {
	t.Helper()
	if _, err := k.runtime.StopContainer(t.Context(), &cri.StopContainerRequest{ContainerId: id}); err != nil {
		t.Error(err)
	}
	if _, err := k.runtime.RemoveContainer(t.Context(), &cri.RemoveContainerRequest{ContainerId: id}); err != nil {
		t.Error(err)
	}
}

// expectEvicted runs a program in a container that evicts, and reads its bytes back.
func (k *kubelet) expectEvicted(t *testing.T, what, id, program string) {
	t.Helper()
	contains(t, what, k.exec(t, id, "/bin/"+program, "64"), "16384 pages right")
	if s := k.alone(t, id); s.EvictedPages == 0 {
		t.Errorf("%s: %+v", what, s)
	}
}

func TestKubernetesContainers(t *testing.T) {
	h := startHost(t)
	k := startCRI(t, h)
	pod, config := k.pod(t, "life", map[string]string{"io.farpage.local": "32Mi"})
	t.Run("with what a pod takes away from them", func(t *testing.T) { k.testTakenAway(t, pod, config) })
	t.Run("a container's life", func(t *testing.T) { k.testLife(t, pod, config) })
	t.Run("twenty at once", func(t *testing.T) { k.testMany(t) })
	t.Run("by the base of its runtime", func(t *testing.T) { k.testBase(t) })
}

func (k *kubelet) testTakenAway(t *testing.T, pod string, config *cri.PodSandboxConfig) {
	own := imageOf(t, "threads8")
	ownLibrary(t, own)
	k.imports(t, "own", own)
	for _, test := range []struct {
		name, image string
		security    func(*cri.LinuxContainerSecurityContext)
		environment []*cri.KeyValue
	}{
		{"locked-down", "glibc", lockedDown, nil},
		{"musl-locked-down", "musl", lockedDown, nil},
		{"pids-of-the-host", "glibc", func(s *cri.LinuxContainerSecurityContext) { s.NamespaceOptions.Pid = cri.NamespaceMode_NODE }, nil},
		{"own", "own", func(*cri.LinuxContainerSecurityContext) {}, nil},
		{"own-environment", "own", func(*cri.LinuxContainerSecurityContext) {}, []*cri.KeyValue{{Key: "LD_PRELOAD", Value: []byte("/own.so")}}},
	} {
		c := sleeper(test.name, test.image)
		c.Linux, c.Envs = security(test.security), test.environment
		id := k.starts(t, pod, config, c)
		program := images[test.image]
		if program == "" {
			program = images["glibc"]
		}
		k.expectEvicted(t, test.name, id, program)
		preload := k.exec(t, id, "/bin/cat", "/etc/ld.so.preload")
		contains(t, test.name, preload, "/dev/farpage/libfarpage.so\n")
		if test.image == "own" {
			contains(t, test.name, preload, "own\n", "/own.so\n/dev/farpage/libfarpage.so\n")
		}
		k.stops(t, id)
	}
}

// testLife stops a container and starts it anew, as a kubelet restarts one, and changes its
// limits meanwhile.
func (k *kubelet) testLife(t *testing.T, pod string, config *cri.PodSandboxConfig) {
	for attempt := range 2 {
		c := sleeper("life", "glibc")
		c.Metadata.Attempt = uint32(attempt)
		id := k.starts(t, pod, config, c)
		k.expectEvicted(t, "exec", id, "threads8")
		_, err := k.runtime.UpdateContainerResources(t.Context(), &cri.UpdateContainerResourcesRequest{
			ContainerId: id, Linux: &cri.LinuxContainerResources{MemoryLimitInBytes: 256 << 20},
		})
		if err != nil {
			t.Error(err)
		}
		k.expectEvicted(t, "exec after an update", id, "threads8")
		log, err := os.ReadFile(filepath.Join(k.root, config.LogDirectory, c.LogPath))
		if err != nil {
			t.Error(err)
		}
		contains(t, "its log", string(log), "stdout F begun\n")
		k.stops(t, id)
	}
}

func (k *kubelet) testMany(t *testing.T) {
	const many = 20
	pod, config := k.pod(t, "many", map[string]string{"io.farpage.local": "8Mi"})
	var ids []string
	for n := range many {
		c := sleeper(fmt.Sprint("app-", n), "glibc")
		c.Command = []string{"/bin/threads8", "12"}
		ids = append(ids, k.starts(t, pod, config, c))
	}
	for n, id := range ids {
		for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(50 * time.Millisecond) {
			reply, err := k.runtime.ContainerStatus(t.Context(), &cri.ContainerStatusRequest{ContainerId: id})
			if err != nil {
				t.Fatal(err)
			}
			if s := reply.Status; s.State == cri.ContainerState_CONTAINER_EXITED {
				log, _ := os.ReadFile(filepath.Join(k.root, config.LogDirectory, fmt.Sprint("app-", n, ".log")))
				if s.ExitCode != 0 || !strings.Contains(string(log), "3072 pages right") {
					t.Errorf("container %d: status %d, %s", n, s.ExitCode, log)
				}
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("container %d does not end", n)
			}
		}
	}
}

// testBase has a runtime whose base_runtime_spec names the hook, in place of farpage-runtime.
func (k *kubelet) testBase(t *testing.T) {
	k.handler = baseRuntime
	pod, config := k.pod(t, "base", map[string]string{"io.farpage.local": "32Mi"})
	id := k.starts(t, pod, config, sleeper("app", "glibc"))
	k.expectEvicted(t, "exec", id, "threads8")

	pod, config = k.pod(t, "base-plain", nil)
	id = k.starts(t, pod, config, sleeper("app", "glibc"))
	if out := k.exec(t, id, "/bin/sh", "-c", "ls /dev /etc; env"); strings.Contains(out, "farpage") || strings.Contains(out, "preload") {
		t.Errorf("without annotation the container sees\n%s", out)
	}
}

// baseRuntime is a runtime of runc whose containers have farpage's hook in their base.
const baseRuntime = "hooked"

// baseConfig makes that base, as the page says, and returns what containerd's configuration
// has of it.
func (d *debian) baseConfig(t *testing.T) string {
	t.Helper()
	out, err := d.chroot("ctr", "oci", "spec").Output()
	if err != nil {
		t.Fatal(err)
	}
	var spec map[string]any
	if err := json.Unmarshal(out, &spec); err != nil {
		t.Fatal(err)
	}
	spec["hooks"] = map[string]any{"createRuntime": []any{map[string]any{
		"path": filepath.Join(d.bin, "farpage-hook"), "args": []string{"farpage-hook", "createRuntime"},
	}}}
	text, err := json.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	const path = "/etc/containerd/farpage-base.json"
	if err := os.WriteFile(d.root+path, text, 0o644); err != nil {
		t.Fatal(err)
	}
	return `
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.` + baseRuntime + `]
    runtime_type = "io.containerd.runc.v2"
    base_runtime_spec = "` + path + `"
    pod_annotations = ["io.farpage.*", "io.farpage.*/*"]
    container_annotations = ["io.farpage.*"]
`
}

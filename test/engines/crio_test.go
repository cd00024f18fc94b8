//go:build crio

package engines

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/farpage/farpage/internal/need"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// buildCRIO makes crio and its pinns from the module that tools/crio names.
func buildCRIO(t *testing.T, dir string) {
	t.Helper()
	const modfile = "-modfile=tools/crio/go.mod"
	run := func(name string, args ...string) string {
		cmd := exec.CommandContext(t.Context(), name, args...)
		cmd.Dir = "../.."
		var errs strings.Builder
		cmd.Stderr = &errs
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%s %q: %v\n%s", name, args, err, errs.String())
		}
		return strings.TrimSpace(string(out))
	}
	run("go", "build", modfile, "-tags", "containers_image_openpgp exclude_graphdriver_btrfs", "-o", filepath.Join(dir, "crio"), "github.com/cri-o/cri-o/cmd/crio")
	sources, err := filepath.Glob(run("go", "list", modfile, "-m", "-f", "{{.Dir}}", "github.com/cri-o/cri-o") + "/pinns/src/*.c")
	if err != nil || len(sources) == 0 {
		t.Fatalf("no sources of pinns: %v", err)
	}
	run("gcc", append([]string{"-O1", "-o", filepath.Join(dir, "pinns")}, sources...)...)
}

// crioRunc is runc for a host without CAP_SYS_RESOURCE: CRI-O asks for a low oom_score_adj.
const crioRunc = `#!/usr/bin/python3
import json, os, sys
arguments = sys.argv[1:]
for i, argument in enumerate(arguments):
    if argument == "--bundle":
        path = arguments[i + 1] + "/config.json"
        with open(path) as f:
            config = json.load(f)
        config["process"].pop("oomScoreAdj", None)
        with open(path, "w") as f:
            json.dump(config, f)
os.execvp("runc", ["runc"] + arguments)
`

// Folder, hooks, farpage-runtime.
const crioConfig = `
[crio]
root = "%[1]s/root"
runroot = "%[1]s/run"
storage_driver = "vfs"
log_dir = "%[1]s/logs"
version_file = "%[1]s/version"
version_file_persist = "%[1]s/version-persist"
clean_shutdown_file = "%[1]s/clean"
[crio.api]
listen = "%[1]s/s"
[crio.runtime]
default_runtime = "runc"
cgroup_manager = "cgroupfs"
conmon_cgroup = "pod"
hooks_dir = ["%[2]s"]
pinns_path = "%[1]s/pinns"
namespaces_dir = "%[1]s/ns"
container_exits_dir = "%[1]s/exits"
container_attach_socket_dir = "%[1]s/attach"
[crio.runtime.runtimes.runc]
runtime_path = "%[1]s/runc.py"
runtime_root = "%[1]s/runc"
monitor_path = "/usr/bin/conmon"
monitor_cgroup = "pod"
[crio.runtime.runtimes.farpage]
runtime_path = "%[3]s"
runtime_root = "%[1]s/runc-farpage"
monitor_path = "/usr/bin/conmon"
monitor_cgroup = "pod"
[crio.network]
network_dir = "%[1]s/net"
plugin_dirs = ["%[1]s/plugins"]
[crio.image]
signature_policy = "%[1]s/policy.json"
pause_image = "localhost/pause:1"
pause_command = "/usr/bin/pause"
[crio.nri]
enable_nri = false
`

// startCRIO starts a CRI-O with the hook that `farpage install crio` puts, and with
// farpage-runtime as a runtime of its.
func startCRIO(t *testing.T, h *host) *kubelet {
	t.Helper()
	need.Program(t, "conmon")
	dir := filepath.Join(scratch, "crio")
	for _, name := range []string{"net", "plugins", "d"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	buildCRIO(t, dir)
	root := t.TempDir()
	contains(t, "install", h.farpage("install", "crio", "--root", root, "--socket-dir", h.SocketDir()), "made /usr/share/containers/oci/hooks.d/farpage-crio.json")
	config := fmt.Sprintf(crioConfig, dir, filepath.Join(root, "usr/share/containers/oci/hooks.d"), h.runtimeScript(t, "--farpage-runtime", dir+"/runc.py"))
	for name, text := range map[string]string{
		"crio.conf": config, "runc.py": crioRunc, "policy.json": `{"default":[{"type":"insecureAcceptAnything"}]}`,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, files := range map[string]string{"glibc": imageOf(t, "threads8"), "musl": imageOf(t, "musl-threads8"), "pause": pauseImage(t)} {
		tar := filepath.Join(dir, "image.tar")
		for _, args := range [][]string{
			{"tar", "-C", files, "-cf", tar, "."},
			{"podman", "--root", dir + "/root", "--runroot", dir + "/run", "--storage-driver", "vfs", "import", "--quiet", "--change", "CMD sh", tar, "localhost/" + name + ":1"},
		} {
			if out, err := exec.CommandContext(t.Context(), args[0], args[1:]...).CombinedOutput(); err != nil {
				t.Fatalf("%q: %v\n%s", args, err, out)
			}
		}
	}
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(filepath.Join(dir, "crio"), "--config", dir+"/crio.conf", "--config-dir", dir+"/d")
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = h.group.Attributes()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			text, _ := os.ReadFile(log.Name())
			t.Logf("CRI-O's log ends with:\n%s", text[max(0, len(text)-8<<10):])
		}
	})
	conn, err := grpc.NewClient("unix://"+dir+"/s", grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	k := &kubelet{debian: &debian{host: h, root: "/"}, runtime: cri.NewRuntimeServiceClient(conn)}
	k.ready(t)
	return k
}

// crioCgroup is what the pods are in.
const crioCgroup = "farpage-crio"

// removeCgroups removes a cgroup and those in it from every hierarchy.
func removeCgroups(t *testing.T, name string) {
	t.Helper()
	var found []string
	for _, root := range []string{"/sys/fs/cgroup/" + name, "/sys/fs/cgroup/*/" + name} {
		tops, _ := filepath.Glob(root)
		for _, top := range tops {
			err := filepath.WalkDir(top, func(path string, entry fs.DirEntry, err error) error {
				if err == nil && entry.IsDir() {
					found = append(found, path)
				}
				return err
			})
			if err != nil {
				t.Error(err)
			}
		}
	}
	for _, path := range slices.Backward(found) { // inner ones first
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
	}
}

// CRI-O hands a pod's annotations, and the kubelet's labels, to its hooks and its runtimes.
func TestCRIOTakesInTheContainersThatAPodNames(t *testing.T) {
	h := startHost(t)
	k := startCRIO(t, h)
	t.Cleanup(func() { removeCgroups(t, crioCgroup) })
	for handler, image := range map[string]string{"": "glibc", "farpage": "musl"} {
		name := "pod-" + image
		config := &cri.PodSandboxConfig{
			Metadata:     &cri.PodSandboxMetadata{Name: name, Namespace: "shop", Uid: name},
			Annotations:  map[string]string{"io.farpage.local": "64Mi", "io.farpage.local/app": "32Mi"},
			LogDirectory: t.TempDir(),
			Linux: &cri.LinuxPodSandboxConfig{
				CgroupParent: "/" + crioCgroup,
				SecurityContext: &cri.LinuxSandboxSecurityContext{
					NamespaceOptions: &cri.NamespaceOption{Network: cri.NamespaceMode_NODE},
				},
			},
		}
		pod, err := k.runtime.RunPodSandbox(t.Context(), &cri.RunPodSandboxRequest{Config: config, RuntimeHandler: handler})
		if err != nil {
			t.Fatal(err)
		}
		c := sleeper("app", image)
		c.Image.UserSpecifiedImage = c.Image.Image
		c.Labels = map[string]string{"io.kubernetes.pod.name": name, "io.kubernetes.pod.namespace": "shop", "io.kubernetes.container.name": "app"}
		id := k.starts(t, pod.PodSandboxId, config, c)
		k.expectEvicted(t, image, id, images[image])
		if s, err := h.Stats(t.Context(), "shop/"+name+"/app"); err != nil || s.ID != id || s.BudgetBytes != 32<<20 {
			t.Errorf("%s: %+v, %v", image, s, err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		if _, err := k.runtime.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: id}); err != nil {
			t.Error(err)
		}
		if _, err := k.runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: pod.PodSandboxId}); err != nil {
			t.Error(err)
		}
		if _, err := k.runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: pod.PodSandboxId}); err != nil {
			t.Error(err)
		}
		cancel()
	}
	h.expectEmpty(t)
}

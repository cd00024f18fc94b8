package engines

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/farpage/farpage/internal/need"
	"github.com/farpage/farpage/test/container"
)

// podman is the host's podman with folders of its own.
type podman struct {
	*host
	*cli
	dir       string // its folders
	hooks     string
	moreHooks string
}

func newPodman(t *testing.T, h *host) *podman {
	t.Helper()
	need.Program(t, "podman")
	p := &podman{host: h, dir: filepath.Join(scratch, "podman"), hooks: filepath.Join(t.TempDir(), "hooks")}
	run := []string{"run", "--network", "none"}
	p.cli = &cli{
		h: h, try: p.try, imports: p.imports, run: run,
		// What exec starts by podman's own way has the image's environment.
		runMusl: append([]string{"--runtime", h.runtimeScript(t)}, run...),
	}
	if err := os.MkdirAll(p.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	// The limits and the log are for a host without CAP_SYS_RESOURCE and journald.
	const settings = "[containers]\ndefault_ulimits=[\"nofile=1024:4096\",\"nproc=4096:4096\"]\n" +
		"[engine]\nruntime=\"runc\"\ncgroup_manager=\"cgroupfs\"\nevents_logger=\"file\"\n"
	if err := os.WriteFile(filepath.Join(p.dir, "containers.conf"), []byte(settings), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if out, err := p.try("rm", "--all", "--force", "--time", "0"); err != nil {
			t.Errorf("podman rm: %v\n%s", err, out)
		}
		if err := container.RemoveTree(p.dir); err != nil {
			t.Error(err)
		}
	})
	return p
}

// try calls podman.
func (p *podman) try(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	global := []string{
		"--root", filepath.Join(p.dir, "store"), "--runroot", filepath.Join(p.dir, "run"), "--storage-driver", "vfs", "--hooks-dir", p.hooks,
	}
	if p.moreHooks != "" {
		global = append(global, "--hooks-dir", p.moreHooks)
	}
	cmd := exec.CommandContext(ctx, "podman", append(global, args...)...)
	cmd.SysProcAttr = p.group.Attributes()
	cmd.Env = append(os.Environ(), "CONTAINERS_CONF="+filepath.Join(p.dir, "containers.conf"))
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// imports makes an image of a root file system.
func (p *podman) imports(name, dir string) {
	p.t.Helper()
	tar := filepath.Join(p.dir, "image.tar")
	if out, err := exec.CommandContext(p.t.Context(), "tar", "-C", dir, "-cf", tar, ".").CombinedOutput(); err != nil {
		p.t.Fatalf("tar: %v\n%s", err, out)
	}
	p.must("import", "--quiet", tar, name)
}

// containerID is an id, as it stands in paths and variables.
var containerID = regexp.MustCompile(`[0-9a-f]{32,64}`)

func TestPodmanTakesInWhatIsAnnotated(t *testing.T) {
	h := startHost(t)
	p := newPodman(t, h)
	root := t.TempDir()
	said := h.farpage("install", "podman", "--root", root, "--socket-dir", h.SocketDir())
	contains(t, "install", said, "made /usr/share/containers/oci/hooks.d/farpage.json", "nothing is to be restarted")
	if again := h.farpage("install", "podman", "--root", root, "--socket-dir", h.SocketDir()); !strings.HasSuffix(again, "nothing to change: farpage is installed already\n") {
		t.Errorf("the second time: %q", again)
	}
	installed := filepath.Join(root, "usr/share/containers/oci/hooks.d")
	image := imageOf(t, "threads8", "musl-threads8")
	run := func(hooks string, args ...string) (string, error) {
		p.hooks = hooks
		return p.try(append([]string{"run", "--rm", "--network", "none"}, args...)...)
	}
	none := t.TempDir()

	// As a user may have it, in a folder that only podman reads.
	p.moreHooks = t.TempDir()
	precreate := `{"version":"1.0.0","hook":{"path":"` + h.bin + `/farpage-hook","args":["farpage-hook","precreate"]},` +
		`"when":{"annotations":{"^io\\.farpage\\.":".*"}},"stages":["precreate"]}`
	if err := os.WriteFile(filepath.Join(p.moreHooks, "farpage-precreate.json"), []byte(precreate), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"threads8", "musl-threads8"} {
		out, err := run(installed, "--annotation", "io.farpage.local=32Mi", "--name", name, "--rootfs", image, "/bin/sh", "-c",
			name+" 64 && cat /etc/ld.so.preload && echo $LD_PRELOAD")
		if err != nil {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
		// The image has musl's loader: its programs find the library by the environment.
		contains(t, name, out, "16384 pages right", "/dev/farpage/libfarpage.so\n/dev/farpage/libfarpage.so\n")
	}
	p.moreHooks = ""
	out, err := run(installed, "--annotation", "io.farpage.locla=32Mi", "--rootfs", image, "threads8", "16")
	if err == nil {
		t.Error("a typo starts")
	}
	contains(t, "a typo", out, `annotation io.farpage.locla="32Mi": there is no such annotation; allowed: io.farpage.local`)

	image = imageOf(t) // an image's folder keeps the empty file that was mounted on
	_, err = run(installed, "--rootfs", image, "/bin/sh", "-c", "! test -e /dev/farpage && ! test -e /etc/ld.so.preload")
	if err != nil {
		t.Errorf("without annotation: %v", err)
	}
	seen := func(hooks string) string {
		out, err := run(hooks, "--hostname", "same", "--rootfs", image, "/bin/sh", "-c", "env; ls /dev /etc; cat /proc/self/mountinfo | while read a b c d e rest; do echo $d $e; done")
		if err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		// podman makes its own mounts in any order.
		lines := strings.Split(containerID.ReplaceAllString(out, "ID"), "\n")
		slices.Sort(lines)
		return strings.Join(lines, "\n")
	}
	same(t, "a container without annotation", seen(installed), seen(none))
	h.expectEmpty(t)

	if said := h.farpage("uninstall", "podman", "--root", root); !strings.Contains(said, "removed /usr/share/containers/oci/hooks.d/farpage.json") {
		t.Errorf("uninstall: %s", said)
	}
	if left, err := os.ReadDir(root + "/usr/share"); err != nil || len(left) > 0 {
		t.Errorf("left: %v (%v)", left, err)
	}
}

func TestPodmanContainers(t *testing.T) {
	h := startHost(t)
	p := newPodman(t, h)
	root := t.TempDir()
	h.farpage("install", "podman", "--root", root, "--socket-dir", h.SocketDir())
	p.hooks = filepath.Join(root, "usr/share/containers/oci/hooks.d")
	p.importImages(t)
	h.inOrder(t, []part{
		{"programs with what an engine takes away from them", p.testPrograms},
		{"a container's life", p.testLife},
		{"twenty at once", p.testMany},
	})
}

func TestPodmanRedis(t *testing.T) {
	h := startHost(t)
	p := newPodman(t, h)
	root := t.TempDir()
	h.farpage("install", "podman", "--root", root, "--socket-dir", h.SocketDir())
	p.hooks = filepath.Join(root, "usr/share/containers/oci/hooks.d")
	folder := filepath.Join(p.dir, "data")
	redisFolder(t, folder)
	p.must(slices.Concat([]string{"run", "--detach", "--name", "redis", "--network", "none", "--annotation", annotated, "--volume", folder + ":/data", "--rootfs", redisImage(t)}, redisCommand)...)
	h.redisByValue(t, p.id("redis"), folder)
	p.must("rm", "--force", "--time", "0", "redis")
	h.expectEmpty(t)
}

// Buildah hands annotations to no container, and so to no hook: its runtime has them. What
// farpage installs for podman must not be in its way.
func TestBuildahRunsFarpagesRuntime(t *testing.T) {
	h := startHost(t)
	p := newPodman(t, h)
	need.Program(t, "buildah")
	root := t.TempDir()
	h.farpage("install", "podman", "--root", root, "--socket-dir", h.SocketDir())
	p.hooks = filepath.Join(root, "usr/share/containers/oci/hooks.d")
	for image, program := range images {
		p.imports(image, imageOf(t, program))
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "Containerfile"), []byte("FROM localhost/"+image+"\nRUN "+program+" 64 && cat /etc/ld.so.preload\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		out, err := p.buildah("build", "--isolation", "oci", "--network", "none", "--hooks-dir", p.hooks,
			"--runtime", h.runtimeScript(t), "--runtime-flag", "farpage-annotation="+annotated, "--tag", "built", dir)
		if err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		contains(t, "buildah build", out, "16384 pages right", "/dev/farpage/libfarpage.so\n")
		h.expectEmpty(t)
		if out := p.must("run", "--rm", "--network", "none", "localhost/built", "sh", "-c", "cat /etc/ld.so.preload; ls /dev; env"); strings.Contains(out, "farpage") {
			t.Errorf("the built image has %s", out)
		}
	}
}

// buildah calls it with podman's images.
func (p *podman) buildah(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	global := []string{"--root", filepath.Join(p.dir, "store"), "--runroot", filepath.Join(p.dir, "run"), "--storage-driver", "vfs"}
	cmd := exec.CommandContext(ctx, "buildah", append(global, args...)...)
	cmd.SysProcAttr = p.group.Attributes()
	cmd.Env = append(os.Environ(), "CONTAINERS_CONF="+filepath.Join(p.dir, "containers.conf"))
	out, err := cmd.CombinedOutput()
	return string(out), err
}

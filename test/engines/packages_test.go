package engines

import (
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/farpage/farpage/internal/need"
	"github.com/farpage/farpage/test/container"
)

// packagesOf makes the packages of a version, in a folder of the tests' own.
var packagesOf = sync.OnceValues(func() (string, error) {
	dir := filepath.Join(scratch, "packages")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	for _, version := range []string{"1.0.0", "1.1.0"} {
		out, err := exec.Command("make", "-s", "-C", "../..", "packages", "VERSION="+version).CombinedOutput()
		if err != nil {
			return "", fmt.Errorf("make packages: %w\n%s", err, out)
		}
		made, err := filepath.Glob("../../dist/farpage*" + version + "*.*")
		if err != nil || len(made) != 2 {
			return "", fmt.Errorf("make packages made %q (%w)", made, err)
		}
		for _, path := range made {
			if err := os.Rename(path, filepath.Join(dir, version+filepath.Ext(path))); err != nil {
				return "", err
			}
		}
	}
	return dir, nil
})

func packages(t *testing.T) string {
	t.Helper()
	dir, err := packagesOf()
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// installed is what a package of farpage has put into a system.
var installed = []string{
	"/usr/bin/farpage", "/usr/bin/farpage-hook", "/usr/bin/farpage-runtime",
	"/usr/lib/systemd/system/farpage.service", "/usr/lib/systemd/system/farpage.socket",
	"/usr/lib/systemd/system/farpage-nri.service", "/usr/lib/systemd/system/farpage-nri.path", "/usr/bin/farpage-nri",
	"/usr/share/man/man1/farpage.1.gz", "/usr/share/man/man1/farpage-run.1.gz",
	"/usr/share/bash-completion/completions/farpage", "/usr/share/zsh/site-functions/_farpage", "/usr/share/fish/vendor_completions.d/farpage.fish",
	"/etc/farpage/config.toml", "/usr/share/doc/farpage/README.md", "/usr/share/doc/farpage/docs/engines.md",
}

// tree is what is in a root, but for what dpkg and its kin write down.
func tree(t *testing.T, root string) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := strings.TrimPrefix(path, root)
		switch name {
		case "/var/lib/dpkg", "/var/log", "/var/cache", "/srv/test", "/proc", "/sys", "/dev":
			return fs.SkipDir
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		what := info.Mode().String()
		if info.Mode().IsRegular() {
			content, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			what += fmt.Sprintf(" %x", sha256.Sum256(content))
		}
		files[name] = what
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func (d *debian) mustRun(args ...string) string {
	d.t.Helper()
	out, err := d.chroot(args...).CombinedOutput()
	if err != nil {
		d.t.Fatalf("%q: %v\n%s", args, err, out)
	}
	return string(out)
}

func TestDebianPackageIsInstalledUpgradedAndPurgedWithoutATrace(t *testing.T) {
	h := startHost(t)
	d := h.unpackDebian(t)
	dir := packages(t)
	for _, version := range []string{"1.0.0", "1.1.0"} {
		if out, err := exec.CommandContext(t.Context(), "cp", filepath.Join(dir, version+".deb"), filepath.Join(d.root, "srv/test")).CombinedOutput(); err != nil {
			t.Fatalf("cp: %v\n%s", err, out)
		}
	}
	before := tree(t, d.root)
	contains(t, "dpkg --install", d.mustRun("dpkg", "--install", "/srv/test/1.0.0.deb"), "farpage install docker")
	for _, path := range installed {
		if _, err := os.Stat(d.root + path); err != nil {
			t.Error(err)
		}
	}
	contains(t, "version", d.mustRun("farpage", "--version"), "1.0.0")
	unit, err := os.ReadFile(d.root + "/usr/lib/systemd/system/farpage.service")
	if err != nil {
		t.Fatal(err)
	}
	contains(t, "the unit", string(unit), "ExecStart=/usr/bin/farpage agent\n", "Type=notify")
	for engine, file := range map[string]string{
		"docker": "/etc/docker/daemon.json", "containerd": "/etc/containerd/config.toml",
		"podman": "/usr/share/containers/oci/hooks.d/farpage.json", "crio": "/usr/share/containers/oci/hooks.d/farpage-crio.json",
		"cdi": "/etc/cdi/farpage.json",
	} {
		contains(t, engine, d.mustRun("farpage", "install", engine), file)
	}
	// The units are the package's, and still to be enabled.
	contains(t, "farpage install systemd", d.mustRun("farpage", "install", "systemd"), "systemctl enable --now farpage.socket farpage.service")

	// What the operator has written stays with an upgrade.
	const own = "log-level = \"debug\"\n"
	if err := os.WriteFile(d.root+"/etc/farpage/config.toml", []byte(own), 0o644); err != nil {
		t.Fatal(err)
	}
	d.mustRun("dpkg", "--install", "--force-confold", "/srv/test/1.1.0.deb")
	contains(t, "version after the upgrade", d.mustRun("farpage", "--version"), "1.1.0")
	if got, err := os.ReadFile(d.root + "/etc/farpage/config.toml"); err != nil || string(got) != own {
		t.Errorf("after the upgrade the configuration is %q (%v)", got, err)
	}
	contains(t, "the engines after the upgrade", d.mustRun("farpage", "install", "docker"), "nothing to change")

	d.mustRun("dpkg", "--purge", "farpage")
	after := tree(t, d.root)
	for name, what := range after {
		if before[name] != what {
			t.Errorf("after the purge %s is %s, it was %q", name, what, before[name])
		}
	}
	for name := range before {
		if _, there := after[name]; !there {
			t.Errorf("after the purge %s is gone", name)
		}
	}
}

func TestRPMHoldsTheSame(t *testing.T) {
	rpm := need.Program(t, "rpm")
	out, err := exec.CommandContext(t.Context(), rpm, "--query", "--package", "--list", "--scripts", filepath.Join(packages(t), "1.0.0.rpm")).CombinedOutput()
	if err != nil {
		t.Fatalf("rpm: %v\n%s", err, out)
	}
	contains(t, "rpm", string(out), append(installed, "preuninstall scriptlet", "postinstall scriptlet")...)
}

// Without an agent the pages of what is managed could not come back.
func TestRemovalIsRefusedWhileProcessesAreManaged(t *testing.T) {
	h := startHost(t)
	c, err := container.Start(t.Context(), container.Config{
		Args: []string{"/bin/sleep", "600"}, Programs: []string{"/bin/sleep"},
		Annotations: map[string]string{"io.farpage.local": "32Mi"}, Prestart: container.Hook(h.bin, h.SocketDir()), Dir: t.TempDir(),
	})
	if err != nil {
		t.Fatal(err)
	}
	h.alone(t, c.ID())
	// The script asks the agent of the host; here that is this one. It must do no more.
	bin := t.TempDir()
	here := "#!/bin/sh\n[ \"$1\" = ps ] || exit 99\nexec " + h.bin + "/farpage \"$@\" --socket-dir " + h.SocketDir() + "\n"
	if err := os.WriteFile(filepath.Join(bin, "farpage"), []byte(here), 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "sh", "../../packaging/preremove.sh", "remove")
	cmd.Env = []string{"PATH=" + bin + ":/usr/bin:/bin"}
	out, err := cmd.CombinedOutput()
	if want := "farpage: 1 processes are managed (farpage ps): end their containers first\n"; err == nil || string(out) != want {
		t.Errorf("%v, %q, want %q", err, out, want)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

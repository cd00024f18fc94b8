package engines

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/farpage/farpage/internal/need"
	"github.com/farpage/farpage/test/container"
)

// debianPackages are what the unpacked Debian 13 has beside its base.
const debianPackages = "docker.io,docker-cli,containerd,runc,redis-server,ca-certificates"

// cacheDir keeps what takes minutes to make, outside of the tree.
const cacheDir = "/var/cache/farpage-test"

// debianTar is a Debian 13, made once with mmdebstrap.
var debianTar = sync.OnceValues(func() (string, error) {
	sum := sha256.Sum256([]byte(debianPackages))
	path := fmt.Sprintf("%s/debian13-%x.tar", cacheDir, sum[:6])
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	if err := os.MkdirAll(cacheDir, 0o755); err != nil {
		return "", err
	}
	// Under another name until it is whole.
	unfinished := fmt.Sprintf("%s/.%d.tar", cacheDir, os.Getpid())
	cmd := exec.Command("mmdebstrap", "--quiet", "--variant=minbase", "--include="+debianPackages, "trixie", unfinished)
	cmd.Env = append(os.Environ(), "TMPDIR=/var/tmp")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", errors.Join(fmt.Errorf("mmdebstrap: %w\n%s", err, out), os.Remove(unfinished))
	}
	return path, os.Rename(unfinished, path)
})

// debian is an unpacked Debian 13 whose daemon runs in a mount namespace of its own.
type debian struct {
	*host
	root string
}

// enter is what makes the namespace: $1 is the root, $2 the folder of the programs, $3 the
// agent's, which is at its default place too; the rest is run inside. Its root is that of the namespace, as on a host: where
// it is only a chroot runc's exec leads out of it. A cgroup v2 beside v1 is out of the way
// there: nobody has its controllers.
const enter = `
root=$1 bin=$2 agent=$3; shift 3
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mount --rbind /dev "$root/dev"
for d in run tmp var/lib/docker var/lib/containerd; do mkdir -p "$root/$d"; mount -t tmpfs -o mode=755 tmpfs "$root/$d"; done
chmod 1777 "$root/tmp"
for d in "$bin" "$agent"; do mkdir -p "$root$d"; mount --bind "$d" "$root$d"; done
mkdir "$root/run/farpage"
mount --bind "$agent/agent" "$root/run/farpage"
if [ -d "$root/sys/fs/cgroup/unified" ]; then umount "$root/sys/fs/cgroup/unified"; fi
cd "$root"
pivot_root . mnt
exec chroot . sh -ec 'umount -l /mnt; exec "$@"' sh "$@"
`

// unpackDebian unpacks it; what is in it is removed with the test.
func (h *host) unpackDebian(t *testing.T) *debian {
	t.Helper()
	need.Program(t, "mmdebstrap")
	tar, err := debianTar()
	if err != nil {
		t.Fatal(err)
	}
	d := &debian{host: h, root: filepath.Join(scratch, "debian")}
	if err := os.Mkdir(d.root, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := container.RemoveTree(d.root); err != nil {
			t.Error(err)
		}
	})
	if out, err := exec.CommandContext(t.Context(), "tar", "-C", d.root, "-xf", tar).CombinedOutput(); err != nil {
		t.Fatalf("tar: %v\n%s", err, out)
	}
	if err := os.MkdirAll(filepath.Join(d.root, "srv/test"), 0o755); err != nil {
		t.Fatal(err)
	}
	return d
}

// start runs a command inside, as the process that it returns; what it says goes to a
// file. It ends with the test.
func (d *debian) start(t *testing.T, log string, args ...string) *os.Process {
	t.Helper()
	file, err := os.Create(log)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	cmd := exec.Command("unshare", append([]string{"--mount", "--propagation", "private", "sh", "-ec", enter, "sh", d.root, d.bin, filepath.Dir(d.SocketDir())}, args...)...)
	cmd.Stdout, cmd.Stderr = file, file
	cmd.SysProcAttr = d.group.Attributes()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.group.Kill(); err != nil { // the containers too
			t.Error(err)
		}
		_ = cmd.Wait()
		if t.Failed() {
			text, _ := os.ReadFile(log)
			lines := strings.Split(string(text), "\n")
			t.Logf("%s ends with:\n%s", log, strings.Join(lines[max(0, len(lines)-40):], "\n"))
		}
	})
	return cmd.Process
}

// chroot is a command inside that needs no mounts.
func (d *debian) chroot(args ...string) *exec.Cmd {
	cmd := exec.CommandContext(d.t.Context(), "chroot", append([]string{d.root}, args...)...)
	cmd.SysProcAttr = d.group.Attributes()
	return cmd
}

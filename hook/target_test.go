package hook

import (
	"bufio"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/farpage/farpage/internal/need"
	"golang.org/x/sys/unix"
)

// needRoot skips a test that mounts.
func needRoot(t *testing.T) {
	t.Helper()
	need.Root(t, "mounting")
}

// waiting is a process in a mount namespace of its own, with a root file system mounted
// on itself: what a runtime has made when it calls hooks.
type waiting struct {
	pid  int
	root string // path of the root file system
}

// startWaiting makes the file system with the given shell commands, run in the new mount
// namespace with $root set, and leaves the process waiting until the test ends.
func startWaiting(t *testing.T, root, mounts string) waiting {
	t.Helper()
	cmd := exec.Command("sh", "-e", "-c", `mount --bind "$root" "$root"; `+mounts+`
		echo ready; read line`)
	cmd.Env = append(os.Environ(), "root="+root)
	cmd.Stderr = os.Stderr
	// Go makes every mount of the new namespace private. Pdeathsig would come too early:
	// it is bound to the thread that forked, and threads of this package end. Should the
	// test be killed, the end of standard input ends the process.
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stdin.Close()
		_ = cmd.Wait() // read at the end of its input fails
	})
	if line, err := bufio.NewReader(stdout).ReadString('\n'); line != "ready\n" {
		t.Fatalf("the container's process did not get ready: %q, %v", line, err)
	}
	return waiting{pid: cmd.Process.Pid, root: root}
}

// path is the way to a file of the container as its process sees it.
func (w waiting) path(name string) string {
	return filepath.Join(fmt.Sprintf("/proc/%d/root", w.pid), w.root, name)
}

// mounts returns the mounts below the root, as MOUNTPOINT OPTIONS.
func (w waiting) mounts(t *testing.T) []string {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", w.pid))
	if err != nil {
		t.Fatal(err)
	}
	var mounts []string
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if below, ok := strings.CutPrefix(fields[4], w.root+"/"); ok {
			mounts = append(mounts, below+" "+fields[5])
		}
	}
	slices.Sort(mounts)
	return mounts
}

// attachTo does what the hook does between the agent's answer and the end.
func attachTo(t *testing.T, w waiting, folder string) error {
	t.Helper()
	target, err := openTarget(w.pid, w.root)
	if err != nil {
		t.Fatal(err)
	}
	defer target.close()
	source, err := openSource(folder)
	if err != nil {
		t.Fatal(err)
	}
	defer source.close()
	return target.attach(source)
}

// newFolder makes a container's folder as the agent would, with an empty library.
func newFolder(t *testing.T) string {
	t.Helper()
	folder := t.TempDir()
	if err := os.Chmod(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(folder, libraryName), nil, 0o755); err != nil {
		t.Fatal(err)
	}
	return folder
}

// tree lists what is in a folder: names, modes and the content of small files.
func tree(t *testing.T, folder string) string {
	t.Helper()
	var list strings.Builder
	err := filepath.WalkDir(folder, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		fmt.Fprintf(&list, "%s %s", strings.TrimPrefix(path, folder), info.Mode())
		if info.Mode().IsRegular() && info.Size() < 4096 {
			content, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			fmt.Fprintf(&list, " %q", content)
		}
		list.WriteByte('\n')
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return list.String()
}

// shell runs commands with $root set.
func shell(t *testing.T, root, commands string) {
	t.Helper()
	cmd := exec.Command("sh", "-e", "-c", commands)
	cmd.Env = append(os.Environ(), "root="+root)
	if output, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", commands, err, output)
	}
}

func TestTheFolderAndThePreloadFileAreMounted(t *testing.T) {
	needRoot(t)
	const tmpfsDev = `mount -t tmpfs tmpfs "$root/dev"`
	cases := map[string]struct {
		image   string // commands that make the image's files in $root
		mounts  string // commands that make the container's mounts
		preload string // what the container reads then
	}{
		"an image without a preload file": {
			`mkdir "$root/etc" "$root/dev"`, tmpfsDev, libraryPath + "\n",
		},
		"an empty image, and no mount at /dev": {
			``, ``, libraryPath + "\n",
		},
		"the image's own libraries stay": {
			`mkdir "$root/etc" "$root/dev"; printf /usr/lib/libx.so > "$root/etc/ld.so.preload"`, tmpfsDev,
			"/usr/lib/libx.so\n" + libraryPath + "\n",
		},
		"a volume over the preload file is what the container would load": {
			`mkdir "$root/etc" "$root/dev"; echo /image.so > "$root/etc/ld.so.preload"; echo /volume.so > "$root/volume"`,
			tmpfsDev + `; mount --bind "$root/volume" "$root/etc/ld.so.preload"`,
			"/volume.so\n" + libraryPath + "\n",
		},
		"the preload file is an absolute link": {
			`mkdir "$root/etc" "$root/dev" "$root/conf"; echo /a.so > "$root/conf/preload"; ln -s /conf/preload "$root/etc/ld.so.preload"`, tmpfsDev,
			"/a.so\n" + libraryPath + "\n",
		},
		"etc is an absolute link": {
			`mkdir -p "$root/usr/etc" "$root/dev"; ln -s /usr/etc "$root/etc"`, tmpfsDev, libraryPath + "\n",
		},
		"etc is a link that climbs above the root": {
			`mkdir -p "$root/usr/etc" "$root/dev"; ln -s ../../../../../../../../usr/etc "$root/etc"`, tmpfsDev, libraryPath + "\n",
		},
		"dev is a link": {
			`mkdir "$root/etc" "$root/devices"; ln -s /devices "$root/dev"`, `mount -t tmpfs tmpfs "$root/devices"`, libraryPath + "\n",
		},
		"a read-only root": {
			`mkdir "$root/etc" "$root/dev"`, tmpfsDev + `; mount -o remount,bind,ro "$root"`, libraryPath + "\n",
		},
		"a read-only root and a read-only /dev": {
			`mkdir "$root/etc" "$root/dev"`, tmpfsDev + `; mount -o remount,bind,ro "$root/dev"; mount -o remount,bind,ro "$root"`, libraryPath + "\n",
		},
		"a writable volume at /etc": {
			`mkdir "$root/etc" "$root/dev" "$root/volume"`, tmpfsDev + `; mount --bind "$root/volume" "$root/etc"`, libraryPath + "\n",
		},
		"a preload file of no use to anybody else": {
			`mkdir "$root/etc" "$root/dev"; echo secret.so > "$root/etc/ld.so.preload"; chmod 000 "$root/etc/ld.so.preload"`, tmpfsDev,
			"secret.so\n" + libraryPath + "\n",
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			root, folder := t.TempDir(), newFolder(t)
			shell(t, root, c.image)
			w := startWaiting(t, root, c.mounts)
			before := w.mounts(t)
			if err := attachTo(t, w, folder); err != nil {
				t.Fatal(err)
			}
			added := slices.DeleteFunc(w.mounts(t), func(m string) bool { return slices.Contains(before, m) })
			if len(added) != 2 {
				t.Errorf("these mounts came: %q", added)
			}
			for _, m := range added {
				if !strings.Contains(m, " ro,nosuid,nodev") || strings.Contains(m, "noexec") {
					t.Errorf("mount %s", m)
				}
			}
			if got := string(readIn(t, w, preloadPath)); got != c.preload {
				t.Errorf("the container would load %q", got)
			}
			if id, want := identityIn(t, w, "dev/farpage/"+libraryName), identityOf(t, filepath.Join(folder, libraryName)); !id.sameFile(want) {
				t.Error("the library in the container is another file")
			}
		})
	}
}

// readIn reads a file of the container, with links resolved inside of its root.
func readIn(t *testing.T, w waiting, path string) []byte {
	t.Helper()
	root, err := os.Open(w.path(""))
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	f, err := openIn(root, path, unix.O_RDONLY)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	content := make([]byte, 4096)
	n, _ := f.Read(content)
	return content[:n]
}

// identityIn is identityOf for a file of the container.
func identityIn(t *testing.T, w waiting, path string) identity {
	t.Helper()
	root, err := os.Open(w.path(""))
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	f, err := openIn(root, path, unix.O_PATH)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	id, err := identify(f)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func identityOf(t *testing.T, path string) identity {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	id, err := identify(f)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func TestARefusalSaysWhyAndLeavesNothingBehind(t *testing.T) {
	needRoot(t)
	outside := t.TempDir() // on the host; no link of an image may lead here
	const dirs = `mkdir "$root/etc" "$root/dev"; `
	const tmpfsDev = `mount -t tmpfs tmpfs "$root/dev"`
	cases := map[string]struct {
		image, mounts string
		want          string
	}{
		"the preload file is a folder": {
			dirs + `mkdir "$root/etc/ld.so.preload"`, tmpfsDev,
			"the image's /etc/ld.so.preload is a folder, not a file: the library cannot be preloaded there",
		},
		"the preload file is a pipe": {
			dirs + `mkfifo "$root/etc/ld.so.preload"`, tmpfsDev,
			"the image's /etc/ld.so.preload is a pipe, not a file",
		},
		"the preload file is too large": {
			dirs + `head -c 65537 /dev/zero > "$root/etc/ld.so.preload"`, tmpfsDev,
			"the image's /etc/ld.so.preload is larger than 65536 bytes",
		},
		"the preload file is a link out of the root": {
			dirs + `ln -s ` + outside + `/preload "$root/etc/ld.so.preload"; touch ` + outside + `/preload`, tmpfsDev,
			"the image's /etc/ld.so.preload is a symbolic link to nothing",
		},
		"etc is a link out of the root": {
			`mkdir "$root/dev"; ln -s ` + outside + ` "$root/etc"`, tmpfsDev,
			"/etc in the container is a symbolic link to nothing",
		},
		"etc is a link through proc to the host": {
			`mkdir "$root/dev" "$root/proc"; ln -s /proc/self/root/etc "$root/etc"`, tmpfsDev + `; mount -t proc proc "$root/proc"`,
			"/etc in the container is not a folder",
		},
		"etc is a file": {
			`mkdir "$root/dev"; touch "$root/etc"`, tmpfsDev,
			"/etc in the container is not a folder",
		},
		"links that go in a circle": {
			`mkdir "$root/dev"; ln -s etc "$root/etc"`, tmpfsDev,
			"/etc in the container is not a folder",
		},
		"dev is a file": {
			`mkdir "$root/etc"; touch "$root/dev"`, ``,
			"/dev in the container is not a folder",
		},
		"the mount point is a link": {
			dirs + `ln -s /etc "$root/dev/farpage"`, ``,
			"/dev/farpage in the container is not a folder",
		},
		"something else is mounted there": {
			dirs, tmpfsDev + `; mkdir "$root/dev/farpage"; mount -t tmpfs tmpfs "$root/dev/farpage"`,
			"something else is mounted at /dev/farpage in the container",
		},
		"a read-only file system": {
			``, `mount -t tmpfs tmpfs "$root"; cd "$root"; mkdir etc dev; mount -t tmpfs tmpfs dev; mount -o remount,ro "$root"`,
			"the image has no /etc/ld.so.preload, and one to mount on cannot be created: its file system is read-only, not only its mount",
		},
		"a read-only volume at etc": {
			dirs, tmpfsDev + `; mount --bind ` + outside + ` "$root/etc"; mount -o remount,bind,ro "$root/etc"`,
			"cannot be created: it would be in a volume that is mounted read-only",
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			shell(t, root, c.image)
			w := startWaiting(t, root, c.mounts)
			mounts, files, hosts := w.mounts(t), tree(t, w.path("dev"))+tree(t, root), tree(t, outside)
			err := attachTo(t, w, newFolder(t))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got  %v\nwant %s", err, c.want)
			}
			if err != nil && strings.Contains(err.Error(), "cleaning up") {
				t.Errorf("%v", err)
			}
			if after := w.mounts(t); !slices.Equal(after, mounts) {
				t.Errorf("mounts before %q, after %q", mounts, after)
			}
			if after := tree(t, w.path("dev")) + tree(t, root); after != files {
				t.Errorf("files before\n%safter\n%s", files, after)
			}
			if after := tree(t, outside); after != hosts {
				t.Errorf("files outside before\n%safter\n%s", hosts, after)
			}
		})
	}
}

func TestAReadOnlyRootStaysReadOnly(t *testing.T) {
	needRoot(t)
	root := t.TempDir()
	shell(t, root, `mkdir "$root/etc" "$root/dev"`)
	w := startWaiting(t, root, `mount -t tmpfs tmpfs "$root/dev"; mount -o remount,bind,ro "$root"`)
	if err := attachTo(t, w, newFolder(t)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(w.path("etc/other"), nil, 0o600); !os.IsExist(err) && !strings.Contains(fmt.Sprint(err), "read-only file system") {
		t.Errorf("writing to the root: %v", err)
	}
}

func TestTheSecondOfTwoStagesChangesNothing(t *testing.T) {
	needRoot(t)
	root, folder := t.TempDir(), newFolder(t)
	shell(t, root, `mkdir "$root/etc" "$root/dev"; echo /own.so > "$root/etc/ld.so.preload"`)
	w := startWaiting(t, root, `mount -t tmpfs tmpfs "$root/dev"`)
	if err := attachTo(t, w, folder); err != nil {
		t.Fatal(err)
	}
	mounts := w.mounts(t)
	if err := attachTo(t, w, folder); err != nil {
		t.Fatal(err)
	}
	if after := w.mounts(t); !slices.Equal(after, mounts) {
		t.Errorf("mounts before %q, after %q", mounts, after)
	}
	if got := string(readIn(t, w, "etc/ld.so.preload")); got != "/own.so\n"+libraryPath+"\n" {
		t.Errorf("the container would load %q", got)
	}
}

func TestALibraryIsMappedFromAHostFolderThatForbidsExecution(t *testing.T) {
	needRoot(t)
	// The folder is on a noexec tmpfs, as /run is on Debian. It is mounted in a mount
	// namespace of its own, for nothing of a test may stay on the host.
	root, folder := t.TempDir(), t.TempDir()
	shell(t, root, `mkdir "$root/etc" "$root/dev"`)
	w := startWaiting(t, root, `mount -t tmpfs tmpfs "$root/dev"`)
	host := startWaiting(t, folder, `mount -t tmpfs -o noexec,mode=755 tmpfs "$root"; touch "$root/`+libraryName+`"`)
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/mnt", host.pid))
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	target, err := openTarget(w.pid, w.root)
	if err != nil {
		t.Fatal(err)
	}
	defer target.close()
	var s *source
	if err := inMountNamespace(ns, func() error { s, err = openSource(folder); return err }); err != nil {
		t.Fatal(err)
	}
	defer s.close()
	if err := target.attach(s); err != nil {
		t.Fatal(err)
	}
	for _, m := range w.mounts(t) {
		if strings.HasPrefix(m, "dev/farpage ") && strings.Contains(m, "noexec") {
			t.Errorf("mount %s", m)
		}
	}
}

func TestAnEngineInAChrootIsFollowedThere(t *testing.T) {
	needRoot(t)
	host := t.TempDir() // the engine's root
	makeRoot(t, host)
	root := filepath.Join(host, "bundle/rootfs")
	shell(t, root, `mkdir -p "$root/etc" "$root/dev"`)
	w := startWaiting(t, root, `exec chroot `+host+` /bin/sh -c 'echo ready; read line'`)
	w.root = "/bundle/rootfs" // as the engine calls it
	if err := attachTo(t, w, newFolder(t)); err != nil {
		t.Fatal(err)
	}
	if got := string(readIn(t, w, preloadPath)); got != libraryPath+"\n" {
		t.Errorf("the container would load %q", got)
	}
}

func TestTheHostsOwnMountNamespaceIsNotMountedInto(t *testing.T) {
	needRoot(t)
	if _, err := openTarget(os.Getpid(), t.TempDir()); err == nil || !strings.Contains(err.Error(), "no mount namespace of its own") {
		t.Errorf("%v", err)
	}
}

func TestARootThatTheContainerDoesNotSeeIsRefused(t *testing.T) {
	needRoot(t)
	root := t.TempDir()
	w := startWaiting(t, root, ``)
	if _, err := openTarget(w.pid, root+"/elsewhere"); err == nil || !strings.Contains(err.Error(), "is not to be seen in its mount namespace") {
		t.Errorf("%v", err)
	}
}

func TestAFolderWithoutTheLibraryIsNotMounted(t *testing.T) {
	needRoot(t)
	folder := t.TempDir()
	if _, err := openSource(folder); err == nil || !strings.Contains(err.Error(), "libfarpage.so: no such file") {
		t.Errorf("%v", err)
	}
	if err := os.Mkdir(filepath.Join(folder, libraryName), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := openSource(folder); err == nil || !strings.Contains(err.Error(), "libfarpage.so is not a file") {
		t.Errorf("%v", err)
	}
	if _, err := openSource(folder + "/missing"); err == nil || !strings.Contains(err.Error(), "that the agent gave") {
		t.Errorf("%v", err)
	}
}

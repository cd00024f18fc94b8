package store_test

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/farpage/farpage/internal/need"
	"github.com/farpage/farpage/store"
	"golang.org/x/sys/unix"
)

// refuses opens path and wants an error that begins with the URL, then the path,
// then want.
func refuses(t *testing.T, path, want string) {
	t.Helper()
	st, err := store.OpenURL("file://" + path)
	if err == nil {
		_ = st.Close()
		t.Errorf("%s was opened", path)
		return
	}
	if full := fmt.Sprintf(`store "file://%s": %s %s`, path, path, want); err.Error() != full {
		t.Errorf("it says  %s\nwant     %s", err, full)
	}
}

func write(t *testing.T, path string, content []byte) {
	t.Helper()
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
}

func header() []byte { return store.FileHeader(1, 0, 0, false, false) }

func TestFileRefusesWhatIsNoSlotFileAndLeavesItAlone(t *testing.T) {
	whole := header()
	newer, pages, damaged := header(), header(), header()
	newer[8], pages[13], damaged[20] = 2, 0x40, damaged[20]^1
	const foreign = "is no slot file of farpage (it begins otherwise): choose another path, or remove it if nobody needs it"
	const cutOff = "is cut off within its first page: remove it"
	for name, c := range map[string]struct {
		content []byte
		want    string
	}{
		"foreign":     {[]byte("#!/bin/sh\n"), foreign},
		"zeros":       {make([]byte, 8192), foreign},
		"one byte":    {[]byte("x"), foreign},
		"a bit of it": {whole[:3], cutOff},
		"cut off":     {whole[:100], cutOff},
		"newer":       {newer, "is a slot file of version 2 with pages of 4096 bytes, this farpage has version 1 with 4096: end the agent that uses it and remove it"},
		"other pages": {pages, "is a slot file of version 1 with pages of 16384 bytes, this farpage has version 1 with 4096: end the agent that uses it and remove it"},
		"damaged":     {damaged, "has a damaged first page: remove it"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "slots")
			write(t, path, c.content)
			if err := os.Chmod(path, 0o644); err != nil {
				t.Fatal(err)
			}
			refuses(t, path, c.want)
			if now, err := os.ReadFile(path); err != nil || string(now) != string(c.content) {
				t.Errorf("it was changed: %v", err)
			}
			if info, err := os.Stat(path); err != nil || info.Mode() != 0o644 {
				t.Errorf("its mode is %v, %v", info.Mode(), err)
			}
		})
	}
}

func TestFileRefusesWhatIsNoFile(t *testing.T) {
	folder := t.TempDir()
	at := func(name string) string { return filepath.Join(folder, name) }
	refuses(t, folder, "is a folder: give the path of a file, such as file://"+at("slots"))
	refuses(t, at("no/where/slots"), fmt.Sprintf("cannot be made, there is no folder %s: make it (mkdir -p -m 700 %[1]s) or choose another path", at("no/where")))
	write(t, at("plain"), nil)
	refuses(t, at("plain/slots"), "cannot be made, "+at("plain")+" is or lies in a file: choose another path")

	const regular = ": give the path of a regular file, or of one that is to be made"
	refuses(t, "/dev/null", "is a device"+regular)
	if err := unix.Mkfifo(at("fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	refuses(t, at("fifo"), "is a FIFO"+regular)
	l, err := net.Listen("unix", at("socket"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	refuses(t, at("socket"), "is a socket"+regular)
	if err := os.Symlink(at("nothing"), at("link")); err != nil {
		t.Fatal(err)
	}
	refuses(t, at("link"), "is a link to a file that is not there, or was made by another process this moment: try again or choose another path")
}

func TestFileRefusesAFileOfSomebodyElse(t *testing.T) {
	path := filepath.Join(t.TempDir(), "slots")
	write(t, path, header())
	if err := os.Chown(path, 4711, -1); err != nil {
		need.Skip(t, "changing an owner needs root: run `sudo make test`")
	}
	refuses(t, path, "belongs to user 4711, who could read and change what is far: remove it, or choose another path")
}

func TestFileRefusesADiskThatIsFullOrReadOnly(t *testing.T) {
	folder := mount(t, "tmpfs", "size=4096")
	path := filepath.Join(folder, "slots")
	write(t, filepath.Join(folder, "all there is"), make([]byte, 4096))
	refuses(t, path, "has no room for its first page: free some of the disk or choose another path")
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("the empty file is left behind: %v", err)
	}
	if err := unix.Mount("", folder, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	refuses(t, path, "cannot be written, its file system is read-only: choose another path")
}

func TestFileRefusesAFileInUse(t *testing.T) {
	path := filepath.Join(t.TempDir(), "slots")
	st, err := store.OpenURL("file://" + path)
	if err != nil {
		t.Fatal(err)
	}
	refuses(t, path, "is in use by this process already")
	if err := st.Close(); err != nil {
		t.Fatal(err)
	}

	locked, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer locked.Close()
	if err := unix.Flock(int(locked.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	refuses(t, path, "is locked by another process: if that is an agent that is just starting, choose another path, else end it (fuser -v shows it)")
	if err := unix.Flock(int(locked.Fd()), unix.LOCK_UN); err != nil {
		t.Fatal(err)
	}
	write(t, path, store.FileHeader(1, 4711, 1, false, true))
	refuses(t, path, "was last used by an agent in another pid namespace (pid 4711 there), and from here one cannot see whether that has ended: make sure of it and remove the file")
}

func TestFileTakesAFileWhoseOwnerCannotLive(t *testing.T) {
	pid := int64(os.Getpid())
	for name, content := range map[string][]byte{
		"nobody's":              header(),
		"empty":                 nil,
		"of another process":    store.FileHeader(1, pid, 1, false, false),
		"of no process":         store.FileHeader(1, 1<<30, 1, false, false),
		"of another boot":       store.FileHeader(1, 1, 1, true, true),
		"with blocks behind it": append(header(), make([]byte, 10000)...),
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "slots")
			write(t, path, content)
			st, err := store.OpenURL("file://" + path)
			if err != nil {
				t.Fatal(err)
			}
			if err := st.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestFileIsForItsOwnerOnly(t *testing.T) {
	path := filepath.Join(t.TempDir(), "slots")
	for _, before := range []os.FileMode{0, 0o644} {
		if before != 0 {
			if err := os.Chmod(path, before); err != nil {
				t.Fatal(err)
			}
		}
		st, err := store.OpenURL("file://" + path)
		if err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(path)
		if err != nil || info.Mode() != 0o600 {
			t.Errorf("its mode is %v, %v", info.Mode(), err)
		}
		if err := st.Close(); err != nil {
			t.Error(err)
		}
		if info, err := os.Stat(path); err != nil || info.Size() != store.PageSize {
			t.Errorf("closed without pages it has %d bytes, %v", info.Size(), err)
		}
	}
}

func TestFileKeepsWithinTheProcessLimit(t *testing.T) {
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &was); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: 4 * store.PageSize, Max: was.Max}); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Setrlimit(unix.RLIMIT_FSIZE, &was) }()
	c := openFile(t, "file://"+filepath.Join(t.TempDir(), "slots"), nil)
	for i, op := range c.put(random(5)...) {
		if full := op.Err != nil; full != (i >= 3) || full && !strings.Contains(op.Err.Error(), "max is reached") {
			t.Errorf("page %d: %v", i, op.Err)
		}
	}
}

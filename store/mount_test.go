package store_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/farpage/farpage/internal/need"
	"golang.org/x/sys/unix"
)

// mount makes a folder with a file system of its own, until the test ends.
func mount(tb testing.TB, kind, options string) string {
	tb.Helper()
	need.Root(tb, "mounting")
	folder := tb.TempDir()
	if err := unix.Mount("farpage-test", folder, kind, 0, options); err != nil {
		tb.Fatalf("mount %s: %v", kind, err)
	}
	tb.Cleanup(func() {
		if err := unix.Unmount(folder, 0); err != nil {
			tb.Errorf("unmount: %v", err)
		}
	})
	return folder
}

// remount changes the options of what mount has made.
func remount(tb testing.TB, folder, options string) {
	tb.Helper()
	if err := unix.Mount("", folder, "", unix.MS_REMOUNT, options); err != nil {
		tb.Fatal(err)
	}
}

// mountExt4 makes a small disk of its own.
func mountExt4(tb testing.TB, bytes int64) string {
	tb.Helper()
	need.Root(tb, "mounting")
	image, folder := filepath.Join(tb.TempDir(), "image"), tb.TempDir()
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		tb.Fatal(err)
	}
	if err := os.Truncate(image, bytes); err != nil {
		tb.Fatal(err)
	}
	if out, err := exec.Command(need.Program(tb, "mke2fs"), "-q", "-F", "-t", "ext4", "-m", "0", image).CombinedOutput(); err != nil {
		tb.Fatalf("mke2fs: %v: %s", err, out)
	}
	if out, err := exec.Command("mount", "-o", "loop", image, folder).CombinedOutput(); err != nil {
		need.Skip(tb, fmt.Sprintf("mount -o loop (is there a loop device?): %v: %s", err, out))
	}
	tb.Cleanup(func() {
		if err := unix.Unmount(folder, 0); err != nil {
			tb.Errorf("unmount: %v", err)
		}
	})
	return folder
}

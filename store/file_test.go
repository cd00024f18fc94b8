package store_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"unsafe"

	"github.com/farpage/farpage/internal/need"
	"github.com/farpage/farpage/store"
	"github.com/farpage/farpage/store/storetest"
	"golang.org/x/sys/unix"
)

// fileMaker makes a file in a folder of its own for each place.
func fileMaker(folder func(testing.TB) string, open func(url string) (store.Store, error)) storetest.Maker {
	return func(tb testing.TB, roomPages int) func() (store.Store, error) {
		url := fmt.Sprintf("file://%s?max=%d", filepath.Join(folder(tb), "slots"), roomPages*store.PageSize)
		return func() (store.Store, error) { return open(url) }
	}
}

func temporary(tb testing.TB) string { return tb.TempDir() }

func TestFileDoesWhatEveryStoreMust(t *testing.T) {
	storetest.Run(t, fileMaker(temporary, store.OpenURL))
}

// runChecks is storetest.Run without the long lives.
func runChecks(t *testing.T, mk storetest.Maker) {
	for _, c := range storetest.Checks() {
		t.Run(c.Name, func(t *testing.T) {
			if err := c.Run(t, mk); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestFileDoesSoThroughThePageCache(t *testing.T) {
	runChecks(t, fileMaker(temporary, func(url string) (store.Store, error) { return store.OpenFileBuffered(url) }))
}

func TestFileDoesSoInRAM(t *testing.T) {
	runChecks(t, fileMaker(func(tb testing.TB) string { return mount(tb, "tmpfs", "size=64m") }, store.OpenURL))
}

// A ramfs knows neither O_DIRECT nor holes.
func TestFileDoesSoWhereTheFileSystemKnowsLittle(t *testing.T) {
	ramfs := func(tb testing.TB) string { return mount(tb, "ramfs", "") }
	runChecks(t, fileMaker(ramfs, store.OpenURL))
	c := openFile(t, "file://"+filepath.Join(ramfs(t), "slots"), nil)
	const want = "the file system of the slot file has no O_DIRECT: invalid argument"
	if err := c.file.Buffered(); err == nil || err.Error() != want {
		t.Errorf("it says %v", err)
	}
}

func TestFileTakesNoPageCache(t *testing.T) {
	for name, open := range map[string]func(string) (*store.File, error){
		"direct": store.OpenFile, "buffered": store.OpenFileBuffered,
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "slots")
			file, err := open("file://" + path)
			if err != nil {
				t.Fatal(err)
			}
			defer file.Close()
			if err := file.Buffered(); name == "direct" && err != nil {
				need.Skip(t, fmt.Sprintf("set TMPDIR to a folder whose file system takes O_DIRECT: %v", err))
			}
			file.Recovered()
			c := openPart(t, file, "c")
			pages := random(1024)
			c.expect(t, c.store(t, pages...), pages)
			if n := cachedPages(t, path); n > 8 {
				t.Errorf("%d of 1024 pages are in the page cache", n)
			}
		})
	}
}

// cachedPages is how many pages of a file are in the page cache (mincore(2)).
func cachedPages(t *testing.T, path string) (n int) {
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	mapped, err := unix.Mmap(int(f.Fd()), 0, int(info.Size()), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Munmap(mapped) }()
	present := make([]byte, (len(mapped)+store.PageSize-1)/store.PageSize)
	if _, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&mapped[0])), uintptr(len(mapped)), uintptr(unsafe.Pointer(&present[0]))); errno != 0 {
		t.Fatal(errno)
	}
	for _, p := range present {
		n += int(p & 1)
	}
	return n
}

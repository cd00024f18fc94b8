package store_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/farpage/farpage/store"
	"github.com/farpage/farpage/store/storetest"
)

// fileTest is one open space of a file store.
type fileTest struct {
	store.Space
	file  *store.File
	ended chan *store.Op
}

// openFile opens a store that took nothing over, and a container in it.
func openFile(t testing.TB, url string, wrap func(store.SlotFile) store.SlotFile) *fileTest {
	t.Helper()
	file, err := store.OpenFileOn(url, wrap)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := file.Close(); err != nil && !errors.Is(err, store.ErrClosed) {
			t.Error(err)
		}
	})
	file.Recovered()
	return openPart(t, file, "c")
}

// openFaulty opens one with a file in which faults can be put.
func openFaulty(t testing.TB, query string) (*fileTest, *faultyFile) {
	faulty := new(faultyFile)
	return openFile(t, "file://"+filepath.Join(t.TempDir(), "slots")+query, func(inner store.SlotFile) store.SlotFile {
		faulty.SlotFile = inner
		return faulty
	}), faulty
}

func openPart(t testing.TB, file *store.File, id string, live ...store.Handle) *fileTest {
	t.Helper()
	c := &fileTest{file: file, ended: make(chan *store.Op, 1<<14)}
	var err error
	c.Space, err = file.Open(store.SpaceConfig{ID: id, Live: live, Done: func(op *store.Op) { c.ended <- op }})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (c *fileTest) put(pages ...[]byte) []*store.Op {
	ops := make([]*store.Op, len(pages))
	for i, page := range pages {
		ops[i] = &store.Op{Page: page}
		c.Put(ops[i])
	}
	for range ops {
		<-c.ended
	}
	return ops
}

func (c *fileTest) store(t testing.TB, pages ...[]byte) []store.Handle {
	t.Helper()
	handles := make([]store.Handle, len(pages))
	for i, op := range c.put(pages...) {
		if op.Err != nil {
			t.Fatalf("page %d: %v", i, op.Err)
		}
		handles[i] = op.Handle
	}
	return handles
}

// get asks for all at once.
func (c *fileTest) get(handles ...store.Handle) []*store.Op {
	ops := make([]*store.Op, len(handles))
	for i, h := range handles {
		ops[i] = &store.Op{Handle: h, Page: make([]byte, store.PageSize)}
		c.Get(ops[i])
	}
	for range ops {
		<-c.ended
	}
	return ops
}

func (c *fileTest) expect(t testing.TB, handles []store.Handle, want [][]byte) {
	t.Helper()
	for i, op := range c.get(handles...) {
		if op.Err != nil {
			t.Fatalf("page %d: %v", i, op.Err)
		}
		if !bytes.Equal(op.Page, want[i]) {
			t.Fatalf("page %d is another one", i)
		}
	}
}

func blockOf(h store.Handle) int64 { return int64(h & (1<<40 - 1)) }

func TestFileReadErrorIsThatPagesOnly(t *testing.T) {
	c, faulty := openFaulty(t, "")
	pages := random(40)
	handles := c.store(t, pages...)
	bad := map[int64]bool{blockOf(handles[7]): true, blockOf(handles[20]): true}
	faulty.set(func() {
		faulty.read = func(pages int, block int64) error {
			for at := block; at < block+int64(pages); at++ {
				if bad[at] {
					return syscall.EIO
				}
			}
			return nil
		}
	})
	for i, op := range c.get(handles...) {
		switch {
		case bad[blockOf(handles[i])]:
			want := fmt.Sprintf("store: read block %d of ", blockOf(handles[i]))
			if !errors.Is(op.Err, syscall.EIO) || !strings.HasPrefix(op.Err.Error(), want) {
				t.Errorf("page %d: %v", i, op.Err)
			}
		case op.Err != nil:
			t.Errorf("page %d: %v", i, op.Err)
		case !bytes.Equal(op.Page, pages[i]):
			t.Errorf("page %d is another one", i)
		}
	}
}

func TestFileSlowReadHoldsUpItsOwnPageOnly(t *testing.T) {
	c, faulty := openFaulty(t, "")
	pages := random(60)
	handles := c.store(t, pages...)
	hold := make(chan struct{})
	slow := blockOf(handles[30])
	faulty.set(func() {
		faulty.read = func(_ int, block int64) error {
			if block == slow {
				<-hold
			}
			return nil
		}
	})
	first := &store.Op{Handle: handles[30], Page: make([]byte, store.PageSize)}
	c.Get(first)
	eventually(t, "the slow read begins", func() bool {
		faulty.mu.Lock()
		defer faulty.mu.Unlock()
		return faulty.reads == 1
	})
	for i, h := range handles {
		if i != 30 {
			c.expect(t, []store.Handle{h}, pages[i:i+1])
		}
	}
	c.store(t, pages...)
	close(hold)
	if op := <-c.ended; op != first || op.Err != nil || !bytes.Equal(op.Page, pages[30]) {
		t.Errorf("the slow page comes as %v", op.Err)
	}
}

func TestFileThatWasCutOffLosesThosePagesOnly(t *testing.T) {
	path := filepath.Join(t.TempDir(), "slots")
	c := openFile(t, "file://"+path, nil)
	pages := random(40)
	handles := c.store(t, pages...)
	if err := os.Truncate(path, 20*store.PageSize+100); err != nil {
		t.Fatal(err)
	}
	for i, op := range c.get(handles...) {
		lost := blockOf(handles[i]) >= 20
		switch {
		case lost && (!errors.Is(op.Err, io.ErrUnexpectedEOF)):
			t.Errorf("page %d, which is lost: %v", i, op.Err)
		case !lost && (op.Err != nil || !bytes.Equal(op.Page, pages[i])):
			t.Errorf("page %d, which is not lost: %v", i, op.Err)
		}
	}
}

func TestFileWriteErrorIsThatPagesOnlyAndTheBlockIsGivenUp(t *testing.T) {
	c, faulty := openFaulty(t, "")
	const bad = 70
	faulty.set(func() {
		faulty.write = func(pages int, block int64) (int, error) {
			if block <= bad && bad < block+int64(pages) {
				return 0, syscall.EIO
			}
			return 0, nil
		}
	})
	pages := random(30)
	failed := 0
	for i, op := range c.put(pages...) {
		if op.Err == nil {
			c.expect(t, []store.Handle{op.Handle}, pages[i:i+1])
			continue
		}
		failed++
		if !errors.Is(op.Err, syscall.EIO) || errors.Is(op.Err, store.ErrFull) || op.Handle != 0 {
			t.Errorf("page %d: %v", i, op.Err)
		}
	}
	if failed != 1 {
		t.Errorf("%d pages failed", failed)
	}
	c.store(t, pages...)
	if n := c.file.Counts().BadBlocks; n != 1 {
		t.Errorf("%d bad blocks", n)
	}
}

func TestFileGivesUpFewBlocksWhenAllWritesFail(t *testing.T) {
	c, faulty := openFaulty(t, "?max=8Mi")
	faulty.set(func() { faulty.write = func(int, int64) (int, error) { return 0, syscall.EIO } })
	for range 10 {
		for _, op := range c.put(random(200)...) {
			if !errors.Is(op.Err, syscall.EIO) {
				t.Fatal(op.Err)
			}
		}
	}
	faulty.set(func() { faulty.write = nil })
	c.store(t, random(2048-store.FileMaxBadBlocks)...)
}

func TestFileShortWriteIsAFullDisk(t *testing.T) {
	c, faulty := openFaulty(t, "")
	faulty.set(func() { faulty.write = func(int, int64) (int, error) { return 512, nil } })
	for _, op := range c.put(random(3)...) {
		if !errors.Is(op.Err, store.ErrFull) || op.Handle != 0 {
			t.Errorf("a write of 512 bytes: %v", op.Err)
		}
	}
}

func TestFileOnAFullDiskLosesNothingAndGoesOnWhenThereIsRoom(t *testing.T) {
	folder := mount(t, "tmpfs", "size=1m")
	path := filepath.Join(folder, "slots")
	c := openFile(t, "file://"+path, nil)
	pages := random(300)
	var handles []store.Handle
	var stored [][]byte
	for i, op := range c.put(pages...) {
		switch {
		case op.Err == nil:
			handles, stored = append(handles, op.Handle), append(stored, pages[i])
		case op.Err.Error() != "store: full: "+path+": no space left on device":
			t.Fatal(op.Err)
		case !bytes.Equal(op.Page, storetest.Random.Page(uint64(i))):
			t.Fatal("the page that was refused is not what it was")
		}
	}
	if len(handles) != 255 { // and the first page of the file
		t.Errorf("%d pages found room", len(handles))
	}
	c.expect(t, handles, stored)

	// What is freed is room, also while the file system has none.
	for _, h := range handles[:20] {
		c.Free(h)
	}
	again := c.store(t, pages[280:]...)
	handles, stored = append(handles[20:], again...), append(stored[20:], pages[280:]...)
	c.expect(t, handles, stored)
	if op := c.put(pages[0])[0]; !errors.Is(op.Err, store.ErrFull) {
		t.Errorf("a full disk says %v", op.Err)
	}

	// So is what others free.
	if err := os.Remove(path); err != nil { // the store has it open still
		t.Fatal(err)
	}
	remount(t, folder, "size=2m")
	handles, stored = append(handles, c.store(t, pages[:200]...)...), append(stored, pages[:200]...)
	c.expect(t, handles, stored)
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if err := c.file.Close(); err != nil {
		t.Error(err)
	}
}

func TestFileOnAFullDiskOfExt4GoesOnWhenThereIsRoom(t *testing.T) {
	for name, open := range map[string]func(string) (*store.File, error){
		"direct": store.OpenFile, "buffered": store.OpenFileBuffered,
	} {
		t.Run(name, func(t *testing.T) {
			folder := mountExt4(t, 8<<20)
			other := filepath.Join(folder, "somebody else's")
			write(t, other, make([]byte, 2<<20))
			file, err := open("file://" + filepath.Join(folder, "slots"))
			if err != nil {
				t.Fatal(err)
			}
			defer file.Close()
			file.Recovered()
			c := openPart(t, file, "c")
			pages := random(2048)
			var handles []store.Handle
			var stored [][]byte
			for i, op := range c.put(pages...) {
				switch {
				case op.Err == nil:
					handles, stored = append(handles, op.Handle), append(stored, pages[i])
				case !errors.Is(op.Err, store.ErrFull):
					t.Fatal(op.Err)
				}
			}
			t.Logf("%d pages found room", len(handles))
			if len(handles) < 500 || len(handles) == len(pages) {
				t.Fatalf("%d pages found room", len(handles))
			}
			c.expect(t, handles, stored)
			for _, h := range handles[:100] {
				c.Free(h)
			}
			handles, stored = append(handles[100:], c.store(t, pages[:100]...)...), append(stored[100:], pages[:100]...)
			if err := os.Remove(other); err != nil {
				t.Fatal(err)
			}
			handles, stored = append(handles, c.store(t, pages[:300]...)...), append(stored, pages[:300]...)
			c.expect(t, handles, stored)
		})
	}
}

// A container must not see what another one has freed, nor lose anything by what
// another one does.
func TestFileOfManyContainersAtOnce(t *testing.T) {
	first := openFile(t, "file://"+filepath.Join(t.TempDir(), "slots")+"?max=16Mi", nil)
	var all sync.WaitGroup
	for n := range 6 {
		c := openPart(t, first.file, fmt.Sprint("many", n))
		all.Go(func() {
			r := rand.New(rand.NewPCG(uint64(n), 5))
			handles, pages := []store.Handle{}, [][]byte{}
			for round := range 30 {
				fresh := make([][]byte, 1+r.IntN(40))
				for i := range fresh {
					fresh[i] = storetest.Random.Page(uint64(n)<<32 | uint64(round)<<16 | uint64(i))
				}
				for i, op := range c.put(fresh...) {
					if op.Err != nil {
						t.Errorf("container %d: %v", n, op.Err)
						return
					}
					handles, pages = append(handles, op.Handle), append(pages, fresh[i])
				}
				for i, op := range c.get(handles...) {
					if op.Err != nil || !bytes.Equal(op.Page, pages[i]) {
						t.Errorf("container %d, round %d, page %d: %v", n, round, i, op.Err)
						return
					}
				}
				for len(handles) > 300 || len(handles) > 0 && r.IntN(30) != 0 {
					i := r.IntN(len(handles))
					c.Free(handles[i])
					last := len(handles) - 1
					handles[i], pages[i] = handles[last], pages[last]
					handles, pages = handles[:last], pages[:last]
				}
			}
			if n%2 == 0 {
				_ = c.Discard()
			} else {
				_ = c.Close()
			}
		})
	}
	all.Wait()
	if counts := first.file.Counts(); counts != (store.FileCounts{}) {
		t.Errorf("%+v", counts)
	}
}

func TestFileGivesFreedRoomBackToTheFileSystem(t *testing.T) {
	path := filepath.Join(t.TempDir(), "slots")
	c := openFile(t, "file://"+path, nil)
	handles := c.store(t, random(4096)...)
	onDisk := func() int64 {
		var st syscall.Stat_t
		if err := syscall.Stat(path, &st); err != nil {
			t.Fatal(err)
		}
		return st.Blocks * 512
	}
	if n := onDisk(); n < 16<<20 {
		t.Errorf("16 MiB take %d bytes", n)
	}
	for _, h := range handles {
		c.Free(h)
	}
	if n := c.Bytes(); n != 0 {
		t.Errorf("Bytes is %d when all is freed", n)
	}
	eventually(t, "most of the room is given back", func() bool { return onDisk() < 2<<20 })
	c.expect(t, c.store(t, random(100)...), random(100))
}

func TestFileIsUsedAgainWhereHolesCannotBePunched(t *testing.T) {
	c, faulty := openFaulty(t, "?max=4Mi")
	faulty.set(func() { faulty.punch = func(int64, int64) error { return syscall.EOPNOTSUPP } })
	for range 3 {
		for _, h := range c.store(t, random(1024)...) {
			c.Free(h)
		}
	}
	if n := c.file.Counts().PunchErrors; n != 1 {
		t.Errorf("it was tried %d times", n)
	}
}

// While blocks are on their way back nobody may get them, and a store that has no
// others waits for them.
func TestFilePutWaitsForRoomThatIsOnItsWayBack(t *testing.T) {
	c, faulty := openFaulty(t, "?max=4Mi")
	hold, punching := make(chan struct{}), make(chan struct{}, 100)
	faulty.set(func() {
		faulty.punch = func(int64, int64) error {
			punching <- struct{}{}
			<-hold
			return nil
		}
	})
	pages := random(1024)
	for _, h := range c.store(t, pages...) {
		c.Free(h)
	}
	<-punching
	time.AfterFunc(50*time.Millisecond, func() { close(hold) })
	c.expect(t, c.store(t, pages...), pages)
}

func TestFileWritesNeighboursTogether(t *testing.T) {
	c, faulty := openFaulty(t, "")
	pages := random(512)
	c.expect(t, c.store(t, pages...), pages)
	if faulty.writes > 100 {
		t.Errorf("512 pages at once take %d writes", faulty.writes)
	}
}

func TestFileTakesBuffersOfAnyAlignment(t *testing.T) {
	c := openFile(t, "file://"+filepath.Join(t.TempDir(), "slots"), nil)
	for shift := range 9 {
		want := storetest.Random.Page(uint64(shift))
		out, in := make([]byte, 2*store.PageSize), make([]byte, 2*store.PageSize)
		put := out[shift*8+1:][:store.PageSize]
		copy(put, want)
		handles := c.store(t, put)
		op := &store.Op{Handle: handles[0], Page: in[shift*16+3:][:store.PageSize]}
		c.Get(op)
		if <-c.ended; op.Err != nil || !bytes.Equal(op.Page, want) {
			t.Errorf("shift %d: %v", shift, op.Err)
		}
	}
}

func TestFileHandlesOfAnotherFileAreLeftOut(t *testing.T) {
	path := filepath.Join(t.TempDir(), "slots")
	c := openFile(t, "file://"+path, nil)
	handles := c.store(t, random(10)...)
	if err := c.file.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	file, err := store.OpenFile("file://" + path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	c = openPart(t, file, "c", handles...)
	file.Recovered()
	if n := file.Counts().UnknownLive; n != 10 {
		t.Errorf("%d handles are left out", n)
	}
	c.store(t, random(10)...)
	for _, op := range c.get(handles...) {
		if !errors.Is(op.Err, store.ErrHandle) {
			t.Errorf("a page of a file that is no more: %v", op.Err)
		}
	}
	if _, err := c.TryGet(handles[0], make([]byte, store.PageSize)); !errors.Is(err, store.ErrHandle) {
		t.Errorf("TryGet of one: %v", err)
	}
}

func TestFileContainerCannotReachAnothersPages(t *testing.T) {
	a := openFile(t, "file://"+filepath.Join(t.TempDir(), "slots"), nil)
	b := openPart(t, a.file, "b")
	pages := random(10)
	handles := a.store(t, pages...)
	for _, op := range b.get(handles...) {
		if !errors.Is(op.Err, store.ErrHandle) {
			t.Errorf("it reads another's page: %v", op.Err)
		}
	}
	for _, h := range handles {
		b.Free(h)
	}
	if n := a.file.Counts().UnknownFrees; n != 10 {
		t.Errorf("%d wrong frees", n)
	}
	a.expect(t, handles, pages)
	// Not even by a state that says so.
	thief := openPart(t, a.file, "thief", handles...)
	if n := a.file.Counts().UnknownLive; n != 10 || thief.Bytes() != 0 {
		t.Errorf("%d handles are left out", n)
	}
	if _, err := a.file.Open(store.SpaceConfig{ID: "b"}); err == nil || !strings.Contains(err.Error(), `container "b" is open already`) {
		t.Errorf("opened twice: %v", err)
	}
}

func TestFileClosedContainerFindsItsPagesAgain(t *testing.T) {
	c := openFile(t, "file://"+filepath.Join(t.TempDir(), "slots")+"?max=400Ki", nil)
	pages := random(100)
	handles := c.store(t, pages...)
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	again := openPart(t, c.file, "c", handles[:50]...)
	again.expect(t, handles[:50], pages[:50])
	again.store(t, random(50)...) // in place of those it does not have any more
	if n := again.Bytes(); n != 100*store.PageSize {
		t.Errorf("Bytes is %d", n)
	}
	if err := again.Discard(); err != nil {
		t.Fatal(err)
	}
	openPart(t, c.file, "d").store(t, pages...)
}

func TestFileWithALoweredMaxKeepsWhatItHas(t *testing.T) {
	path := filepath.Join(t.TempDir(), "slots")
	c := openFile(t, "file://"+path+"?max=1Mi", nil)
	pages := random(256)
	handles := c.store(t, pages...)
	if err := c.file.Close(); err != nil {
		t.Fatal(err)
	}
	file, err := store.OpenFile("file://" + path + "?max=512Ki")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	c = openPart(t, file, "c", handles...)
	file.Recovered()
	c.expect(t, handles, pages)
	if op := c.put(pages[0])[0]; !errors.Is(op.Err, store.ErrFull) {
		t.Errorf("there is room in 512 KiB for 257 pages: %v", op.Err)
	}
	for _, h := range handles[:200] {
		c.Free(h)
	}
	c.store(t, pages[:128-56]...)
	if op := c.put(pages[0])[0]; op.Err == nil || op.Err.Error() != "store: full: "+path+": max is reached" {
		t.Errorf("there is room in 512 KiB for 129 pages: %v", op.Err)
	}
}

func TestFilePutBeforeRecoveredSaysWhyThereIsNoRoom(t *testing.T) {
	path := filepath.Join(t.TempDir(), "slots")
	c := openFile(t, "file://"+path+"?max=1Mi", nil)
	pages := random(256)
	handles := c.store(t, pages...)
	if err := c.file.Close(); err != nil {
		t.Fatal(err)
	}
	file, err := store.OpenFile("file://" + path + "?max=1Mi")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	c = openPart(t, file, "c", handles[:10]...)
	if op := c.put(pages[0])[0]; op.Err == nil || op.Err.Error() != "store: full: "+path+": what an agent before this one has left is not free yet" {
		t.Errorf("before Recovered: %v", op.Err)
	}
	file.Recovered()
	c.store(t, pages[10:]...)
	c.expect(t, handles[:10], pages[:10])
}

func TestFileRefusesWorkOnceClosed(t *testing.T) {
	c := openFile(t, "file://"+filepath.Join(t.TempDir(), "slots"), nil)
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	for _, op := range append(c.put(random(1)...), c.get(1)...) {
		if !errors.Is(op.Err, store.ErrClosed) {
			t.Errorf("closed, it says %v", op.Err)
		}
	}
	if err := c.file.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.file.Open(store.SpaceConfig{ID: "x"}); !errors.Is(err, store.ErrClosed) {
		t.Errorf("Open says %v", err)
	}
}

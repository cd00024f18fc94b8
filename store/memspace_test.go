package store_test

import (
	"bytes"
	"errors"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/farpage/farpage/store"
	"github.com/farpage/farpage/store/storetest"
)

// memTest is one open space of a mem store.
type memTest struct {
	*store.MemSpace
	mem      *store.Mem
	arena    []byte
	ended    chan *store.Op
	released atomic.Int64 // bytes
}

// openMem opens a space over arena; release nil drops memory as the kernel does.
func openMem(t testing.TB, arena []byte, release func(offset, length int64) error, live ...store.Handle) *memTest {
	t.Helper()
	m := &memTest{mem: store.NewMem(), arena: arena, ended: make(chan *store.Op, 1<<14)}
	m.mem.SetMaxWorkers(3)
	if release == nil {
		release = func(offset, length int64) error {
			clear(arena[offset : offset+length])
			m.released.Add(length)
			return nil
		}
	}
	space, err := m.mem.Open(store.SpaceConfig{
		ID: "c", Arena: arena, Live: live, Release: release,
		Done: func(op *store.Op) { m.ended <- op },
	})
	if err != nil {
		t.Fatal(err)
	}
	m.MemSpace, _ = space.(*store.MemSpace)
	t.Cleanup(m.close)
	return m
}

func (m *memTest) close() {
	_ = m.Close()
	_ = m.mem.Close()
}

func (m *memTest) put(pages ...[]byte) []*store.Op {
	ops := make([]*store.Op, len(pages))
	for i, page := range pages {
		ops[i] = &store.Op{Page: page}
		m.Put(ops[i])
	}
	for range ops {
		<-m.ended
	}
	return ops
}

func (m *memTest) store(t testing.TB, pages ...[]byte) []store.Handle {
	t.Helper()
	handles := make([]store.Handle, len(pages))
	for i, op := range m.put(pages...) {
		if op.Err != nil {
			t.Fatalf("page %d: %v", i, op.Err)
		}
		handles[i] = op.Handle
	}
	return handles
}

func (m *memTest) expect(t testing.TB, h store.Handle, want []byte) {
	t.Helper()
	page := make([]byte, store.PageSize)
	if ok, err := m.TryGet(h, page); !ok || err != nil {
		t.Fatalf("TryGet(%#x) says %v, %v", h, ok, err)
	}
	if !bytes.Equal(page, want) {
		t.Fatalf("TryGet(%#x) gives another page", h)
	}
}

func random(n int) [][]byte {
	pages := make([][]byte, n)
	for i := range pages {
		pages[i] = storetest.Random.Page(uint64(i))
	}
	return pages
}

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("it never comes to pass that %s", what)
		}
	}
}

func TestMemPagesOfOneByteNeedNoMemory(t *testing.T) {
	m := openMem(t, make([]byte, 1<<20), nil)
	var pages [][]byte
	for b := range 256 {
		pages = append(pages, bytes.Repeat([]byte{byte(b)}, store.PageSize))
	}
	for i, h := range m.store(t, pages...) {
		m.expect(t, h, pages[i])
		m.Free(h)
	}
	if n := m.Bytes(); n != 0 {
		t.Errorf("they need %d bytes", n)
	}
	if !bytes.Equal(m.arena, make([]byte, len(m.arena))) {
		t.Error("the arena was written to")
	}
}

func TestMemCompressesWhatCompresses(t *testing.T) {
	for kind, mostBytes := range map[storetest.Content]int64{
		storetest.Sparse: 512,
		storetest.Text:   2800,
		storetest.Heap:   3000,
		storetest.Half:   2500,
		storetest.Random: 4096,
	} {
		m := openMem(t, make([]byte, 4<<20), nil)
		const n = 512
		pages := make([][]byte, n)
		for i := range pages {
			pages[i] = kind.Page(uint64(i))
		}
		m.store(t, pages...)
		if perPage := m.Bytes() / n; perPage > mostBytes {
			t.Errorf("%v: %d bytes a page, want at most %d", kind, perPage, mostBytes)
		}
	}
}

func TestMemCountsWrongFreesAndLivesOn(t *testing.T) {
	m := openMem(t, make([]byte, 1<<20), nil)
	pages := [][]byte{storetest.Text.Page(1), storetest.Random.Page(2)}
	handles := m.store(t, pages...)
	m.Free(handles[1])
	for i, h := range []store.Handle{handles[1], 0, ^store.Handle(0), 1<<62 | 1<<40, 1} {
		m.Free(h)
		if n := m.Counts().UnknownFrees; n != int64(i+1) {
			t.Errorf("after Free(%#x) %d are counted, want %d", h, n, i+1)
		}
	}
	m.expect(t, handles[0], pages[0])
}

func TestMemLeavesImpossibleLiveHandlesOut(t *testing.T) {
	arena := make([]byte, 1<<20)
	m := openMem(t, arena, nil)
	page := storetest.Text.Page(1)
	h := m.store(t, page)[0]
	m.close()
	m = openMem(t, arena, nil, h, h, 0, ^store.Handle(0), h|1<<30)
	if n := m.Counts().UnknownLive; n != 4 {
		t.Errorf("%d are counted, want 4", n)
	}
	m.expect(t, h, page)
}

func TestMemReleasesWhatADeadAgentLeft(t *testing.T) {
	arena := make([]byte, 64*store.PageSize)
	for i := range arena {
		arena[i] = 0xdb
	}
	m := openMem(t, arena, nil)
	if n := m.released.Load(); n != int64(len(arena)) || m.Bytes() != 0 {
		t.Errorf("%d bytes are released, %d kept", n, m.Bytes())
	}
	h := m.store(t, storetest.Random.Page(1))[0]
	m.close()
	arena[len(arena)-1] = 0xdb
	m = openMem(t, arena, nil, h)
	if n := m.released.Load(); n != int64(len(arena)-store.PageSize) || m.Bytes() != store.PageSize {
		t.Errorf("%d bytes are released, %d kept beside one page", n, m.Bytes())
	}
	m.expect(t, h, storetest.Random.Page(1))
}

func TestMemKeepsALittleIdleMemoryAndReleasesTheRest(t *testing.T) {
	m := openMem(t, make([]byte, 16<<20), nil)
	m.released.Store(0)
	handles := m.store(t, random(2048)...)
	for _, h := range handles[:128] {
		m.Free(h)
	}
	time.Sleep(10 * time.Millisecond)
	if n := m.released.Load(); n != 0 {
		t.Errorf("%d bytes are released when half a MiB is idle", n)
	}
	for _, h := range handles[128:] {
		m.Free(h)
	}
	eventually(t, "little is left", func() bool { return m.Bytes() <= 1<<20 })
	if m.released.Load()+m.Bytes() != 8<<20 {
		t.Errorf("%d bytes released, %d left of 8 MiB", m.released.Load(), m.Bytes())
	}
	if m.Bytes() < 256<<10 {
		t.Errorf("only %d bytes are kept", m.Bytes())
	}
}

func TestMemDoesNotThrashOnAnEbbAndFlow(t *testing.T) {
	m := openMem(t, make([]byte, 16<<20), nil)
	pages := random(1024)
	handles := m.store(t, pages...)
	m.released.Store(0)
	for round := range 20 {
		part := handles[round*50 : round*50+50]
		for _, h := range part {
			m.Free(h)
		}
		copy(part, m.store(t, pages[round*50:round*50+50]...))
	}
	if n := m.released.Load(); n != 0 {
		t.Errorf("%d bytes are released while as much is needed", n)
	}
}

func TestMemStopsReleasingWhenThatFails(t *testing.T) {
	calls := atomic.Int64{}
	broken := atomic.Bool{}
	m := openMem(t, make([]byte, 16<<20), func(int64, int64) error {
		calls.Add(1)
		if broken.Load() {
			return errors.New("no")
		}
		return nil
	})
	broken.Store(true)
	pages := random(2048)
	handles := m.store(t, pages...)
	calls.Store(0)
	for _, h := range handles {
		m.Free(h)
	}
	eventually(t, "a release has failed", func() bool { return m.Counts().ReleaseErrors > 0 })
	if m.Bytes() != 8<<20 {
		t.Errorf("Bytes is %d when nothing could be released", m.Bytes())
	}
	for i, h := range m.store(t, pages...) {
		m.expect(t, h, pages[i])
		m.Free(h)
	}
	if calls.Load() != 1 || m.Counts().ReleaseErrors != 1 {
		t.Errorf("%d calls, %d errors", calls.Load(), m.Counts().ReleaseErrors)
	}
}

func TestMemIsNotFullWhileMemoryIsBeingReleased(t *testing.T) {
	arena := make([]byte, 1024*store.PageSize)
	stalled, goOn := make(chan struct{}), make(chan struct{})
	var once sync.Once
	opened := atomic.Bool{}
	m := openMem(t, arena, func(offset, length int64) error {
		if opened.Load() {
			once.Do(func() { close(stalled); <-goOn })
		}
		clear(arena[offset : offset+length])
		return nil
	})
	opened.Store(true)
	handles := m.store(t, random(1024)...)
	for _, h := range handles {
		m.Free(h)
	}
	<-stalled
	ops := make([]*store.Op, 1024)
	for i, page := range random(1024) {
		ops[i] = &store.Op{Page: page}
		m.Put(ops[i])
	}
	time.Sleep(10 * time.Millisecond)
	close(goOn)
	for range ops {
		if op := <-m.ended; op.Err != nil {
			t.Fatal(op.Err)
		}
	}
}

func TestMemReadsWhileItReleasesAndWrites(t *testing.T) {
	m := openMem(t, make([]byte, 16<<20), nil)
	kept := make([][]byte, 100)
	for i := range kept {
		kept[i] = storetest.Contents()[i%9].Page(uint64(i))
	}
	handles := m.store(t, kept...)
	noise := random(1500)
	var reader sync.WaitGroup
	stop := make(chan struct{})
	reader.Go(func() {
		page := make([]byte, store.PageSize)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			if _, err := m.TryGet(handles[i%100], page); err != nil || !bytes.Equal(page, kept[i%100]) {
				t.Errorf("page %d is wrong, err %v", i%100, err)
				return
			}
		}
	})
	for range 5 {
		for _, h := range m.store(t, noise...) {
			m.Free(h)
		}
	}
	close(stop)
	reader.Wait()
}

func TestMemStartsNothingBeforeItIsNeeded(t *testing.T) {
	before := runtime.NumGoroutine()
	m := openMem(t, make([]byte, 1<<20), nil)
	if n := runtime.NumGoroutine(); n > before {
		t.Errorf("%d goroutines more", n-before)
	}
	m.store(t, random(100)...)
	if n := runtime.NumGoroutine(); n > before+4 {
		t.Errorf("%d goroutines more after 100 pages", n-before)
	}
}

func receive(t *testing.T, from chan *store.Op) *store.Op {
	t.Helper()
	select {
	case op := <-from:
		return op
	case <-time.After(10 * time.Second):
		t.Fatal("no Op comes")
		return nil
	}
}

func TestMemUsesAllItsWorkersAtOnce(t *testing.T) {
	mem := store.NewMem()
	mem.SetMaxWorkers(3)
	// One space to wake a worker and let it fall asleep, one to hold them all.
	calm, held := make(chan *store.Op, 1), make(chan *store.Op, 3)
	opened := make(chan struct{})
	first := openIn(t, mem, func(op *store.Op) { calm <- op })
	second := openIn(t, mem, func(op *store.Op) { held <- op; <-opened })
	first.Put(&store.Op{Page: storetest.Text.Page(1)})
	receive(t, calm)
	time.Sleep(5 * time.Millisecond)
	for i := range uint64(3) {
		second.Put(&store.Op{Page: storetest.Text.Page(i)})
	}
	for range 3 {
		receive(t, held)
	}
	close(opened)
	closeAll(t, mem, first, second)
}

func TestMemServesGetsBeforePuts(t *testing.T) {
	mem := store.NewMem()
	mem.SetMaxWorkers(1)
	ended := make(chan *store.Op, 100)
	started, opened := make(chan struct{}), make(chan struct{})
	var once sync.Once
	space := openIn(t, mem, func(op *store.Op) {
		ended <- op
		once.Do(func() { close(started); <-opened })
	})
	space.Put(&store.Op{Page: storetest.Text.Page(1)})
	<-started
	h := receive(t, ended).Handle
	for i := range uint64(10) {
		space.Put(&store.Op{Page: storetest.Text.Page(i)})
	}
	space.Get(&store.Op{Handle: h, Page: make([]byte, store.PageSize)})
	close(opened)
	if op := receive(t, ended); op.Write {
		t.Error("a Put came first")
	}
	closeAll(t, mem, space)
}

func openIn(t *testing.T, mem *store.Mem, done func(*store.Op)) store.Space {
	t.Helper()
	space, err := mem.Open(store.SpaceConfig{ID: "c", Arena: make([]byte, 1<<20), Done: done})
	if err != nil {
		t.Fatal(err)
	}
	return space
}

func closeAll(t *testing.T, mem *store.Mem, spaces ...store.Space) {
	t.Helper()
	for _, s := range spaces {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := mem.Close(); err != nil {
		t.Error(err)
	}
}

func TestMemAnswersAfterItsClose(t *testing.T) {
	m := openMem(t, make([]byte, 1<<20), nil)
	h := m.store(t, storetest.Text.Page(1))[0]
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	if op := m.put(storetest.Text.Page(2))[0]; !errors.Is(op.Err, store.ErrClosed) {
		t.Errorf("Put says %v", op.Err)
	}
	if ok, err := m.TryGet(h, make([]byte, store.PageSize)); ok || !errors.Is(err, store.ErrHandle) {
		t.Errorf("TryGet says %v, %v", ok, err)
	}
	m.Free(h)
	if err := m.mem.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := m.mem.Open(store.SpaceConfig{Arena: m.arena}); !errors.Is(err, store.ErrClosed) {
		t.Errorf("Open says %v", err)
	}
}

func TestMemNeedsAnArena(t *testing.T) {
	mem := store.NewMem()
	if _, err := mem.Open(store.SpaceConfig{ID: "c", Arena: make([]byte, 100)}); err == nil {
		t.Error("100 bytes are enough")
	}
	if n := store.MemArenaBytes(1 << 30); n < 2<<30 || n > 2<<30+8<<20 {
		t.Errorf("%d bytes for 1 GiB", n)
	}
	if n := store.MemArenaBytes(1<<63 - 1); n <= 0 {
		t.Errorf("%d bytes for no limit", n)
	}
}

func TestMemStoresAndReadsWithoutAllocating(t *testing.T) {
	m := openMem(t, make([]byte, 1<<20), nil)
	page := storetest.Text.Page(1)
	op := &store.Op{Page: page}
	if n := testing.AllocsPerRun(100, func() {
		m.Put(op)
		<-m.ended
		m.Get(op)
		<-m.ended
		m.Free(op.Handle)
	}); n != 0 && !raceEnabled {
		t.Errorf("%v allocations", n)
	}
}

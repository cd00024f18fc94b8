package engine

import (
	"bytes"
	"testing"

	"github.com/farpage/farpage/handler/space"
	"github.com/farpage/farpage/handler/state"
	"github.com/farpage/farpage/store"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
)

// fakeSpace is a store whose work is done when a test says so.
type fakeSpace struct {
	done  func(*store.Op)
	puts  []*store.Op
	gets  []*store.Op
	pages map[store.Handle][]byte
	next  store.Handle
	freed map[store.Handle]int
	tries bool // TryGet has answers
}

func (f *fakeSpace) Put(op *store.Op) { op.Write = true; f.puts = append(f.puts, op) }
func (f *fakeSpace) Get(op *store.Op) { op.Write = false; f.gets = append(f.gets, op) }
func (f *fakeSpace) Free(h store.Handle) {
	delete(f.pages, h)
	f.freed[h]++
}
func (f *fakeSpace) Bytes() int64 { return int64(len(f.pages)) * store.PageSize }
func (f *fakeSpace) Close() error { return nil }

// Discard is not called by what is tested with this store.
func (f *fakeSpace) Discard() error { return nil }

func (f *fakeSpace) TryGet(h store.Handle, page []byte) (bool, error) {
	return f.tries && copy(page, f.pages[h]) > 0, nil
}

// store ends the oldest Put, with an error or a handle.
func (f *fakeSpace) store(err error) {
	op := f.puts[0]
	f.puts = f.puts[1:]
	if op.Err = err; err == nil {
		f.next++
		op.Handle = f.next
		f.pages[op.Handle] = bytes.Clone(op.Page)
	}
	f.done(op)
}

// fetch ends the oldest Get.
func (f *fakeSpace) fetch(err error) {
	op := f.gets[0]
	f.gets = f.gets[1:]
	if op.Err = err; err == nil {
		copy(op.Page, f.pages[op.Handle])
	}
	f.done(op)
}

// newState makes a state that goes with the test.
func newState(t *testing.T) *state.Memory {
	t.Helper()
	mem, err := state.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := mem.Close(); err != nil {
			t.Error(err)
		}
		_ = unix.Close(mem.FD)
	})
	return mem
}

// fakeSlots are slots on a fake store.
func fakeSlots(t *testing.T, mem *state.Memory) (*slots, *fakeSpace) {
	t.Helper()
	s := newSlots(mem, func() {})
	f := &fakeSpace{done: s.done, pages: map[store.Handle][]byte{}, freed: map[store.Handle]int{}, tries: true}
	s.space = f
	return s, f
}

// fakeEngine has one process, whose userfaultfd is none.
func fakeEngine(t *testing.T) (*Engine, *process, *fakeSpace) {
	t.Helper()
	mem := newState(t)
	log := logrus.New()
	log.SetOutput(t.Output())
	e := &Engine{
		mem: mem, log: logrus.NewEntry(log), nodes: space.NewNodes(mem.Nodes), procs: make([]*process, state.MaxProcs),
	}
	var f *fakeSpace
	e.slots, f = fakeSlots(t, mem)
	p, err := e.newProcess()
	if err != nil {
		t.Fatal(err)
	}
	p.rec.Used = state.ProcLive
	table, err := space.NewTable(e.nodes)
	if err != nil {
		t.Fatal(err)
	}
	p.table, p.rec.Root = table, table.Root()
	e.procs[p.index] = p
	e.live = append(e.live, p)
	return e, p, f
}

// pageOf is a page that is like no other.
func pageOf(n int) []byte {
	return bytes.Repeat([]byte{byte(n), byte(n >> 8), byte(n >> 16), 0x5a, 1, 2, 3, 4}, store.PageSize/8)
}

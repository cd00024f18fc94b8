package store_test

import (
	"bytes"
	"math/rand/v2"
	"syscall"
	"testing"

	"github.com/farpage/farpage/store"
	"github.com/farpage/farpage/store/storetest"
)

// guardedArena ends where reading is a SIGSEGV.
func guardedArena(t testing.TB, pages int) []byte {
	t.Helper()
	length := pages * store.PageSize
	mapped, err := syscall.Mmap(-1, 0, length+2*store.PageSize,
		syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Munmap(mapped) })
	for _, guard := range [][]byte{mapped[:store.PageSize], mapped[store.PageSize+length:]} {
		if err := syscall.Mprotect(guard, syscall.PROT_NONE); err != nil {
			t.Fatal(err)
		}
	}
	return mapped[store.PageSize : store.PageSize+length]
}

// readGuarded reads h, whatever comes of it, into a page between guards.
func readGuarded(t testing.TB, m *memTest, h store.Handle, page []byte) error {
	ok, err := m.TryGet(h, page)
	if ok != (err == nil) {
		t.Fatalf("TryGet(%#x) says %v, %v", h, ok, err)
	}
	return err
}

func TestMemSurvivesDamageToItsArena(t *testing.T) {
	arena, page := guardedArena(t, 16), guardedArena(t, 1)
	m := openMem(t, arena, func(int64, int64) error { return nil })
	// Fill all of it, so that what is at its end is read, too.
	var handles []store.Handle
	for seed := uint64(0); ; seed++ {
		op := m.put(storetest.Contents()[seed%9].Page(seed))[0]
		if op.Err != nil {
			break
		}
		handles = append(handles, op.Handle)
	}
	for seed := uint64(0); ; seed++ {
		op := m.put(storetest.Sparse.Page(seed))[0]
		if op.Err != nil {
			break
		}
		handles = append(handles, op.Handle)
	}
	whole := bytes.Clone(arena)
	r := rand.New(rand.NewPCG(1, 1))
	for range 300 {
		for range 1 + r.IntN(200) {
			arena[r.IntN(len(arena))] = byte(r.Uint32())
		}
		for _, h := range handles {
			_ = readGuarded(t, m, h, page)
		}
		copy(arena, whole)
	}
	clear(arena)
	for _, h := range handles {
		_ = readGuarded(t, m, h, page)
	}
}

func TestMemSurvivesAnyHandle(t *testing.T) {
	arena, page := guardedArena(t, 17), guardedArena(t, 1)
	m := openMem(t, arena, func(int64, int64) error { return nil })
	r := rand.New(rand.NewPCG(2, 2))
	for i := range arena {
		arena[i] = byte(r.Uint32())
	}
	for range 20000 {
		h := store.Handle(r.Uint64())
		_ = readGuarded(t, m, h, page)
		_ = readGuarded(t, m, 1<<62|h&0x3ffff00000001fff, page) // an object, near
		m.Free(h)
	}
}

func FuzzMemReadsAnyArena(f *testing.F) {
	for _, kind := range storetest.Contents() {
		seed := openMem(f, make([]byte, 1<<16), nil)
		h := seed.store(f, kind.Page(1))[0]
		f.Add(uint64(h), bytes.Clone(seed.arena[:store.PageSize]))
	}
	f.Fuzz(func(t *testing.T, h uint64, content []byte) {
		arena, page := guardedArena(t, 2), guardedArena(t, 1)
		m := openMem(t, arena, func(int64, int64) error { return nil })
		copy(arena, content)
		_ = readGuarded(t, m, store.Handle(h), page)
		m.Free(store.Handle(h))
	})
}

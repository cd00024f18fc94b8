package store_test

import (
	"testing"

	"github.com/farpage/farpage/store"
	"github.com/farpage/farpage/store/storetest"
)

var benched = []storetest.Content{
	storetest.Zero, storetest.Sparse, storetest.Text, storetest.Heap, storetest.Random,
}

const benchedPages = 64

func pagesOf(kind storetest.Content) [][]byte {
	pages := make([][]byte, benchedPages)
	for i := range pages {
		pages[i] = kind.Page(uint64(i))
	}
	return pages
}

func BenchmarkSum(b *testing.B) {
	page := storetest.Random.Page(1)
	b.ReportAllocs()
	b.SetBytes(store.PageSize)
	for b.Loop() {
		store.Sum(page, 1, 2, 3)
	}
}

// BenchmarkMemPut is a page from Put to Done and its Free, many under way.
func BenchmarkMemPut(b *testing.B) {
	for _, kind := range benched {
		b.Run(kind.String(), func(b *testing.B) {
			m := openMem(b, make([]byte, 16<<20), nil)
			pages := pagesOf(kind)
			for i := range pages {
				m.Put(&store.Op{Page: pages[i]})
			}
			b.ReportAllocs()
			b.SetBytes(store.PageSize)
			for b.Loop() {
				op := <-m.ended
				if op.Err != nil {
					b.Fatal(op.Err)
				}
				m.Free(op.Handle)
				m.Put(op)
			}
			for range pages {
				m.Free((<-m.ended).Handle)
			}
		})
	}
}

// BenchmarkMemPutCall is what Put costs its caller.
func BenchmarkMemPutCall(b *testing.B) {
	m := openMem(b, make([]byte, 16<<20), nil)
	ops := make([]*store.Op, 2048)
	for i := range ops {
		ops[i] = &store.Op{Page: storetest.Text.Page(uint64(i))}
	}
	i := 0
	b.ReportAllocs()
	for b.Loop() {
		m.Put(ops[i])
		if i++; i == len(ops) {
			b.StopTimer()
			for range ops {
				m.Free((<-m.ended).Handle)
			}
			i = 0
			b.StartTimer()
		}
	}
	for range i {
		<-m.ended
	}
}

func BenchmarkMemTryGet(b *testing.B) {
	for _, kind := range benched {
		b.Run(kind.String(), func(b *testing.B) {
			m := openMem(b, make([]byte, 16<<20), nil)
			handles := m.store(b, pagesOf(kind)...)
			page := make([]byte, store.PageSize)
			b.ReportAllocs()
			b.SetBytes(store.PageSize)
			i := 0
			for b.Loop() {
				if _, err := m.TryGet(handles[i%benchedPages], page); err != nil {
					b.Fatal(err)
				}
				i++
			}
			b.ReportMetric(float64(m.Bytes())/benchedPages, "stored-B/page")
		})
	}
}

func BenchmarkMemFree(b *testing.B) {
	m := openMem(b, make([]byte, 64<<20), nil)
	pages := pagesOf(storetest.Text)
	var handles []store.Handle
	b.ReportAllocs()
	for b.Loop() {
		if len(handles) == 0 {
			b.StopTimer()
			for range 100 {
				handles = append(handles, m.store(b, pages...)...)
			}
			b.StartTimer()
		}
		m.Free(handles[len(handles)-1])
		handles = handles[:len(handles)-1]
	}
}

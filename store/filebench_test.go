package store_test

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"github.com/farpage/farpage/store"
)

// benchFile runs f in a new file, with O_DIRECT and without.
func benchFile(b *testing.B, f func(*testing.B, *fileTest)) {
	for _, way := range []struct {
		name string
		open func(string) (*store.File, error)
	}{{"direct", store.OpenFile}, {"buffered", store.OpenFileBuffered}} {
		b.Run(way.name, func(b *testing.B) {
			file, err := way.open("file://" + filepath.Join(b.TempDir(), "slots"))
			if err != nil {
				b.Fatal(err)
			}
			defer file.Close()
			file.Recovered()
			f(b, openPart(b, file, "c"))
		})
	}
}

// BenchmarkFilePut is a page from Put to Done, as many under way as depth says.
// Every 16384 pages they are freed, outside of the time.
func BenchmarkFilePut(b *testing.B) {
	for _, depth := range []int{1, 16, 256} {
		b.Run(fmt.Sprint("depth", depth), func(b *testing.B) {
			benchFile(b, func(b *testing.B, c *fileTest) {
				for _, page := range random(depth) {
					c.ended <- &store.Op{Page: page}
				}
				var handles []store.Handle
				b.SetBytes(store.PageSize)
				for b.Loop() {
					op := <-c.ended
					if op.Err != nil {
						b.Fatal(op.Err)
					}
					if op.Write {
						handles = append(handles, op.Handle)
					}
					if len(handles) == 16384 {
						b.StopTimer()
						for _, h := range handles {
							c.Free(h)
						}
						handles = handles[:0]
						b.StartTimer()
					}
					c.Put(op)
				}
			})
		})
	}
}

// BenchmarkFileGet is a page from Get to Done, as many under way as depth says:
// one after the other, or any of 16384.
func BenchmarkFileGet(b *testing.B) {
	for _, order := range []string{"sequential", "random"} {
		for _, depth := range []int{1, 16} {
			b.Run(fmt.Sprint(order, "/depth", depth), func(b *testing.B) {
				benchFile(b, func(b *testing.B, c *fileTest) {
					const pages = 16384
					var handles []store.Handle
					for range pages / 1024 {
						handles = append(handles, c.store(b, random(1024)...)...)
					}
					for range depth {
						c.ended <- &store.Op{Page: make([]byte, store.PageSize)}
					}
					r := rand.New(rand.NewPCG(1, 1))
					i := 0
					b.SetBytes(store.PageSize)
					for b.Loop() {
						op := <-c.ended
						if op.Err != nil {
							b.Fatal(op.Err)
						}
						if i++; order == "random" {
							i = r.IntN(pages)
						}
						op.Handle = handles[i%pages]
						c.Get(op)
					}
				})
			})
		}
	}
}

// BenchmarkFilePutCall is what Put costs its caller.
func BenchmarkFilePutCall(b *testing.B) {
	c := openFile(b, "file://"+filepath.Join(b.TempDir(), "slots"), nil)
	ops := make([]*store.Op, 2048)
	for i, page := range random(len(ops)) {
		ops[i] = &store.Op{Page: page}
	}
	i := 0
	b.ReportAllocs()
	for b.Loop() {
		c.Put(ops[i])
		if i++; i == len(ops) {
			b.StopTimer()
			for range ops {
				c.Free((<-c.ended).Handle)
			}
			i = 0
			b.StartTimer()
		}
	}
	for range i {
		<-c.ended
	}
}

package store_test

import (
	"os"
	"testing"

	"github.com/farpage/farpage/store"
	"github.com/farpage/farpage/store/storetest"
	"github.com/klauspost/compress/s2"
	"github.com/pierrec/lz4/v4"
)

// codec packs a page into room and gives back how many bytes it takes there, 0 where
// it does not get smaller.
type codec struct {
	name   string
	pack   func(room, page []byte) int
	unpack func(page, packed []byte) error
}

func codecs() []codec {
	var packer lz4.Compressor
	return []codec{
		{
			name:   "s2",
			pack:   func(room, page []byte) int { return len(s2.Encode(room, page)) },
			unpack: func(page, packed []byte) error { _, err := s2.Decode(page, packed); return err },
		},
		{
			name: "lz4",
			pack: func(room, page []byte) int {
				n, err := packer.CompressBlock(page, room)
				if err != nil {
					return 0
				}
				return n
			},
			unpack: func(page, packed []byte) error { _, err := lz4.UncompressBlock(packed, page); return err },
		},
	}
}

// executablePages are from this test's own program.
func executablePages(b *testing.B) [][]byte {
	b.Helper()
	path, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		b.Fatal(err)
	}
	pages := make([][]byte, 0, benchedPages)
	step := len(text) / benchedPages / store.PageSize * store.PageSize
	for at := 0; len(pages) < benchedPages; at += step {
		pages = append(pages, text[at:at+store.PageSize])
	}
	return pages
}

// BenchmarkCodec compares what mem: compresses with and lz4, a page at a time.
func BenchmarkCodec(b *testing.B) {
	contents := []struct {
		name  string
		pages [][]byte
	}{
		{"executable", executablePages(b)},
		{"text", pagesOf(storetest.Text)},
		{"heap", pagesOf(storetest.Heap)},
		{"half", pagesOf(storetest.Half)},
	}
	for _, c := range contents {
		for _, codec := range codecs() {
			room := make([]byte, 2*store.PageSize)
			b.Run(c.name+"/pack/"+codec.name, func(b *testing.B) {
				packed, i := 0, 0
				for b.Loop() {
					packed += codec.pack(room, c.pages[i%len(c.pages)])
					i++
				}
				b.ReportMetric(float64(packed)/float64(i), "packed-B/page")
			})
			b.Run(c.name+"/unpack/"+codec.name, func(b *testing.B) {
				var packed [][]byte
				for _, page := range c.pages {
					if n := codec.pack(room, page); n > 0 {
						packed = append(packed, append([]byte(nil), room[:n]...))
					}
				}
				page := make([]byte, store.PageSize)
				i := 0
				for b.Loop() {
					if err := codec.unpack(page, packed[i%len(packed)]); err != nil {
						b.Fatal(err)
					}
					i++
				}
			})
		}
	}
}

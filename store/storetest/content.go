package storetest

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"

	"github.com/farpage/farpage/store"
)

// Content is a kind of page that programs have.
type Content int

// The kinds, from the cheapest to store to the dearest.
const (
	Zero      Content = iota
	SameByte          // one byte, all over
	Word              // one 8-byte word, all over
	AlmostOne         // one word, but for one byte somewhere
	Sparse            // zeros with a few bytes between
	Text              // words of a small vocabulary
	Heap              // pointers and small numbers
	Half              // random and zero, half a page each
	Random            // does not compress
	contents
)

// Contents are all kinds.
func Contents() []Content {
	all := make([]Content, contents)
	for i := range all {
		all[i] = Content(i)
	}
	return all
}

func (c Content) String() string {
	return [...]string{
		"zero", "same byte", "word", "almost one word", "sparse", "text", "heap", "half", "random",
	}[c]
}

// Page makes a page of this kind; another seed gives another page, where the
// kind has more than one.
func (c Content) Page(seed uint64) []byte {
	r := rand.New(rand.NewPCG(seed, uint64(c)))
	page := make([]byte, store.PageSize)
	switch c {
	case Zero:
	case SameByte:
		fillWord(page, 0x0101010101010101*uint64(byte(seed)))
	case Word:
		// Any number of high bits, so that long and short numbers occur.
		fillWord(page, r.Uint64()>>r.IntN(64))
	case AlmostOne:
		fillWord(page, r.Uint64()>>r.IntN(64))
		page[[...]int{0, 7, 8, r.IntN(len(page)), len(page) - 8, len(page) - 1}[seed%6]] ^= 1 << r.IntN(8)
	case Sparse:
		for range 1 + r.IntN(60) {
			page[r.IntN(len(page))] = byte(r.Uint32())
		}
	case Text:
		text := page[:0]
		for len(text)+16 < len(page) {
			text = fmt.Appendf(text, "word%d ", r.IntN(300))
		}
	case Heap:
		for at := 0; at < len(page); at += 16 {
			binary.LittleEndian.PutUint64(page[at:], 0x7f3a00000000|r.Uint64()&0xffffff0)
			binary.LittleEndian.PutUint64(page[at+8:], r.Uint64()&0xff)
		}
	case Half:
		fillRandom(page[:len(page)/2], r)
	case Random:
		fillRandom(page, r)
	}
	return page
}

func fillWord(page []byte, word uint64) {
	for at := 0; at < len(page); at += 8 {
		binary.LittleEndian.PutUint64(page[at:], word)
	}
}

func fillRandom(page []byte, r *rand.Rand) {
	for at := 0; at < len(page); at += 8 {
		binary.LittleEndian.PutUint64(page[at:], r.Uint64())
	}
}

package store

import (
	"bytes"
	"encoding/binary"
)

// pattern says whether page is one 8-byte word, little endian, over and over.
func pattern(page []byte) (word uint64, ok bool) {
	if !bytes.Equal(page[8:], page[:len(page)-8]) {
		return 0, false
	}
	return binary.LittleEndian.Uint64(page), true
}

// fill writes word over and over.
func fill(page []byte, word uint64) {
	if word == 0 {
		clear(page)
		return
	}
	binary.LittleEndian.PutUint64(page, word)
	for done := 8; done < len(page); done *= 2 {
		copy(page[done:], page[:done])
	}
}

package main

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
)

// dataset is what redis is filled with: values of 1 to 16 KiB that can be made
// again at any time from their number and version, so nothing has to be kept to
// compare with.
type dataset struct {
	sizes []int // of value i, in bytes, in all its versions
	total int
}

// hotValues is how many of the first values are rewritten while redis saves.
const hotValues = 1000

// versions counts how often each value was rewritten.
type versions []uint32

// newDataset sizes values, the same at each call, until they sum up to total bytes.
func newDataset(total int) *dataset {
	const smallest, largest = 1 << 10, 16 << 10
	sizes := rand.New(rand.NewPCG(1, 2))
	d := &dataset{}
	for d.total < total {
		size := min(smallest+sizes.IntN(largest-smallest+1), total-d.total)
		d.sizes = append(d.sizes, size)
		d.total += size
	}
	return d
}

func (d *dataset) len() int { return len(d.sizes) }

func (d *dataset) key(i int) string { return fmt.Sprintf("value:%d", i) }

// value makes value i at a version. Every other one is random, the rest is text
// that compresses well. Any two differ everywhere, so that a page that came from
// another value, or from another version, does not go unnoticed.
func (d *dataset) value(i int, version uint32) []byte {
	text := make([]byte, 0, d.sizes[i]+64)
	if i%2 == 0 {
		var seed [32]byte
		binary.LittleEndian.PutUint64(seed[:], uint64(i))
		binary.LittleEndian.PutUint32(seed[8:], version)
		text = text[:d.sizes[i]]
		_, _ = rand.NewChaCha8(seed).Read(text) // never fails
		return text
	}
	for line := 0; len(text) < d.sizes[i]; line++ {
		text = fmt.Appendf(text, "value %d in version %d, line %d of a text that says little\n", i, version, line)
	}
	return text[:d.sizes[i]]
}

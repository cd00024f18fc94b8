package slab

import (
	"iter"
	"math/bits"
)

// Batch is the idle pages of one slab on their way out. Until it is given back
// nothing is allocated in that slab, so that the memory may be dropped without
// holding whatever lock guards the Arena.
type Batch struct {
	slab  int32
	pages uint16
}

// Take picks the slab with the longest idle pages. Give must follow.
func (a *Arena) Take() (Batch, bool) {
	i := a.idle.head
	if i == none {
		return Batch{}, false
	}
	s := a.slab(i)
	s.releasing = true
	a.place(i)
	return Batch{i, s.idle}, true
}

// Give ends what Take began; released says that the batch's memory is gone.
func (a *Arena) Give(b Batch, released bool) {
	s := a.slab(b.slab)
	s.releasing = false
	if released {
		n := int64(bits.OnesCount16(b.pages))
		a.residentPages -= n
		a.idlePages -= n
		s.touched &^= b.pages
		s.idle &^= b.pages
	}
	a.place(b.slab)
}

// Runs are the batch's pages as offset and length in bytes.
func (b Batch) Runs() iter.Seq2[int64, int64] {
	return func(yield func(int64, int64) bool) {
		for left := b.pages; left != 0; {
			first := bits.TrailingZeros16(left)
			n := bits.TrailingZeros16(^(left >> first))
			if !yield(int64(b.slab)*Bytes+int64(first)*PageBytes, int64(n)*PageBytes) {
				return
			}
			left &^= uint16((1<<n - 1) << first)
		}
	}
}

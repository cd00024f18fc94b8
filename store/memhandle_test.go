package store

import (
	"encoding/binary"
	"slices"
	"testing"

	"github.com/farpage/farpage/store/internal/slab"
	"pgregory.net/rapid"
)

func TestAnObjectHandleHoldsAllOfIt(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ref := slab.Ref{
			Class:  uint8(rapid.IntRange(0, slab.Classes-1).Draw(t, "class")),
			Offset: rapid.Int64Range(0, slab.MaxBytes/slab.Grain).Draw(t, "grains") * slab.Grain,
		}
		length := rapid.IntRange(1, PageSize).Draw(t, "length")
		h := objectHandle(ref, length)
		gotRef, gotLength, ok := h.object()
		if !ok || gotRef != ref || gotLength != length {
			t.Fatalf("%#x is %v, %d, %v; want %v, %d", h, gotRef, gotLength, ok, ref, length)
		}
		if _, ok := h.pattern(); ok || h == 0 {
			t.Fatalf("%#x is a pattern, too, or none", h)
		}
	})
}

func TestAPatternHandleHoldsTheWord(t *testing.T) {
	word := rapid.Custom(func(t *rapid.T) uint64 {
		w := rapid.Uint64().Draw(t, "w") >> rapid.IntRange(0, 63).Draw(t, "shift")
		switch rapid.IntRange(0, 2).Draw(t, "form") {
		case 0:
			w = ^w
		case 1:
			w = w<<32 | uint64(uint32(w))
		}
		return w
	})
	rapid.Check(t, func(t *rapid.T) {
		w := word.Draw(t, "word")
		h, ok := patternHandle(w)
		if !ok {
			return
		}
		if got, ok := h.pattern(); !ok || got != w || h == 0 {
			t.Fatalf("%#x holds %#x, %v; want %#x", h, got, ok, w)
		}
		if _, _, ok := h.object(); ok {
			t.Fatalf("%#x is an object, too", h)
		}
	})
}

func TestThesePatternsNeedNoMemory(t *testing.T) {
	for b := range uint64(256) {
		if _, ok := patternHandle(0x0101010101010101 * b); !ok {
			t.Errorf("byte %#x", b)
		}
	}
	for _, word := range []uint64{
		0, 1, 1<<61 - 1, 0x00007fffdeadbeef, 0xffff888000000000, ^uint64(0),
		0xdeadbeefdeadbeef, 0x8000000080000000,
	} {
		if _, ok := patternHandle(word); !ok {
			t.Errorf("word %#x", word)
		}
	}
	if _, ok := patternHandle(0x3ff0000000000000); ok {
		t.Error("a word of 62 bits is said to fit into 62 bits with sign")
	}
}

func TestUnknownKindsAreNeither(t *testing.T) {
	for _, h := range []Handle{0, 1, 1<<62 - 1, kindHalf<<kindShift | 1<<32} {
		_, isPattern := h.pattern()
		_, _, isObject := h.object()
		if isPattern || isObject {
			t.Errorf("%#x: pattern %v, object %v", h, isPattern, isObject)
		}
	}
}

func TestPatternSeesTheLastByte(t *testing.T) {
	page := make([]byte, PageSize)
	fill(page, 0x1122334455667788)
	if word, ok := pattern(page); !ok || word != 0x1122334455667788 {
		t.Errorf("%#x, %v", word, ok)
	}
	for at := range page {
		page[at]++
		if _, ok := pattern(page); ok {
			t.Fatalf("byte %d may be anything", at)
		}
		page[at]--
	}
	for at := 0; at < PageSize; at += 8 {
		if binary.LittleEndian.Uint64(page[at:]) != 0x1122334455667788 {
			t.Fatalf("fill leaves byte %d out", at)
		}
	}
}

func TestARingIsAQueue(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var r ring[int]
		var want []int
		for i, n := range rapid.SliceOf(rapid.IntRange(-200, 200)).Draw(t, "pushes and pops") {
			for range n {
				r.push(i)
				want = append(want, i)
			}
			for range -n {
				got, ok := r.pop()
				if ok != (len(want) > 0) || ok && got != want[0] {
					t.Fatalf("popped %d, %v of %v", got, ok, want)
				}
				if ok {
					want = slices.Delete(want, 0, 1)
				}
			}
		}
	})
}

package store

import "github.com/farpage/farpage/store/internal/slab"

// What a handle of a mem store says, from the highest bit on:
//
//	kind 2 | class 6 | length-1 12 | offset/16 44    object: an object in the arena
//	kind 2 | word, sign-extended 62                  word:   the page is this word, repeated
//	kind 2 | 0 30 | word 32                          half:   the same, of 4 bytes
//
// word holds zero pages, small numbers and pointers; half holds every page of
// one byte. An object of PageSize is the page itself, a shorter one is
// compressed.
const (
	kindObject = 1
	kindWord   = 2
	kindHalf   = 3

	kindShift   = 62
	classShift  = 56
	lengthShift = 44

	lengthMask = PageSize - 1
	grainsMask = 1<<lengthShift - 1
	wordMask   = 1<<kindShift - 1
)

func objectHandle(r slab.Ref, lengthBytes int) Handle {
	return kindObject<<kindShift |
		Handle(r.Class)<<classShift |
		Handle(lengthBytes-1)<<lengthShift |
		Handle(r.Offset/slab.Grain)
}

// object undoes objectHandle. What comes out is to be checked with slab.Ref.Fits.
func (h Handle) object() (r slab.Ref, lengthBytes int, ok bool) {
	return slab.Ref{
		Class:  uint8(h >> classShift & 63),
		Offset: int64(h&grainsMask) * slab.Grain,
	}, int(h>>lengthShift&lengthMask) + 1, h>>kindShift == kindObject
}

// patternHandle is false for the words that a handle cannot hold.
func patternHandle(word uint64) (Handle, bool) {
	switch {
	case uint64(int64(word<<2)>>2) == word:
		return kindWord<<kindShift | Handle(word&wordMask), true
	case uint32(word>>32) == uint32(word):
		return kindHalf<<kindShift | Handle(uint32(word)), true
	}
	return 0, false
}

// pattern undoes patternHandle.
func (h Handle) pattern() (word uint64, ok bool) {
	switch h >> kindShift {
	case kindWord:
		return uint64(int64(h<<2) >> 2), true
	case kindHalf:
		half := uint64(h & (1<<32 - 1))
		return half<<32 | half, h&wordMask == Handle(half)
	}
	return 0, false
}

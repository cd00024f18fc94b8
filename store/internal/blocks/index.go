package blocks

import "math/bits"

// indexLevels are enough for 64^6 members, more groups than a file can have.
const indexLevels = 6

// index is a set of small numbers that knows its least and its greatest one. Bit
// i of levels[n+1] says that word i of levels[n] is not 0.
type index struct{ levels [indexLevels][]uint64 }

// put makes i a member or not.
func (x *index) put(i int64, member bool) {
	if member {
		x.add(i)
	} else {
		x.remove(i)
	}
}

func (x *index) add(i int64) {
	for level := range x.levels {
		word := i / 64
		for int64(len(x.levels[level])) <= word {
			x.levels[level] = append(x.levels[level], 0)
		}
		was := x.levels[level][word]
		x.levels[level][word] |= 1 << (i % 64)
		if was != 0 {
			return
		}
		i = word
	}
}

func (x *index) remove(i int64) {
	for _, words := range x.levels {
		word := i / 64
		if word >= int64(len(words)) {
			return
		}
		words[word] &^= 1 << (i % 64)
		if words[word] != 0 {
			return
		}
		i = word
	}
}

// first is the least member.
func (x *index) first() (i int64, ok bool) {
	return x.find(bits.TrailingZeros64)
}

// last is the greatest member.
func (x *index) last() (i int64, ok bool) {
	return x.find(func(word uint64) int { return bits.Len64(word) - 1 })
}

func (x *index) find(bit func(uint64) int) (i int64, ok bool) {
	if top := x.levels[indexLevels-1]; len(top) == 0 || top[0] == 0 {
		return 0, false
	}
	for level := indexLevels - 1; level >= 0; level-- {
		i = i*64 + int64(bit(x.levels[level][i]))
	}
	return i, true
}

package store

import "github.com/cespare/xxhash/v2"

// Sum is the checksum of a page and of where it belongs: its bytes, container,
// slot and generation. It allocates nothing.
//
// Each of the three numbers goes through a bijection, so that two sums which
// differ in one of them only are never equal; for the bytes it is as good as
// XXH64. It guards against faults, not against somebody who looks for
// collisions.
func Sum(page []byte, container uint64, slot uint64, generation uint32) uint64 {
	sum := scramble(xxhash.Sum64(page) ^ scramble(container+0x9e3779b97f4a7c15))
	sum = scramble(sum ^ scramble(slot+0xd1b54a32d192ed03))
	return scramble(sum ^ scramble(uint64(generation)+0x8cb92ba72f3d8dd7))
}

// scramble is the finalizer of MurmurHash3: a bijection in which each bit of x
// changes each bit of the result half of the time.
func scramble(x uint64) uint64 {
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	x *= 0xc4ceb9fe1a85ec53
	return x ^ x>>33
}

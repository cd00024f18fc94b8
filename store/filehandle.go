package store

// A handle of a file store says which block of which file it is:
//
//	tag 24 | block 40
//
// The tag is the low bits of the number in the file's header, so that what was
// stored in a file that is no more is not looked for in its successor.
const (
	blockBits = 40
	tagMask   = 1<<(64-blockBits) - 1
)

func blockHandle(number uint64, block int64) Handle {
	return Handle(number&tagMask)<<blockBits | Handle(block)
}

// block undoes blockHandle.
func (h Handle) block(number uint64) (block int64, ok bool) {
	return int64(h & (1<<blockBits - 1)), uint64(h>>blockBits) == number&tagMask
}

package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cespare/xxhash/v2"
)

// A slot file begins with one page, in little endian:
//
//	offset length
//	0      8      magic
//	8      4      version
//	12     4      bytes of a page
//	16     8      the store's own number, random
//	24     8      owner: process id, 0: nobody
//	32     8      owner: start time, in clock ticks after boot
//	40     8      owner: inode of its process id namespace
//	48     16     owner: boot id
//	64     8      XXH64 of the bytes before
//
// The rest is zeros. All of it is in one sector, which disks write whole. Behind
// the page come blocks of a page each. Whose they are is not in the file, and
// after a boot they mean nothing.
const (
	headerMagic   = "FRPGSLOT"
	headerVersion = 1
	headerBytes   = 72
)

type fileHeader struct {
	number uint64
	owner  fileOwner
}

// What is wrong with a header. Each says what to do.
var (
	errHeaderShort   = errors.New("is cut off within its first page: remove it")
	errHeaderForeign = errors.New("is no slot file of farpage (it begins otherwise): choose another path, or remove it if nobody needs it")
	errHeaderDamaged = errors.New("has a damaged first page: remove it")
)

// encode returns the file's first page.
func (h fileHeader) encode() []byte {
	page := make([]byte, 0, PageSize)
	page = append(page, headerMagic...)
	page = binary.LittleEndian.AppendUint32(page, headerVersion)
	page = binary.LittleEndian.AppendUint32(page, PageSize)
	page = binary.LittleEndian.AppendUint64(page, h.number)
	page = binary.LittleEndian.AppendUint64(page, uint64(h.owner.pid))
	page = binary.LittleEndian.AppendUint64(page, h.owner.start)
	page = binary.LittleEndian.AppendUint64(page, h.owner.namespace)
	page = append(page, h.owner.boot[:]...)
	page = binary.LittleEndian.AppendUint64(page, xxhash.Sum64(page))
	return page[:PageSize]
}

// decodeHeader reads a file's first page; page is shorter when the file is.
func decodeHeader(page []byte) (h fileHeader, err error) {
	n := min(len(page), len(headerMagic))
	if !bytes.Equal(page[:n], []byte(headerMagic)[:n]) {
		return h, errHeaderForeign
	}
	if len(page) < PageSize {
		return h, errHeaderShort
	}
	u32 := func(at int) uint32 { return binary.LittleEndian.Uint32(page[at:]) }
	u64 := func(at int) uint64 { return binary.LittleEndian.Uint64(page[at:]) }
	if v, bytes := u32(8), u32(12); v != headerVersion || bytes != PageSize {
		return h, fmt.Errorf("is a slot file of version %d with pages of %d bytes, this farpage has version %d with %d: end the agent that uses it and remove it",
			v, bytes, headerVersion, PageSize)
	}
	if u64(headerBytes-8) != xxhash.Sum64(page[:headerBytes-8]) {
		return h, errHeaderDamaged
	}
	h.number = u64(16)
	h.owner = fileOwner{pid: int64(u64(24)), start: u64(32), namespace: u64(40), boot: [16]byte(page[48:64])}
	return h, nil
}

package target

import (
	"encoding/binary"
	"syscall"
	"unsafe"
)

// pmScanArg mirrors struct pm_scan_arg of include/uapi/linux/fs.h (Linux 6.7).
type pmScanArg struct {
	size, flags, start, end, walkEnd, vec, vecLen, maxPages       uint64
	categoryInverted, categoryMask, categoryAnyof, returnCategory uint64
}

// region mirrors struct page_region.
type region struct{ start, end, categories uint64 }

const (
	pagemapScan = 3<<30 | 96<<16 | 'f'<<8 | 16 // _IOWR('f', 16, struct pm_scan_arg)
	isPresent   = 1 << 3
	isSwapped   = 1 << 4
	pageSize    = 4096
	scanRegions = 512
)

// Scanner finds the pages of a range that are populated.
type Scanner struct{ vec [scanRegions]region }

// Populated calls visit for each run of pages of [start, end) that are present or
// in kernel swap, by a descriptor of /proc/PID/pagemap. Since Linux 6.7.
func (s *Scanner) Populated(pagemap int, start, end uint64, visit func(start, end uint64)) error {
	for start < end {
		a := pmScanArg{
			size: uint64(unsafe.Sizeof(pmScanArg{})), start: start, end: end,
			vec: uint64(uintptr(unsafe.Pointer(&s.vec[0]))), vecLen: scanRegions,
			categoryAnyof: isPresent | isSwapped, returnCategory: isPresent | isSwapped,
		}
		n, _, e := syscall.Syscall(syscall.SYS_IOCTL, uintptr(pagemap), pagemapScan, uintptr(unsafe.Pointer(&a)))
		if e == syscall.EINTR {
			continue
		}
		if e != 0 {
			if e == syscall.ESRCH {
				return ErrGone
			}
			return e
		}
		for _, r := range s.vec[:n] {
			visit(r.start, r.end)
		}
		if a.walkEnd <= start {
			return nil
		}
		start = a.walkEnd
	}
	return nil
}

// Present says whether a page is in memory, or in swap, by an open /proc/PID/pagemap. Bits
// as in Documentation/admin-guide/mm/pagemap.rst.
func Present(pagemap int, addr uint64) (bool, error) {
	const present, swapped = 1 << 63, 1 << 62
	var entry [8]byte
	n, err := syscall.Pread(pagemap, entry[:], int64(addr/pageSize*8))
	if err == nil && n != len(entry) {
		err = ErrGone
	}
	return err == nil && binary.LittleEndian.Uint64(entry[:])&(present|swapped) != 0, err
}

// Shared counts the pages from addr on, pages of them, that are present and not
// exclusively this process's: what a write would copy. Bits as in
// Documentation/admin-guide/mm/pagemap.rst.
func Shared(pagemap int, addr uint64, pages int) int {
	const exclusive, present = 1 << 56, 1 << 63
	var buf [64 * 8]byte
	shared := 0
	for pages > 0 {
		n := min(pages, 64)
		k, err := syscall.Pread(pagemap, buf[:n*8], int64(addr/pageSize*8))
		if err != nil || k <= 0 {
			return shared
		}
		for i := 0; i+8 <= k; i += 8 {
			w := binary.LittleEndian.Uint64(buf[i:])
			if w&present != 0 && w&exclusive == 0 {
				shared++
			}
		}
		addr += uint64(n) * pageSize
		pages -= n
	}
	return shared
}

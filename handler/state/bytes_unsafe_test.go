package state

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

func bytesOf(ring []Event) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(&ring[0])), len(ring)*int(unsafe.Sizeof(ring[0])))
}

// mincore says of each page of b, which begins at a page, whether the kernel has
// it in memory.
func mincore(b, vec []byte) error {
	_, _, e := syscall.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), uintptr(unsafe.Pointer(&vec[0])))
	if e != 0 {
		return e
	}
	return nil
}

// extent is where a slice lies in this process.
func extent[T any](s []T) (start, end uintptr) {
	start = uintptr(unsafe.Pointer(unsafe.SliceData(s)))
	return start, start + uintptr(len(s))*unsafe.Sizeof(s[0])
}

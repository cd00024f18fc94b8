package store

import "unsafe"

// aligned says whether O_DIRECT takes page, on every disk there is.
func aligned(page []byte) bool {
	return uintptr(unsafe.Pointer(unsafe.SliceData(page)))%PageSize == 0
}

// alignedPages makes pages that O_DIRECT takes. The Go heap does not move them.
func alignedPages(n int) [][]byte {
	buffer := make([]byte, (n+1)*PageSize)
	for !aligned(buffer) {
		skip := PageSize - uintptr(unsafe.Pointer(unsafe.SliceData(buffer)))%PageSize
		buffer = buffer[skip:]
	}
	pages := make([][]byte, n)
	for i := range pages {
		pages[i] = buffer[i*PageSize : (i+1)*PageSize : (i+1)*PageSize]
	}
	return pages
}

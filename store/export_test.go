package store

import (
	"errors"

	"golang.org/x/sys/unix"
)

// SetMaxWorkers sets how many goroutines a Mem may start, whatever the host has.
func (m *Mem) SetMaxWorkers(n int) { m.maxWorkers = n }

// SlotFile is what a File reads and writes.
type SlotFile = slotFile

// OpenFileOn opens a File whose file is what wrap makes of it.
func OpenFileOn(url string, wrap func(SlotFile) SlotFile) (*File, error) { return openFile(url, wrap) }

// OpenFileBuffered opens a File as if its file system had no O_DIRECT.
func OpenFileBuffered(url string) (*File, error) {
	f, err := openFile(url, func(inner slotFile) slotFile {
		file, ok := inner.(*osFile)
		if !ok {
			panic("another file")
		}
		file.direct = false
		if _, err := unix.FcntlInt(uintptr(file.fd), unix.F_SETFL, 0); err != nil {
			panic(err)
		}
		file.noReadAhead()
		return inner
	})
	if err == nil {
		f.direct, f.buffered = false, errors.New("the test wants it so")
	}
	return f, err
}

// FileMaxBadBlocks is how many blocks are given up at most.
const FileMaxBadBlocks = maxBadBlocks

// FileURL is what a URL says.
func FileURL(url string) (path string, maxBlocks int64, err error) {
	spec, err := parseFileURL(url)
	return spec.path, spec.maxBlocks, err
}

// FileHeader makes the first page of a file whose owner is process pid, started
// at start, of this boot or another one, in this namespace or another one.
func FileHeader(number uint64, pid int64, start uint64, otherBoot, otherNamespace bool) []byte {
	o, err := thisProcess()
	if err != nil {
		panic(err)
	}
	o.pid, o.start = pid, start
	if otherBoot {
		o.boot[0] ^= 1
	}
	if otherNamespace {
		o.namespace++
	}
	return fileHeader{number, o}.encode()
}

// ReencodeHeader decodes a first page and encodes it again.
func ReencodeHeader(page []byte) ([]byte, error) {
	h, err := decodeHeader(page)
	return h.encode(), err
}

// ParseStat reads a /proc/PID/stat.
func ParseStat(text []byte) (start uint64, ended bool, err error) { return parseStat(text) }

package store

import (
	"errors"

	"golang.org/x/sys/unix"
)

// slotFile is an open slot file. Tests put faults in between.
type slotFile interface {
	// ReadAt fills pages, of PageSize bytes each, from offset on. It reads less
	// than that at the end of the file.
	ReadAt(pages [][]byte, offset int64) (bytes int, err error)
	// WriteAt writes pages from offset on.
	WriteAt(pages [][]byte, offset int64) (bytes int, err error)
	// Truncate sets the length of the file.
	Truncate(bytes int64) error
	// Punch gives a range back to the file system; it reads as zeros afterwards.
	Punch(offset, bytes int64) error
	Close() error
}

// osFile is a slot file by its descriptor, which it owns.
//
// With O_DIRECT the pages do not go through the page cache; their buffers must be
// aligned. Without, each range is written out and dropped from the cache at once:
// far pages that stay in memory would be of no use.
type osFile struct {
	fd     int
	direct bool
}

// again calls f until no signal interrupts it.
func again(f func() (int, error)) (int, error) {
	for {
		n, err := f()
		if !errors.Is(err, unix.EINTR) {
			return max(n, 0), err
		}
	}
}

func (o *osFile) ReadAt(pages [][]byte, offset int64) (int, error) {
	n, err := again(func() (int, error) { return unix.Preadv(o.fd, pages, offset) })
	if !o.direct && n > 0 {
		o.drop(offset, int64(n))
	}
	return n, err
}

func (o *osFile) WriteAt(pages [][]byte, offset int64) (int, error) {
	n, err := again(func() (int, error) { return unix.Pwritev(o.fd, pages, offset) })
	if o.direct || n == 0 || err != nil {
		return n, err
	}
	// What the disk refuses later would be heard of by nobody.
	const all = unix.SYNC_FILE_RANGE_WAIT_BEFORE | unix.SYNC_FILE_RANGE_WRITE | unix.SYNC_FILE_RANGE_WAIT_AFTER
	if err := unix.SyncFileRange(o.fd, offset, int64(n), all); err != nil && !unsupported(err) {
		return 0, err
	}
	o.drop(offset, int64(n))
	return n, nil
}

// noReadAhead keeps reads through the page cache from bringing their neighbours,
// which would stay.
func (o *osFile) noReadAhead() { _ = unix.Fadvise(o.fd, 0, 0, unix.FADV_RANDOM) }

// drop is for the memory only: whether it works makes no difference otherwise.
func (o *osFile) drop(offset, bytes int64) {
	_ = unix.Fadvise(o.fd, offset, bytes, unix.FADV_DONTNEED)
}

func (o *osFile) Truncate(bytes int64) error {
	_, err := again(func() (int, error) { return 0, unix.Ftruncate(o.fd, bytes) })
	return err
}

// Punch needs a file system that knows holes: ext4, XFS, btrfs, tmpfs and others,
// see fallocate(2).
func (o *osFile) Punch(offset, bytes int64) error {
	_, err := again(func() (int, error) {
		return 0, unix.Fallocate(o.fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, offset, bytes)
	})
	return err
}

func (o *osFile) Close() error { return unix.Close(o.fd) }

// noRoom says that a write failed because the disk, a quota or a limit is full.
func noRoom(err error) bool {
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) || errors.Is(err, unix.EFBIG)
}

// unsupported says that a file system does not know a call.
func unsupported(err error) bool {
	return errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) ||
		errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.ESPIPE)
}

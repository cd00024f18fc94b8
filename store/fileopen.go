package store

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// openedFile is a slot file that this process may use from now on.
type openedFile struct {
	*osFile
	header   fileHeader
	bytes    int64 // length at opening, at least the first page
	buffered error // why O_DIRECT is not used; nil: it is
}

// openSlotFile opens or makes the file of spec and writes this process into its
// header. Its errors say what to do.
func openSlotFile(spec fileSpec) (*openedFile, error) {
	f, created, err := openOrMake(spec.path)
	if err == nil {
		if err = f.take(); err == nil {
			return f, nil
		}
		_ = f.Close()
		if created {
			_ = os.Remove(spec.path) // nothing is in it
		}
	}
	return nil, fmt.Errorf("store %q: %s %w", spec.url, spec.path, err)
}

// openOrMake opens the file by its descriptor and says whether it was made.
func openOrMake(path string) (f *openedFile, created bool, err error) {
	const flags = unix.O_RDWR | unix.O_CLOEXEC | unix.O_NONBLOCK | unix.O_NOCTTY
	// Opening a device may do something to it.
	if info, err := os.Stat(path); err == nil {
		if err := mustBeRegular(path, info.Mode()); err != nil {
			return nil, false, err
		}
	}
	fd, err := unix.Open(path, flags, 0)
	if errors.Is(err, unix.ENOENT) {
		created = true
		fd, err = unix.Open(path, flags|unix.O_CREAT|unix.O_EXCL, 0o600)
	}
	folder := filepath.Dir(path)
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil, false, fmt.Errorf("cannot be made, there is no folder %s: make it (mkdir -p -m 700 %s) or choose another path", folder, folder)
	case errors.Is(err, unix.EEXIST):
		return nil, false, errors.New("is a link to a file that is not there, or was made by another process this moment: try again or choose another path")
	case errors.Is(err, unix.ENOTDIR):
		return nil, false, fmt.Errorf("cannot be made, %s is or lies in a file: choose another path", folder)
	case errors.Is(err, unix.EROFS):
		return nil, false, errors.New("cannot be written, its file system is read-only: choose another path")
	case noRoom(err):
		return nil, false, errNoRoomAtAll
	case err != nil:
		return nil, false, fmt.Errorf("cannot be opened: %w", err)
	}
	return &openedFile{osFile: &osFile{fd: fd}}, created, nil
}

var errNoRoomAtAll = errors.New("has no room for its first page: free some of the disk or choose another path")

func mustBeRegular(path string, mode os.FileMode) error {
	var kind string
	switch {
	case mode.IsRegular():
		return nil
	case mode.IsDir():
		return fmt.Errorf("is a folder: give the path of a file, such as file://%s", filepath.Join(path, "slots"))
	case mode&os.ModeDevice != 0:
		kind = "a device"
	case mode&os.ModeNamedPipe != 0:
		kind = "a FIFO"
	case mode&os.ModeSocket != 0:
		kind = "a socket"
	default:
		kind = "no regular file"
	}
	return fmt.Errorf("is %s: give the path of a regular file, or of one that is to be made", kind)
}

// take makes the file this process's. While it does a lock keeps others out; the
// lock must not outlive it, see fileOwner.
func (f *openedFile) take() error {
	switch err := unix.Flock(f.fd, unix.LOCK_EX|unix.LOCK_NB); {
	case errors.Is(err, unix.EWOULDBLOCK):
		return errors.New("is locked by another process: if that is an agent that is just starting, choose another path, else end it (fuser -v shows it)")
	case err != nil && !unsupported(err) && !errors.Is(err, unix.ENOLCK):
		return fmt.Errorf("cannot be locked: %w", err)
	case err == nil:
		defer func() { _ = unix.Flock(f.fd, unix.LOCK_UN) }()
	}
	var st unix.Stat_t
	if err := unix.Fstat(f.fd, &st); err != nil {
		return os.NewSyscallError("fstat", err)
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return errors.New("was replaced while it was opened: try again")
	case st.Uid != uint32(os.Geteuid()):
		return fmt.Errorf("belongs to user %d, who could read and change what is far: remove it, or choose another path", st.Uid)
	}
	f.tryDirect()
	self, err := thisProcess()
	if err != nil {
		return fmt.Errorf("cannot be taken: %w", err)
	}
	if st.Size == 0 {
		err = f.begin()
	} else {
		err = f.readHeader(self)
	}
	if err != nil {
		return err
	}
	// Not before: what is no slot file stays as it is.
	if st.Mode&0o077 != 0 {
		if err := unix.Fchmod(f.fd, 0o600); err != nil {
			return fmt.Errorf("cannot be made private: %w", err)
		}
	}
	f.header.owner = self
	f.bytes = max(st.Size, PageSize)
	return f.writeHeader(st.Size == 0)
}

// tryDirect switches O_DIRECT on. File systems that do not know it say so then;
// some only at the first read or write, see fallBack.
func (f *openedFile) tryDirect() {
	flags, err := unix.FcntlInt(uintptr(f.fd), unix.F_GETFL, 0)
	if err == nil {
		_, err = unix.FcntlInt(uintptr(f.fd), unix.F_SETFL, flags|unix.O_DIRECT)
	}
	f.direct = err == nil
	if err != nil {
		f.noReadAhead()
		f.buffered = fmt.Errorf("the file system of the slot file has no O_DIRECT: %w", err)
	}
}

// fallBack switches O_DIRECT off if that may be why a read or write failed.
func (f *openedFile) fallBack(err error) bool {
	if !f.direct || !errors.Is(err, unix.EINVAL) {
		return false
	}
	flags, ferr := unix.FcntlInt(uintptr(f.fd), unix.F_GETFL, 0)
	if ferr == nil {
		_, ferr = unix.FcntlInt(uintptr(f.fd), unix.F_SETFL, flags&^unix.O_DIRECT)
	}
	if ferr != nil {
		return false
	}
	f.direct = false
	f.noReadAhead()
	f.buffered = fmt.Errorf("the file system of the slot file takes no pages of %d bytes with O_DIRECT: %w", PageSize, err)
	return true
}

// begin is for a file that is empty.
func (f *openedFile) begin() error {
	for f.header.number&tagMask == 0 { // handles are never 0
		var number [8]byte
		if _, err := rand.Read(number[:]); err != nil {
			return err
		}
		f.header.number = binary.LittleEndian.Uint64(number[:])
	}
	return nil
}

func (f *openedFile) readHeader(self fileOwner) error {
	pages := alignedPages(1)
	n, err := f.ReadAt(pages, 0)
	if f.fallBack(err) {
		n, err = f.ReadAt(pages, 0)
	}
	if err != nil {
		return fmt.Errorf("cannot be read: %w", err)
	}
	if f.header, err = decodeHeader(pages[0][:n]); err != nil {
		return err
	}
	return f.header.owner.mayStillUse(self)
}

func (f *openedFile) writeHeader(first bool) error {
	err := writeHeader(f, f.header)
	if f.fallBack(err) {
		err = writeHeader(f, f.header)
	}
	switch {
	case noRoom(err):
		return errNoRoomAtAll
	case err != nil:
		return fmt.Errorf("cannot be written: %w", err)
	case first:
		// So that after a power failure it is no file of zeros, which nobody owns.
		if err := unix.Fsync(f.fd); err != nil {
			return fmt.Errorf("cannot be written: %w", err)
		}
	}
	return nil
}

func writeHeader(f slotFile, h fileHeader) error {
	pages := alignedPages(1)
	copy(pages[0], h.encode())
	n, err := f.WriteAt(pages, 0)
	if err == nil && n != PageSize {
		err = unix.ENOSPC // what a write means that ends early
	}
	return err
}

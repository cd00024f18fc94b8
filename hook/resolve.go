package hook

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// openIn opens path inside the folder root as a process would whose root that is:
// symbolic links, absolute ones too, and .. never lead out of it (openat2(2),
// RESOLVE_IN_ROOT), and none of /proc's links to open files is followed. The caller
// owns the descriptor.
func openIn(root *os.File, path string, flags uint64) (*os.File, error) {
	return openat2(root, path, unix.OpenHow{
		Flags:   flags | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
}

// openEntry opens what is called name in the folder parent, and no symbolic link.
func openEntry(parent *os.File, name string, flags, mode uint64) (*os.File, error) {
	return openat2(parent, name, unix.OpenHow{
		Flags:   flags | unix.O_CLOEXEC | unix.O_NOFOLLOW,
		Mode:    mode,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	})
}

// openat2Tries bounds how often the kernel may ask to try again because something was
// renamed elsewhere meanwhile.
const openat2Tries = 128

func openat2(dir *os.File, path string, how unix.OpenHow) (*os.File, error) {
	for try := 1; ; try++ {
		fd, err := unix.Openat2(int(dir.Fd()), path, &how)
		switch {
		case err == nil:
			return os.NewFile(uintptr(fd), path), nil
		case try < openat2Tries && (errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN)):
			continue
		}
		return nil, &os.PathError{Op: "openat2", Path: path, Err: err}
	}
}

// identity is what tells one file from another, and what is needed to mount on it.
type identity struct {
	device    uint64
	inode     uint64
	mountID   uint64
	mountRoot bool // something is mounted right here
	mode      uint32
	uid, gid  int
}

// identify reads the identity of an open file, O_PATH or not. STATX_ATTR_MOUNT_ROOT
// and STATX_MNT_ID are of Linux 5.8.
func identify(f *os.File) (identity, error) {
	var s unix.Statx_t
	const mask = unix.STATX_BASIC_STATS | unix.STATX_MNT_ID
	if err := unix.Statx(int(f.Fd()), "", unix.AT_EMPTY_PATH|unix.AT_SYMLINK_NOFOLLOW, mask, &s); err != nil {
		return identity{}, &os.PathError{Op: "statx", Path: f.Name(), Err: err}
	}
	return identity{
		device:    unix.Mkdev(s.Dev_major, s.Dev_minor),
		inode:     s.Ino,
		mountID:   s.Mnt_id,
		mountRoot: s.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0,
		mode:      uint32(s.Mode),
		uid:       int(s.Uid),
		gid:       int(s.Gid),
	}, nil
}

// sameFile tells whether two identities are of the same file.
func (i identity) sameFile(other identity) bool {
	return i.device == other.device && i.inode == other.inode
}

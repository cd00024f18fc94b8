package hook

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// preloadName is the file in the container's folder that is mounted over the image's
// /etc/ld.so.preload.
const preloadName = "ld.so.preload"

// source is what is mounted into the container: two mounts that are attached nowhere
// yet (open_tree(2), OPEN_TREE_CLONE), made in the host's mount namespace, because in
// the container's the host's files can no longer be mounted from.
type source struct {
	folder   identity
	dir      *os.File // the container's folder, as a mount
	preload  *os.File // its file ld.so.preload, as a mount
	contents *os.File // the same file, to be written
}

// openSource prepares the container's folder on the host. The caller closes the source;
// mounts that were attached by then stay.
func openSource(folder string) (s *source, err error) {
	s = &source{}
	defer func() {
		if err != nil {
			s.close()
			err = fmt.Errorf("preparing the container's folder %q that the agent gave: %w", folder, err)
		}
	}()
	dir, err := os.OpenFile(folder, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return s, err
	}
	defer dir.Close()
	if s.folder, err = identify(dir); err != nil {
		return s, err
	}
	// A preload file that names a missing library makes every program of the
	// container complain.
	var library unix.Stat_t
	if err := unix.Fstatat(int(dir.Fd()), libraryName, &library, 0); err != nil {
		return s, &os.PathError{Op: "stat", Path: libraryName, Err: err}
	}
	if library.Mode&unix.S_IFMT != unix.S_IFREG {
		return s, fmt.Errorf("%s is not a file", libraryName)
	}
	// Not truncated: a hook that ran before for this container may have filled it.
	if s.contents, err = openEntry(dir, preloadName, unix.O_WRONLY|unix.O_CREAT, 0o644); err != nil {
		return s, err
	}
	if err := s.contents.Chmod(0o644); err != nil { // whatever the umask made of it
		return s, err
	}
	if s.dir, err = cloneMount(dir, ""); err != nil {
		return s, err
	}
	s.preload, err = cloneMount(dir, preloadName)
	return s, err
}

// cloneMount makes a read-only mount of what path names in dir, or of dir itself. Set-id
// bits and devices mean nothing in it; executable it is even where the folder is not (a
// host's /run often is not), because a library is mapped from it.
func cloneMount(dir *os.File, path string) (*os.File, error) {
	fd, err := unix.OpenTree(int(dir.Fd()), path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH|unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		return nil, os.NewSyscallError("open_tree", err)
	}
	tree := os.NewFile(uintptr(fd), path)
	err = unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{
		Attr_set:    unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV,
		Attr_clr:    unix.MOUNT_ATTR_NOEXEC,
		Propagation: unix.MS_PRIVATE,
	})
	if err != nil {
		tree.Close()
		return nil, os.NewSyscallError("mount_setattr", err)
	}
	return tree, nil
}

// write makes content all that the preload file holds.
func (s *source) write(content []byte) error {
	if _, err := s.contents.WriteAt(content, 0); err != nil {
		return fmt.Errorf("writing the container's preload file: %w", err)
	}
	if err := s.contents.Truncate(int64(len(content))); err != nil {
		return fmt.Errorf("writing the container's preload file: %w", err)
	}
	return nil
}

// close lets go of everything. What is attached stays attached.
func (s *source) close() {
	for _, f := range []*os.File{s.dir, s.preload, s.contents} {
		if f != nil {
			f.Close()
		}
	}
}

// attach moves the mount tree onto the file or folder at. tree refers to the attached
// mount from then on.
func attach(tree, at *os.File) error {
	err := unix.MoveMount(int(tree.Fd()), "", int(at.Fd()), "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
	return os.NewSyscallError("move_mount", err)
}

// detach takes off a mounted folder again. The calling thread must not share its
// working folder with others: it is moved there and back, since a mount is unmounted by
// path only, and the paths of the namespace are not to be relied on.
func detach(tree, elsewhere *os.File) error {
	if err := unix.Fchdir(int(tree.Fd())); err != nil {
		return os.NewSyscallError("fchdir", err)
	}
	err := os.NewSyscallError("umount2", unix.Unmount(".", unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW))
	return errors.Join(err, os.NewSyscallError("fchdir", unix.Fchdir(int(elsewhere.Fd()))))
}

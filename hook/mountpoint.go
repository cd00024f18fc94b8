package hook

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// folder opens a folder of the container, and creates it where the image has none.
// parent is the root, for a name in it (then symbolic links inside the root are
// followed), or another folder of the container (then none is). The caller closes it.
func (t *target) folder(parent *os.File, name string) (*os.File, error) {
	shown := "/" + name
	open := func() (*os.File, error) { return openIn(parent, name, unix.O_PATH|unix.O_DIRECTORY) }
	if parent != t.root {
		shown = "/" + parent.Name() + "/" + name
		open = func() (*os.File, error) { return openEntry(parent, name, unix.O_PATH|unix.O_DIRECTORY, 0) }
	}
	f, err := open()
	switch {
	case err == nil:
		return f, nil
	case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP):
		return nil, fmt.Errorf("%s in the container is not a folder: %w", shown, err)
	case !errors.Is(err, os.ErrNotExist):
		return nil, fmt.Errorf("opening %s in the container: %w", shown, err)
	}
	err = t.change(parent, func(dir *os.File) error {
		return os.NewSyscallError("mkdirat", unix.Mkdirat(int(dir.Fd()), name, 0o755))
	})
	switch {
	case errors.Is(err, os.ErrExist):
		return nil, fmt.Errorf("%s in the container is a symbolic link to nothing", shown)
	case err != nil:
		return nil, fmt.Errorf("creating the folder %s in the container: %w", shown, err)
	}
	t.undoEntry(parent, name, unix.AT_REMOVEDIR)
	return open()
}

// emptyFile creates an empty file to mount on and opens it with O_PATH. It stays in the
// image's writable layer when the container is gone, as the mount points that runtimes
// create do.
func (t *target) emptyFile(parent *os.File, name string) (*os.File, error) {
	err := t.change(parent, func(dir *os.File) error {
		f, err := openEntry(dir, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, 0o644)
		if err == nil {
			f.Close()
		}
		return err
	})
	switch {
	case errors.Is(err, os.ErrExist), errors.Is(err, unix.ELOOP):
		return nil, fmt.Errorf("the image's /%s is a symbolic link to nothing: the library cannot be preloaded there", preloadPath)
	case err != nil:
		return nil, fmt.Errorf("the image has no /%s, and one to mount on cannot be created: %w", preloadPath, err)
	}
	t.undoEntry(parent, name, 0)
	return openEntry(parent, name, unix.O_PATH, 0)
}

// undoEntry has name in parent removed when the container cannot be set up.
func (t *target) undoEntry(parent *os.File, name string, flags int) {
	// A descriptor of its own: the caller closes parent.
	fd, err := unix.FcntlInt(parent.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return
	}
	kept := os.NewFile(uintptr(fd), parent.Name())
	t.kept = append(t.kept, kept)
	t.undo = append(t.undo, func() error {
		return t.change(kept, func(dir *os.File) error {
			return os.NewSyscallError("unlinkat", unix.Unlinkat(int(dir.Fd()), name, flags))
		})
	})
}

// change calls work to create or remove something in a folder of the container.
//
// crun makes the root read-only before it calls hooks (runc: after), and a container may
// have a read-only /dev. Where the file system is the container's own, work gets the
// same folder by a mount that is attached nowhere, is writable, and is gone with it:
// what the container sees is read-only at every moment. Volumes that were mounted
// read-only stay untouched.
func (t *target) change(parent *os.File, work func(dir *os.File) error) error {
	owner, err := identify(parent)
	if err != nil {
		return err
	}
	err = t.asOwner(owner, func() error { return work(parent) })
	if !errors.Is(err, unix.EROFS) {
		return err
	}
	if owner.mountID != t.rootID.mountID && t.hostDevices[owner.device] {
		return fmt.Errorf("it would be in a volume that is mounted read-only: %w", err)
	}
	fd, treeErr := unix.OpenTree(int(parent.Fd()), "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if treeErr != nil {
		return errors.Join(err, os.NewSyscallError("open_tree", treeErr))
	}
	writable := os.NewFile(uintptr(fd), parent.Name())
	defer writable.Close()
	if attrErr := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_RDONLY}); attrErr != nil {
		return errors.Join(err, os.NewSyscallError("mount_setattr", attrErr))
	}
	err = t.asOwner(owner, func() error { return work(writable) })
	if errors.Is(err, unix.EROFS) {
		return fmt.Errorf("its file system is read-only, not only its mount (put an empty file there in the image): %w", err)
	}
	return err
}

// asOwner calls work as the owner of a folder when the container has a user namespace:
// file systems mounted in it refuse to store the ids of the host (EOVERFLOW), and in
// others the host's root would own what the container's root should. Only the ids for
// file access change, and only those of the calling thread (setfsuid(2)).
func (t *target) asOwner(owner identity, work func() error) error {
	if !t.inUserNamespace {
		return work()
	}
	// The group first: without uid 0 it cannot be changed any more.
	if err := setFileIDs(owner.uid, owner.gid); err != nil {
		return err
	}
	return errors.Join(work(), restoreFileIDs())
}

// setFileIDs sets the calling thread's ids for file access.
func setFileIDs(uid, gid int) error {
	if err := unix.Setfsgid(gid); err != nil {
		return os.NewSyscallError("setfsgid", err)
	}
	return os.NewSyscallError("setfsuid", unix.Setfsuid(uid))
}

// restoreFileIDs makes them those of the process again. setfsuid allows that without
// capabilities, and the kernel gives those for file access back with uid 0.
func restoreFileIDs() error {
	if err := unix.Setfsuid(os.Geteuid()); err != nil {
		return os.NewSyscallError("setfsuid", err)
	}
	return os.NewSyscallError("setfsgid", unix.Setfsgid(os.Getegid()))
}

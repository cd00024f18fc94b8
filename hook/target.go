package hook

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/farpage/farpage/internal/proc"
	"github.com/farpage/farpage/oci/policy"
)

// preloadPath is the file that glibc's loader reads, inside the root.
const preloadPath = "etc/ld.so.preload"

// maxPreloadBytes bounds what is read of an image's preload file.
const maxPreloadBytes = 64 << 10

// target is the container's root file system, as its first process sees it before the
// root is pivoted.
type target struct {
	namespace       *os.File // its mount namespace
	root            *os.File // O_PATH
	rootID          identity
	inUserNamespace bool
	hostDevices     map[uint64]bool // file systems that are mounted on the host

	undo []func() error // what takes back what was done, last first
	kept []*os.File     // descriptors that undo needs
}

// openTarget finds the root file system of the container whose first process is pid.
// rootPath is its path on the host. The caller closes the target.
func openTarget(pid int, rootPath string) (t *target, err error) {
	t = &target{}
	defer func() {
		if err != nil {
			t.close()
		}
	}()
	if t.namespace, err = mountNamespace(pid); err != nil {
		return t, err
	}
	if t.inUserNamespace, err = hasUserNamespace(pid); err != nil {
		return t, err
	}
	if t.hostDevices, err = mountedDevices(); err != nil {
		return t, err
	}
	// The way goes by the process's own root: engines may run in a chroot, and setns
	// would lead to the root of the namespace.
	process, err := os.OpenFile(fmt.Sprintf("/proc/%d/root", pid), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return t, fmt.Errorf("opening the root of the container's first process: %w", err)
	}
	defer process.Close()
	if t.root, err = openIn(process, rootPath, unix.O_PATH|unix.O_DIRECTORY); err != nil {
		return t, fmt.Errorf("the container's root file system is not to be seen in its mount namespace (a runtime that pivots before hooks run?): %w", err)
	}
	t.rootID, err = identify(t.root)
	return t, err
}

// close lets go of everything; what is mounted stays.
func (t *target) close() {
	for _, f := range append(t.kept, t.namespace, t.root) {
		if f != nil {
			f.Close()
		}
	}
}

// attach mounts the source. On an error everything that was mounted or created is taken
// back. A container that has both mounts already, because the engine calls the hook at
// two stages, is left as it is.
func (t *target) attach(s *source) error {
	return inMountNamespace(t.namespace, func() error {
		err := t.attachFolder(s)
		if err == nil {
			err = t.attachPreload(s)
		}
		if err != nil {
			err = errors.Join(err, t.takeBack())
		}
		return err
	})
}

// takeBack undoes what was done, last first.
func (t *target) takeBack() error {
	var failed []error
	for i := len(t.undo) - 1; i >= 0; i-- {
		if err := t.undo[i](); err != nil {
			failed = append(failed, fmt.Errorf("cleaning up after that: %w", err))
		}
	}
	t.undo = nil
	return errors.Join(failed...)
}

// attachFolder mounts the container's folder at policy.MountPoint.
func (t *target) attachFolder(s *source) error {
	parentPath, name := path.Split(strings.TrimPrefix(policy.MountPoint, "/"))
	parent, err := t.folder(t.root, path.Clean(parentPath))
	if err != nil {
		return err
	}
	defer parent.Close()
	point, err := t.folder(parent, name)
	if err != nil {
		return err
	}
	defer point.Close()
	id, err := identify(point)
	switch {
	case err != nil:
		return err
	case id.sameFile(s.folder):
		return nil
	case id.mountRoot:
		return fmt.Errorf("something else is mounted at %s in the container: that path is farpage's", policy.MountPoint)
	}
	if err := attach(s.dir, point); err != nil {
		return fmt.Errorf("mounting the container's folder at %s: %w", policy.MountPoint, err)
	}
	t.undo = append(t.undo, func() error { return detach(s.dir, t.root) })
	return nil
}

// attachPreload mounts a preload file that names the library, and everything the
// image's own names, over /etc/ld.so.preload.
func (t *target) attachPreload(s *source) error {
	parentPath, name := path.Split(preloadPath)
	parent, err := t.folder(t.root, path.Clean(parentPath))
	if err != nil {
		return err
	}
	defer parent.Close()
	point, content, err := t.preloadOf(parent, name)
	if err != nil {
		return err
	}
	defer point.Close()
	merged, added := mergePreload(content)
	if !added {
		return nil
	}
	if err := s.write(merged); err != nil {
		return err
	}
	if err := attach(s.preload, point); err != nil {
		return fmt.Errorf("mounting over /%s: %w", preloadPath, err)
	}
	return nil
}

// preloadOf opens the image's preload file, or makes an empty one to mount on, and reads
// it. parent is the folder that it is in by name.
func (t *target) preloadOf(parent *os.File, name string) (point *os.File, content []byte, err error) {
	point, err = openIn(t.root, preloadPath, unix.O_PATH)
	if errors.Is(err, os.ErrNotExist) {
		point, err = t.emptyFile(parent, name)
		return point, nil, err
	}
	if err != nil {
		return nil, nil, fmt.Errorf("the image's /%s: %w", preloadPath, err)
	}
	defer func() {
		if err != nil {
			point.Close()
		}
	}()
	id, err := identify(point)
	if err != nil {
		return nil, nil, err
	}
	if kind := id.mode & unix.S_IFMT; kind != unix.S_IFREG {
		return nil, nil, fmt.Errorf("the image's /%s is %s, not a file: the library cannot be preloaded there", preloadPath, kindName(kind))
	}
	// Opened anew, because O_PATH does not read, and looked at again: a volume may be
	// in use by others.
	f, err := openIn(t.root, preloadPath, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY)
	if err != nil {
		return nil, nil, fmt.Errorf("the image's /%s: %w", preloadPath, err)
	}
	defer f.Close()
	again, err := identify(f)
	if err == nil && !again.sameFile(id) {
		err = fmt.Errorf("the image's /%s is being changed by somebody else", preloadPath)
	}
	if err != nil {
		return nil, nil, err
	}
	content, err = io.ReadAll(io.LimitReader(f, maxPreloadBytes+1))
	switch {
	case err != nil:
		return nil, nil, fmt.Errorf("the image's /%s: %w", preloadPath, err)
	case len(content) > maxPreloadBytes:
		return nil, nil, fmt.Errorf("the image's /%s is larger than %d bytes", preloadPath, maxPreloadBytes)
	}
	return point, content, nil
}

// kindName says what a file of a type (S_IFMT) is.
func kindName(kind uint32) string {
	switch kind {
	case unix.S_IFDIR:
		return "a folder"
	case unix.S_IFLNK:
		return "a symbolic link"
	case unix.S_IFIFO:
		return "a pipe"
	case unix.S_IFSOCK:
		return "a socket"
	case unix.S_IFCHR, unix.S_IFBLK:
		return "a device"
	}
	return "of an unknown kind"
}

// mountedDevices returns the file systems that are mounted in the mount namespace of the
// caller.
func mountedDevices() (map[uint64]bool, error) {
	mountinfo, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	devices := make(map[uint64]bool)
	for line := range strings.Lines(string(mountinfo)) {
		m, ok := proc.ParseMount(line)
		if !ok {
			continue
		}
		var major, minor uint32
		if _, err := fmt.Sscanf(m.Device, "%d:%d", &major, &minor); err == nil {
			devices[unix.Mkdev(major, minor)] = true
		}
	}
	return devices, nil
}

package hook

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// mountNamespace opens the mount namespace of the process pid. It refuses the
// namespace that the caller is in itself: what would be mounted there is the host's.
func mountNamespace(pid int) (*os.File, error) {
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/mnt", pid))
	if err != nil {
		return nil, fmt.Errorf("opening the container's mount namespace: %w", err)
	}
	same, err := sameNamespace(ns, "/proc/self/ns/mnt")
	if err == nil && same {
		err = errors.New("the container has no mount namespace of its own")
	}
	if err != nil {
		ns.Close()
		return nil, err
	}
	return ns, nil
}

// hasUserNamespace tells whether the process pid is in another user namespace than the
// caller.
func hasUserNamespace(pid int) (bool, error) {
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/user", pid))
	if err != nil {
		return false, fmt.Errorf("opening the container's user namespace: %w", err)
	}
	defer ns.Close()
	same, err := sameNamespace(ns, "/proc/self/ns/user")
	return !same, err
}

// sameNamespace tells whether an open namespace is the one at path: they are the same
// when device and inode are (namespaces(7)).
func sameNamespace(ns *os.File, path string) (bool, error) {
	other, err := os.Stat(path)
	if err != nil {
		return false, err
	}
	this, err := ns.Stat()
	if err != nil {
		return false, err
	}
	return os.SameFile(this, other), nil
}

// inMountNamespace calls work in the mount namespace ns, on a thread of its own that
// ends with it. The user namespace stays the caller's, and so do its capabilities,
// which count in the namespaces below it too (user_namespaces(7)). work must not start
// goroutines nor use paths that are not relative to a descriptor: the thread's root is
// that of the namespace then.
func inMountNamespace(ns *os.File, work func() error) error {
	done := make(chan error)
	go func() {
		// Never unlocked: a thread in another namespace must not run other goroutines.
		runtime.LockOSThread()
		done <- func() error {
			// setns refuses a thread that shares its root with others (setns(2)).
			if err := unix.Unshare(unix.CLONE_FS); err != nil {
				return os.NewSyscallError("unshare", err)
			}
			if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNS); err != nil {
				return fmt.Errorf("entering the container's mount namespace: %w", os.NewSyscallError("setns", err))
			}
			// Modes are given in full below; the runtime's umask has no say. Since
			// the unshare it is this thread's alone.
			unix.Umask(0)
			return work()
		}()
	}()
	return <-done
}

package target

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// RobustList returns the address of a thread's robust list head, 0 if it has
// none. tid is in the caller's pid namespace. Needs CAP_SYS_PTRACE. Beside that
// head, in glibc's thread descriptor, lies the word that the kernel clears when
// the thread exits; a write there to a missing page would be lost.
func RobustList(tid int) uint64 {
	var head, length uint64
	_, _, e := syscall.Syscall(unix.SYS_GET_ROBUST_LIST, uintptr(tid),
		uintptr(unsafe.Pointer(&head)), uintptr(unsafe.Pointer(&length)))
	if e != 0 {
		return 0
	}
	return head
}

// Tasks reads the thread ids in an open /proc/PID/task into tids, as many as fit,
// without allocating. more says that there were others.
func Tasks(taskDir int, tids []int32) (n int, more bool, err error) {
	if _, err := syscall.Seek(taskDir, 0, 0); err != nil {
		return 0, false, err
	}
	var buf [8192]byte
	for {
		k, _, e := syscall.Syscall(syscall.SYS_GETDENTS64, uintptr(taskDir), uintptr(unsafe.Pointer(&buf[0])), uintptr(len(buf)))
		if e == syscall.ENOENT || e == syscall.ESRCH {
			return n, false, ErrGone
		}
		if e != 0 {
			return n, false, e
		}
		if k == 0 {
			return n, false, nil
		}
		for at := 0; at < int(k); {
			length := int(buf[at+16]) | int(buf[at+17])<<8 // struct linux_dirent64: d_reclen
			tid := int32(0)
			for _, c := range buf[at+19 : at+length] {
				if c < '0' || c > '9' {
					break
				}
				tid = tid*10 + int32(c-'0')
			}
			at += length
			if tid == 0 {
				continue
			}
			if n == len(tids) {
				return n, true, nil
			}
			tids[n] = tid
			n++
		}
	}
}

// Peer returns the process at the other end of a connected unix socket, in the
// caller's pid namespace, as the kernel noted it at connect time.
func Peer(socket int) (pid int, err error) {
	c, err := unix.GetsockoptUcred(socket, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return 0, err
	}
	return int(c.Pid), nil
}

package uffd

import (
	"syscall"
	"unsafe"
)

// _IOC of asm-generic/ioctl.h, and the userfaultfd type.
const (
	iocRead  = 2
	iocWrite = 1
	uffdType = 0xAA
)

func ioc(dir, nr, size uintptr) uintptr { return dir<<30 | size<<16 | uffdType<<8 | nr }

type apiArg struct{ api, features, ioctls uint64 }

type registerArg struct{ start, length, mode, ioctls uint64 }

type rangeArg struct{ start, length uint64 }

type copyArg struct {
	dst, src, length, mode uint64
	done                   int64
}

type zeroArg struct {
	start, length, mode uint64
	done                int64
}

type protectArg struct{ start, length, mode uint64 }

type poisonArg struct {
	start, length, mode uint64
	done                int64
}

type continueArg struct {
	start, length, mode uint64
	done                int64
}

var (
	reqAPI        = ioc(iocRead|iocWrite, 0x3F, unsafe.Sizeof(apiArg{}))
	reqRegister   = ioc(iocRead|iocWrite, 0x00, unsafe.Sizeof(registerArg{}))
	reqUnregister = ioc(iocRead, 0x01, unsafe.Sizeof(rangeArg{}))
	reqWake       = ioc(iocRead, 0x02, unsafe.Sizeof(rangeArg{}))
	reqCopy       = ioc(iocRead|iocWrite, 0x03, unsafe.Sizeof(copyArg{}))
	reqZero       = ioc(iocRead|iocWrite, 0x04, unsafe.Sizeof(zeroArg{}))
	reqProtect    = ioc(iocRead|iocWrite, 0x06, unsafe.Sizeof(protectArg{}))
	reqContinue   = ioc(iocRead|iocWrite, 0x07, unsafe.Sizeof(continueArg{}))
	reqPoison     = ioc(iocRead|iocWrite, 0x08, unsafe.Sizeof(poisonArg{}))
	reqNew        = uintptr(uffdType << 8) // USERFAULTFD_IOC_NEW, on the device
)

func ioctl(fd int, req uintptr, arg unsafe.Pointer) syscall.Errno {
	for {
		_, _, e := syscall.Syscall(syscall.SYS_IOCTL, uintptr(fd), req, uintptr(arg))
		if e != syscall.EINTR {
			return e
		}
	}
}

// New makes a userfaultfd of the calling process from an open Device. The
// descriptor is the caller's.
func New(device, flags int) (int, syscall.Errno) {
	fd, _, e := syscall.Syscall(syscall.SYS_IOCTL, uintptr(device), reqNew, uintptr(flags))
	return int(fd), e
}

// API makes the handshake and returns the features that are available.
func API(fd int, features uint64) (uint64, syscall.Errno) {
	a := apiArg{api: uffdType, features: features}
	e := ioctl(fd, reqAPI, unsafe.Pointer(&a))
	return a.features, e
}

// Register adds a range to what fd watches. It may be registered already.
func Register(fd int, start, length, mode uint64) syscall.Errno {
	a := registerArg{start: start, length: length, mode: mode}
	return ioctl(fd, reqRegister, unsafe.Pointer(&a))
}

// Unregister takes a range out of what fd watches; missing pages of it read as
// zeros from then on.
func Unregister(fd int, start, length uint64) syscall.Errno {
	a := rangeArg{start, length}
	return ioctl(fd, reqUnregister, unsafe.Pointer(&a))
}

// Wake lets the threads that wait for pages of the range look again.
func Wake(fd int, start, length uint64) syscall.Errno {
	a := rangeArg{start, length}
	return ioctl(fd, reqWake, unsafe.Pointer(&a))
}

// Copy fills missing pages from src, which must be whole pages. done is how many
// bytes were copied: it may be more than 0 beside an error, and is never less.
// EAGAIN: an event is under way; EEXIST: the page is there, nobody was woken;
// ENOENT: the mapping is not there or not registered; ESRCH: the memory is gone.
func Copy(fd int, dst uint64, src []byte, mode uint64) (done uint64, e syscall.Errno) {
	a := copyArg{dst: dst, src: uint64(uintptr(unsafe.Pointer(unsafe.SliceData(src)))), length: uint64(len(src)), mode: mode}
	e = ioctl(fd, reqCopy, unsafe.Pointer(&a))
	return positive(a.done), e
}

// Zero maps the zero page at missing pages. Results as Copy's.
func Zero(fd int, start, length, mode uint64) (done uint64, e syscall.Errno) {
	a := zeroArg{start: start, length: length, mode: mode}
	e = ioctl(fd, reqZero, unsafe.Pointer(&a))
	return positive(a.done), e
}

// Protect write-protects the pages of a range that are present.
func Protect(fd int, start, length uint64) syscall.Errno {
	a := protectArg{start: start, length: length, mode: 1}
	return ioctl(fd, reqProtect, unsafe.Pointer(&a))
}

// Unprotect ends the protection of a range and wakes who waits there.
func Unprotect(fd int, start, length uint64) syscall.Errno {
	a := protectArg{start: start, length: length}
	return ioctl(fd, reqProtect, unsafe.Pointer(&a))
}

// Poison makes a range raise SIGBUS. Since Linux 6.6.
func Poison(fd int, start, length uint64) (done uint64, e syscall.Errno) {
	a := poisonArg{start: start, length: length}
	e = ioctl(fd, reqPoison, unsafe.Pointer(&a))
	return positive(a.done), e
}

// Read reads exactly one message into m, which may lie in shared memory so that
// no event dies with the reader.
func Read(fd int, m *Msg) syscall.Errno {
	n, _, e := syscall.Syscall(syscall.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(m)), unsafe.Sizeof(*m))
	if e == 0 && n != unsafe.Sizeof(*m) {
		return syscall.EIO
	}
	return e
}

// Quiet says whether no event of fd is under way, read or not. unmapped is an
// address where the target has nothing mapped: Linux looks for events under way
// before it looks for the mapping. gone says that the memory is no more.
func Quiet(fd int, unmapped uint64) (quiet, gone bool) {
	_, e := Zero(fd, unmapped, PageSize, DontWake)
	return e != syscall.EAGAIN, e == syscall.ESRCH
}

// Watches says whether a userfaultfd watches the private anonymous mapping at addr, a
// page's address below the end of memory. It asks for what such a mapping refuses
// (UFFDIO_CONTINUE, since Linux 5.13, is for shared pages), so nothing is done: Linux
// looks for events under way first, for the mapping then, and at last at its kind
// (mm/userfaultfd.c, mfill_atomic). EAGAIN: an event is under way; ESRCH: the memory is
// gone; any other error: this kernel answers in another way.
func Watches(fd int, addr uint64) (bool, syscall.Errno) {
	a := continueArg{start: addr, length: PageSize, mode: 1} // UFFDIO_CONTINUE_MODE_DONTWAKE
	switch e := ioctl(fd, reqContinue, unsafe.Pointer(&a)); e {
	case syscall.EINVAL:
		return true, 0
	case syscall.ENOENT:
		return false, 0
	case 0:
		return false, syscall.ENOTSUP
	default:
		return false, e
	}
}

func positive(n int64) uint64 {
	if n < 0 {
		return 0
	}
	return uint64(n)
}

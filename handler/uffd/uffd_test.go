package uffd

import (
	"fmt"
	"os"
	"syscall"
	"testing"
	"unsafe"

	"github.com/farpage/farpage/internal/need"
	"golang.org/x/sys/unix"
)

func TestStructsHaveTheKernelsSizes(t *testing.T) {
	for _, c := range []struct {
		name      string
		got, want uintptr
	}{
		{"uffd_msg", unsafe.Sizeof(Msg{}), 32},
		{"uffdio_api", unsafe.Sizeof(apiArg{}), 24},
		{"uffdio_register", unsafe.Sizeof(registerArg{}), 32},
		{"uffdio_copy", unsafe.Sizeof(copyArg{}), 40},
		{"uffdio_zeropage", unsafe.Sizeof(zeroArg{}), 32},
		{"uffdio_writeprotect", unsafe.Sizeof(protectArg{}), 24},
		{"uffdio_poison", unsafe.Sizeof(poisonArg{}), 32},
		{"uffdio_continue", unsafe.Sizeof(continueArg{}), 32},
		{"UFFDIO_API", reqAPI, 0xc018aa3f},
		{"UFFDIO_COPY", reqCopy, 0xc028aa03},
		{"UFFDIO_WAKE", reqWake, 0x8010aa02},
	} {
		if c.got != c.want {
			t.Errorf("%s: %#x, want %#x", c.name, c.got, c.want)
		}
	}
}

func TestACopiedPageIsReadByTheFaultingThread(t *testing.T) {
	dev, err := os.OpenFile(Device, os.O_RDWR, 0)
	if err != nil {
		skip(t, err)
	}
	defer dev.Close()
	fd, e := New(int(dev.Fd()), unix.O_CLOEXEC|unix.O_NONBLOCK)
	if e != 0 {
		skip(t, e)
	}
	defer syscall.Close(fd)
	if _, e := API(fd, Wanted); e != 0 {
		skip(t, e)
	}
	mem, err := unix.Mmap(-1, 0, 4*PageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		t.Fatal(err)
	}
	// The memory is not unmapped: with EVENT_UNMAP that would wait for a reader.
	base := uint64(uintptr(unsafe.Pointer(&mem[0])))
	if e := Register(fd, base, 4*PageSize, ModeMissing|ModeWP); e != 0 {
		t.Fatal(e)
	}
	if q, gone := Quiet(fd, 0x10000); !q || gone {
		t.Fatalf("quiet %v gone %v, want true false", q, gone)
	}
	for addr, want := range map[uint64]bool{base: true, base + 3*PageSize: true, base + 4*PageSize: false, 0x10000: false} {
		if got, e := Watches(fd, addr); e != 0 || got != want {
			t.Errorf("watches %#x: %v, %v; want %v", addr-base, got, e, want)
		}
	}
	page := make([]byte, 2*PageSize)
	page[0], page[PageSize] = 7, 9
	if done, e := Copy(fd, base, page, 0); e != 0 || done != 2*PageSize {
		t.Fatalf("copy: %d %v", done, e)
	}
	if mem[0] != 7 || mem[PageSize] != 9 {
		t.Fatalf("read back %d %d, want 7 9", mem[0], mem[PageSize])
	}
	if done, e := Copy(fd, base+PageSize, page, 0); e != syscall.EEXIST || done != 0 {
		t.Fatalf("copy over a present page: %d %v, want 0 EEXIST", done, e)
	}
	got := make(chan byte)
	go func() {
		b := mem[2*PageSize] // read here, not when the channel is received from
		got <- b
	}()
	// A signal (the Go scheduler's own, here) ends the wait of a faulting thread,
	// which then faults again: what poll announced may be gone when it is read.
	var m Msg
	for {
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		if _, err := unix.Poll(poll, 5000); err != nil && err != unix.EINTR {
			t.Fatal(err)
		}
		e := Read(fd, &m)
		if e == 0 {
			break
		}
		if e != syscall.EAGAIN {
			t.Fatal(e)
		}
	}
	if m.Event != EventPagefault {
		t.Fatalf("event %#x, want a page fault", m.Event)
	}
	if _, addr, _ := m.Fault(); addr != base+2*PageSize {
		t.Fatalf("fault at %#x, want %#x", addr, base+2*PageSize)
	}
	if done, e := Zero(fd, base+2*PageSize, PageSize, 0); e != 0 || done != PageSize {
		t.Fatalf("zero: %d %v", done, e)
	}
	if b := <-got; b != 0 {
		t.Fatalf("read %d from a zero page", b)
	}
	if e := Unregister(fd, base, 4*PageSize); e != 0 {
		t.Fatal(e)
	}
}

func skip(t *testing.T, err error) {
	t.Helper()
	need.Skip(t, fmt.Sprintf("%s and root are needed (`farpage check` says more): %v", Device, err))
}

package engine

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"testing"
	"unsafe"

	"github.com/farpage/farpage/handler/handoff"
	"github.com/farpage/farpage/handler/space"
	"github.com/farpage/farpage/handler/state"
	"github.com/farpage/farpage/handler/target"
	"github.com/farpage/farpage/handler/uffd"
	"github.com/farpage/farpage/internal/need"
	"golang.org/x/sys/unix"
)

// A pid may be another process's by now, or was somebody else's from the start: only the
// mark that the agent put into the userfaultfd's own memory tells.
func TestProcessIsTheOneWithTheMarkOnly(t *testing.T) {
	area, err := unix.Mmap(-1, 0, handoff.AreaBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Munmap(area) }()
	e, p, _ := fakeEngine(t)
	defer e.closeLooks(p)
	p.rec.Area = uint64(uintptr(unsafe.Pointer(unsafe.SliceData(area))))
	const mark = 0x1234567890abcdef
	binary.LittleEndian.PutUint64(area[handoff.AreaAnchor:], mark)
	if err := e.identify(p, os.Getpid(), mark+1); !errors.Is(err, handoff.ErrMessage) || p.has(state.FlagIdentified) {
		t.Errorf("with another mark: %v, identified %v", err, p.has(state.FlagIdentified))
	}
	if err := e.identify(p, os.Getpid(), mark); err != nil || !p.has(state.FlagIdentified) || int(p.rec.Pid) != os.Getpid() {
		t.Errorf("with its mark: %v, pid %d", err, p.rec.Pid)
	}
}

// helperDone is what a helper does at the end of a command: fp_channel.done.
func helperDone(pipe *handoff.Pipe, command uint32) {
	before := unsafe.Add(unsafe.Pointer(unsafe.SliceData(pipe.Page(0))), -handoff.PageSize)
	atomic.StoreUint32((*uint32)(unsafe.Add(before, 8)), command)
}

// A child's table is held against its mappings once, and what was read of its events and
// not applied is in the mappings and not in the table.
func TestChildIsNotHeldAgainstItsMappingsBeforeItsEventsAreApplied(t *testing.T) {
	e, p, _ := fakeEngine(t)
	device, err := unix.Open(uffd.Device, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		need.Skip(t, fmt.Sprintf("%s: %v", uffd.Device, err))
	}
	defer func() { _ = unix.Close(device) }()
	fd, errno := uffd.New(device, unix.O_CLOEXEC|unix.O_NONBLOCK)
	if errno != 0 {
		t.Fatal(errno)
	}
	defer func() { _ = unix.Close(fd) }()
	if _, errno := uffd.API(fd, 0); errno != 0 {
		t.Fatal(errno)
	}
	smaps, err := unix.Open("/proc/self/smaps", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(smaps) }()
	p.rec.UffdFD, p.rec.SmapsFD = int32(fd), int32(smaps)
	p.rec.Pid, p.rec.Start = int32(os.Getpid()), target.StartTime(os.Getpid())
	p.set(state.FlagChild | state.FlagIdentified)
	const addr = uint64(0x7f0000000000) // nothing is registered there
	slot := mustPut(t, e.slots, pageOf(1))
	if err := p.table.Set(addr, space.Make(space.Slot, slot)); err != nil {
		t.Fatal(err)
	}
	p.batch = []int{0}
	if e.checkChild(p, addr) || p.has(state.FlagChecked) || p.table.Get(addr).Slot() != slot {
		t.Errorf("with an event to apply: checked %v, the page is %v", p.has(state.FlagChecked), p.table.Get(addr).State())
	}
	p.batch = nil
	if !e.checkChild(p, addr) || p.table.Get(addr).State() != space.Untouched || e.slots.live != 0 {
		t.Errorf("with none: checked %v, the page is %v", p.has(state.FlagChecked), p.table.Get(addr).State())
	}
}

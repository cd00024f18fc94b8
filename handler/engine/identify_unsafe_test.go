package engine

import (
	"encoding/binary"
	"errors"
	"os"
	"testing"
	"unsafe"

	"github.com/farpage/farpage/handler/handoff"
	"github.com/farpage/farpage/handler/state"
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

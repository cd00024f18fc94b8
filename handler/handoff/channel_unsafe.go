package handoff

import (
	"fmt"
	"os"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// channel mirrors struct fp_channel.
type channel struct {
	Wake, Command, Done, Epoch, InIoctl, Want, CommandEpoch, RunCount, Stop, Unsettled uint32
	_                                                                                  [20]uint32
	Runs                                                                               [RunsMax]run
}

// run mirrors struct fp_run.
type run struct {
	Addr                                       uint64
	Pages, First, Result, Moved, Error, unused uint32
}

const (
	_ = uint(PageSize - unsafe.Sizeof(channel{}))
	_ = uint(32 - unsafe.Sizeof(run{}))
	_ = uint(120 - unsafe.Offsetof(channel{}.Runs))
	_ = uint(unsafe.Offsetof(channel{}.Runs) - 120)
)

// stopFlag is FP_STOP.
const stopFlag = 0x100

// Pipe is the agent's mapping of one process's channel. The other side may write
// anything at any time: words are read once, bytes are copied before they are
// looked at.
type Pipe struct {
	c    *channel
	data []byte
	all  []byte
}

// NewChannel makes the sealed memfd of a channel. The descriptor is the caller's.
func NewChannel() (int, error) {
	fd, err := unix.MemfdCreate("farpage-channel", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return -1, os.NewSyscallError("memfd_create", err)
	}
	if err := unix.Ftruncate(fd, ChannelBytes); err != nil {
		_ = unix.Close(fd)
		return -1, os.NewSyscallError("ftruncate", err)
	}
	// Sealed: nobody can shrink it under the agent's feet.
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL); err != nil {
		_ = unix.Close(fd)
		return -1, os.NewSyscallError("seal the channel", err)
	}
	return fd, nil
}

// OpenPipe maps a channel. The descriptor stays the caller's.
func OpenPipe(fd int) (*Pipe, error) {
	b, err := unix.Mmap(fd, 0, ChannelBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map a channel: %w", err)
	}
	return &Pipe{c: (*channel)(unsafe.Pointer(&b[0])), data: b[PageSize:], all: b}, nil
}

// Close unmaps the channel.
func (p *Pipe) Close() {
	if p.all != nil {
		_ = unix.Munmap(p.all)
		p.all = nil
	}
}

// Raise makes the helper's command out of date and says whether the helper is
// inside UFFDIO_MOVE or its copy-out right now: then no event may be read, and
// the helper sends a notice when it is out.
func (p *Pipe) Raise() (busy bool) {
	atomic.AddUint32(&p.c.Epoch, 1)
	if atomic.LoadUint32(&p.c.InIoctl) == 0 {
		return false
	}
	atomic.StoreUint32(&p.c.Want, 1)
	return atomic.LoadUint32(&p.c.InIoctl) != 0
}

// Busy says whether the helper is inside UFFDIO_MOVE or its copy-out.
func (p *Pipe) Busy() bool { return atomic.LoadUint32(&p.c.InIoctl) != 0 }

// SetUnsettled says whether an event was read, or is about to be, that is not applied
// yet: the helper registers no mapping then.
func (p *Pipe) SetUnsettled(unsettled bool) {
	word := uint32(0)
	if unsettled {
		word = 1
	}
	atomic.StoreUint32(&p.c.Unsettled, word)
}

// Renew makes the command valid again for the runs that were not taken back.
func (p *Pipe) Renew() {
	atomic.StoreUint32(&p.c.CommandEpoch, atomic.LoadUint32(&p.c.Epoch))
}

// SetRun writes run i of the next command, or (with 0 pages, between Raise and
// Renew) takes it back.
func (p *Pipe) SetRun(i int, addr uint64, pages, first uint32) {
	r := &p.c.Runs[i]
	if pages == 0 {
		atomic.StoreUint32(&r.Pages, 0)
		return
	}
	r.Addr, r.First, r.Moved, r.Error = addr, first, 0, 0
	atomic.StoreUint32(&r.Result, Pending)
	atomic.StoreUint32(&r.Pages, pages)
}

// Publish hands the command with this number to the helper.
func (p *Pipe) Publish(command uint32, runs int) {
	p.c.RunCount = uint32(runs)
	p.Renew()
	atomic.StoreUint32(&p.c.Command, command)
	p.wake()
}

// Published returns the number of the newest command that was handed over.
func (p *Pipe) Published() uint32 { return atomic.LoadUint32(&p.c.Command) }

// Ended returns the number of the newest command that the helper is done with.
func (p *Pipe) Ended() uint32 { return atomic.LoadUint32(&p.c.Done) }

// Result returns what the helper says about run i.
func (p *Pipe) Result(i int) (result, moved, errno uint32) {
	r := &p.c.Runs[i]
	result = atomic.LoadUint32(&r.Result)
	return result, atomic.LoadUint32(&r.Moved), atomic.LoadUint32(&r.Error)
}

// Page returns data page i, still the container's to change.
func (p *Pipe) Page(i uint32) []byte {
	return p.data[uint64(i)*PageSize : uint64(i+1)*PageSize]
}

// Stop asks the helper to leave with an exit status: that of the last task of a
// process is the process's.
func (p *Pipe) Stop(status uint8) {
	atomic.StoreUint32(&p.c.Stop, stopFlag|uint32(status))
	p.wake()
}

func (p *Pipe) wake() {
	const futexWake = 1
	atomic.AddUint32(&p.c.Wake, 1)
	_, _, _ = syscall.Syscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(&p.c.Wake)), futexWake, 1, 0, 0, 0)
}

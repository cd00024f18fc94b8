package engine

import (
	"os"
	"syscall"
	"time"
	"unsafe"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
)

type kind uint8

const (
	kindWake kind = iota
	kindListener
	kindConn
	kindUffd
	kindHelper
	kindMmaps
)

// source says what a descriptor of the poller is. tag tells uses of one index
// apart: events of a process that is gone are not its successor's.
type source struct {
	kind  kind
	tag   uint16
	index int32
}

func (s source) pack() (fd, pad int32) { return s.index, int32(s.kind)<<16 | int32(s.tag) }

func unpack(fd, pad int32) source {
	return source{kind: kind(pad >> 16), tag: uint16(pad), index: fd}
}

// poller is an epoll instance, edge triggered, and an eventfd to wake it.
type poller struct {
	ep, event int
	events    [64]unix.EpollEvent
}

func newPoller() (*poller, error) {
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	ev, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		_ = unix.Close(ep)
		return nil, os.NewSyscallError("eventfd", err)
	}
	p := &poller{ep: ep, event: ev}
	return p, p.add(ev, source{kind: kindWake})
}

// add watches a descriptor, which stays its owner's.
func (p *poller) add(fd int, s source) error {
	ev := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLRDHUP | unix.EPOLLET&0xffffffff}
	ev.Fd, ev.Pad = s.pack()
	return os.NewSyscallError("epoll_ctl", unix.EpollCtl(p.ep, unix.EPOLL_CTL_ADD, fd, &ev))
}

// remove ends watching before fd is closed: other copies of it keep it alive.
func (p *poller) remove(fd int) {
	_ = unix.EpollCtl(p.ep, unix.EPOLL_CTL_DEL, fd, nil)
}

// wake ends a wait, from any goroutine.
func (p *poller) wake() {
	one := [8]byte{1}
	_, _ = syscall.Write(p.event, one[:])
}

func (p *poller) close() {
	_ = unix.Close(p.event)
	_ = unix.Close(p.ep)
}

// shortWait is the longest sleep for which the thread keeps its P (the Go scheduler's
// leave to run): giving it up and getting it back costs more than the fault that ends
// the sleep. The agent has Ps to spare, and the collector's signal ends the sleep.
const shortWait = 5 * time.Millisecond

// wait sleeps until something is ready, at most d, and tells it. epoll_pwait2
// (Linux 5.11) takes nanoseconds.
func (p *poller) wait(d time.Duration, ready func(source, uint32)) {
	ts := unix.NsecToTimespec(int64(d))
	sleep := syscall.Syscall6
	if d <= shortWait {
		sleep = syscall.RawSyscall6
	}
	n, _, e := sleep(unix.SYS_EPOLL_PWAIT2, uintptr(p.ep), uintptr(unsafe.Pointer(&p.events[0])),
		uintptr(len(p.events)), uintptr(unsafe.Pointer(&ts)), 0, 0)
	if e != 0 {
		return
	}
	for i := range p.events[:n] {
		ev := &p.events[i]
		s := unpack(ev.Fd, ev.Pad)
		if s.kind == kindWake {
			var b [8]byte
			_, _ = syscall.Read(p.event, b[:])
			continue
		}
		ready(s, ev.Events)
	}
}

// raisePriority makes this thread SCHED_FIFO, or nice -20 where that is refused
// (cgroup v1 with RT_GROUP_SCHED): on a loaded CPU an engine of normal priority
// answers after milliseconds.
func raisePriority(log *logrus.Entry) {
	attr := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 1, Flags: unix.SCHED_FLAG_RESET_ON_FORK}
	err := unix.SchedSetAttr(0, &attr, 0)
	if err == nil {
		return
	}
	if nice := unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), -20); nice != nil {
		log.Warnf("real-time priority refused (%v), nice -20 too (%v): faults may wait on a loaded host", err, nice)
	}
}

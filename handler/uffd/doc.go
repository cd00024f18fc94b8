// Package uffd is the only place that makes userfaultfd ioctls. It adds nothing
// to what the kernel does: ranges are addresses in the target's memory, errors
// are the kernel's errno, descriptors belong to the caller.
//
// Facts come from include/uapi/linux/userfaultfd.h and fs/userfaultfd.c of Linux
// 6.8 and newer, and from userfaultfd(2), ioctl_userfaultfd(2).
package uffd

// PageSize is the page size in bytes of the only architecture supported, x86-64.
const PageSize = 4096

// Device is the file whose descriptor lets an unprivileged process make a
// userfaultfd that catches kernel-mode faults too (since Linux 6.1).
const Device = "/dev/userfaultfd"

// Features that UFFDIO_API is asked for. EVENT_FORK needs CAP_SYS_PTRACE of the
// caller in the initial user namespace.
const (
	FeaturePagefaultFlagWP = 1 << 0
	FeatureEventFork       = 1 << 1
	FeatureEventRemap      = 1 << 2
	FeatureEventRemove     = 1 << 3
	FeatureEventUnmap      = 1 << 6
	FeatureThreadID        = 1 << 8
	FeaturePoison          = 1 << 14 // since Linux 6.6
	FeatureMove            = 1 << 16 // since Linux 6.8
)

// Wanted is the set of features that the agent needs.
const Wanted = FeaturePagefaultFlagWP | FeatureEventFork | FeatureEventRemap | FeatureEventRemove |
	FeatureEventUnmap | FeatureThreadID | FeaturePoison | FeatureMove

// Modes of Register.
const (
	ModeMissing = 1 << 0
	ModeWP      = 1 << 1
)

// DontWake leaves the threads that wait for the range asleep.
const DontWake = 1 << 0

// CopyWP maps the copied pages write-protected.
const CopyWP = 1 << 1

// Events, as found in Msg.Event.
const (
	EventPagefault = 0x12
	EventFork      = 0x13
	EventRemap     = 0x14
	EventRemove    = 0x15
	EventUnmap     = 0x16
)

// Flags of a page fault.
const (
	FaultWrite = 1 << 0
	FaultWP    = 1 << 1
)

// Msg mirrors struct uffd_msg.
type Msg struct {
	Event uint8
	_     [7]byte
	Arg   [3]uint64
}

// Fault returns a page fault's flags, page address and faulting thread (in that
// thread's own pid namespace).
func (m *Msg) Fault() (flags, addr uint64, tid uint32) {
	return m.Arg[0], m.Arg[1] &^ (PageSize - 1), uint32(m.Arg[2])
}

// ForkFD returns the descriptor of a forked child's userfaultfd, which the
// reader of the event owns.
func (m *Msg) ForkFD() int { return int(uint32(m.Arg[0])) }

// Range returns the range of a remove or unmap event.
func (m *Msg) Range() (start, end uint64) { return m.Arg[0], m.Arg[1] }

// Remap returns a remap event's old and new address and its length in bytes.
func (m *Msg) Remap() (from, to, length uint64) { return m.Arg[0], m.Arg[1], m.Arg[2] }

package state

import (
	"errors"
	"fmt"
	"unsafe"

	"github.com/farpage/farpage/handler/space"
	"golang.org/x/sys/unix"
)

const page = uint64(space.PageSize)

const (
	_ = uint(256 - unsafe.Sizeof(Proc{}))
	_ = uint(unsafe.Sizeof(Proc{}) - 256)
	_ = uint(64 - unsafe.Sizeof(Event{}))
	_ = uint(unsafe.Sizeof(Event{}) - 64)
	_ = uint(32 - unsafe.Sizeof(Slot{}))
	_ = uint(unsafe.Sizeof(Slot{}) - 32)
	_ = uint(page - uint64(unsafe.Sizeof(Header{})))
)

// Memory is the mapped state of one container.
type Memory struct {
	FD     int
	Header *Header
	Procs  []Proc
	Ring   []Event
	Slots  []Slot        // [0] is never used
	Nodes  []space.Entry // for space.NewNodes
	Raw    []byte        // RawBuffers pages
	Arena  []byte        // for a store in RAM

	runs    []Run
	config  []byte
	mapping []byte
	rawAt   uint64
	arenaAt uint64
}

// sizes of the sparse parts, from how much RAM the host has.
func sizes(ramBytes uint64) (slots, nodes, arena uint64) {
	pages := max(ramBytes, 4<<30) / page
	return pages * 4, pages / 128, pages * page
}

// New makes the state of a new container. The caller owns the descriptor.
func New() (*Memory, error) {
	fd, err := unix.MemfdCreate("farpage-state", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make the state of a container: %w", err)
	}
	m, err := open(fd, true)
	if err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return m, nil
}

// Open maps the state of a container that a dead agent has left.
func Open(fd int) (*Memory, error) { return open(fd, false) }

func open(fd int, fresh bool) (*Memory, error) {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return nil, fmt.Errorf("sysinfo: %w", err)
	}
	slots, nodes, arena := sizes(info.Totalram * uint64(info.Unit))
	m := &Memory{FD: fd}
	at := page
	take := func(bytes uint64) uint64 {
		from := at
		at += (bytes + page - 1) &^ (page - 1)
		return from
	}
	configAt := take(configMax)
	procsAt := take(MaxProcs * uint64(unsafe.Sizeof(Proc{})))
	runsAt := take(MaxProcs * RunsMax * uint64(unsafe.Sizeof(Run{})))
	ringAt := take(RingSlots * uint64(unsafe.Sizeof(Event{})))
	slotsAt := take(slots * uint64(unsafe.Sizeof(Slot{})))
	nodesAt := take(nodes * space.NodeSize)
	m.rawAt = take(RawBuffers * page)
	m.arenaAt = take(arena)
	if fresh {
		if err := unix.Ftruncate(fd, int64(at)); err != nil {
			return nil, fmt.Errorf("size the state of a container: %w", err)
		}
	} else {
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return nil, fmt.Errorf("stat a container's state: %w", err)
		}
		if uint64(st.Size) != at {
			return nil, fmt.Errorf("state of a container has %d bytes, want %d: it is of another version or another machine", st.Size, at)
		}
	}
	b, err := unix.Mmap(fd, 0, int(at), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("map the state of a container: %w", err)
	}
	m.mapping = b
	m.Header = (*Header)(unsafe.Pointer(&b[0]))
	m.config = b[configAt : configAt+configMax]
	m.Procs = unsafe.Slice((*Proc)(unsafe.Pointer(&b[procsAt])), MaxProcs)
	m.runs = unsafe.Slice((*Run)(unsafe.Pointer(&b[runsAt])), MaxProcs*RunsMax)
	m.Ring = unsafe.Slice((*Event)(unsafe.Pointer(&b[ringAt])), RingSlots)
	m.Slots = unsafe.Slice((*Slot)(unsafe.Pointer(&b[slotsAt])), slots)
	m.Nodes = unsafe.Slice((*space.Entry)(unsafe.Pointer(&b[nodesAt])), nodes*space.Fan)
	m.Raw = b[m.rawAt : m.rawAt+RawBuffers*page : m.rawAt+RawBuffers*page]
	m.Arena = b[m.arenaAt : m.arenaAt+arena : m.arenaAt+arena]
	// The ring takes what read(2) hands over: it must never be short of memory.
	if err := unix.Madvise(b[ringAt:ringAt+RingSlots*uint64(unsafe.Sizeof(Event{}))], unix.MADV_POPULATE_WRITE); err != nil {
		_ = unix.Munmap(b)
		return nil, fmt.Errorf("populate the event ring: %w", err)
	}
	_ = unix.Mlock(b[ringAt : ringAt+RingSlots*uint64(unsafe.Sizeof(Event{}))]) // best effort: memfds are only swapped where there is swap
	if fresh {
		m.Header.Version = Version
		m.Header.ListenerFD = -1
		m.Header.Magic = Magic
		return m, nil
	}
	if m.Header.Magic != Magic || m.Header.Version != Version {
		_ = unix.Munmap(b)
		return nil, errors.New("state of a container is not farpage's or of another version")
	}
	return m, nil
}

// Close unmaps the state; the descriptor is the caller's.
func (m *Memory) Close() error {
	if m.mapping == nil {
		return nil
	}
	b := m.mapping
	m.mapping = nil
	return unix.Munmap(b)
}

// Runs returns the command of a Proc.
func (m *Memory) Runs(proc int) []Run {
	return m.runs[proc*RunsMax : (proc+1)*RunsMax]
}

// secondHalf, in Header.ConfigLen, says which half of its memory holds the
// configuration: a new one is written beside the old one.
const secondHalf = 1 << 31

// SetConfig stores the container's configuration, at once or not at all.
func (m *Memory) SetConfig(b []byte) error {
	half := len(m.config) / 2
	if len(b) > half {
		return fmt.Errorf("configuration of a container has %d bytes, more than %d", len(b), half)
	}
	to, mark := m.config[half:], uint32(secondHalf)
	if m.Header.ConfigLen&secondHalf != 0 {
		to, mark = m.config[:half], 0
	}
	copy(to, b)
	m.Header.ConfigLen = uint32(len(b)) | mark
	return nil
}

// Config returns what SetConfig stored.
func (m *Memory) Config() []byte {
	half := len(m.config) / 2
	from := m.config[:half]
	if m.Header.ConfigLen&secondHalf != 0 {
		from = m.config[half:]
	}
	return from[:min(int(m.Header.ConfigLen&^secondHalf), half)]
}

// RawPage returns a raw buffer by its number.
func (m *Memory) RawPage(i uint32) []byte {
	return m.Raw[uint64(i)*page : uint64(i+1)*page : uint64(i+1)*page]
}

// ReleaseArena gives memory behind the arena back to the kernel.
func (m *Memory) ReleaseArena(offset, length int64) error {
	return unix.Fallocate(m.FD, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(m.arenaAt)+offset, length)
}

// ReleaseRaw gives all raw buffers back to the kernel. Preconditions: none is in use.
func (m *Memory) ReleaseRaw() error {
	return unix.Fallocate(m.FD, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(m.rawAt), int64(RawBuffers*page))
}

package target

import (
	"encoding/binary"
	"errors"
	"os"
	"runtime"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ringPages is the size of a CPU's ring, a power of two, in pages.
const ringPages = 8

// Mmaps tells of what a process and its descendants map, as it happens: perf
// records of a dummy software event (PERF_RECORD_MMAP2 of
// include/uapi/linux/perf_event.h). There is no userfaultfd event for that.
//
// Threads that are alive when it is opened are not covered, save the one that is
// named; what they create later is not either. Growing and moving by mremap, and
// growth of a stack, leave no record. The kernel drops the event when a covered
// process executes a set-uid program.
type Mmaps struct {
	fds   []int
	rings [][]byte
	buf   []byte
}

// Mapping is one record.
type Mapping struct {
	Pid        int32
	Start, End uint64
	Anonymous  bool
	Private    bool
}

// WatchMmaps begins to watch a process (by the thread of that id) and all that it
// creates from now on. Needs CAP_PERFMON. The caller closes it.
func WatchMmaps(pid int) (*Mmaps, error) {
	m := &Mmaps{}
	// An inherited event has no ring for all CPUs together: one for each.
	for cpu := range possibleCPUs() {
		attr := unix.PerfEventAttr{
			Type: unix.PERF_TYPE_SOFTWARE, Config: unix.PERF_COUNT_SW_DUMMY,
			Size: uint32(unsafe.Sizeof(unix.PerfEventAttr{})),
			Bits: unix.PerfBitInherit | unix.PerfBitMmap | unix.PerfBitMmapData | unix.PerfBitMmap2 |
				unix.PerfBitWatermark | unix.PerfBitExcludeKernel,
			Wakeup: 1, // bytes: wakeup_events never wakes for these records
		}
		fd, err := unix.PerfEventOpen(&attr, pid, cpu, -1, unix.PERF_FLAG_FD_CLOEXEC)
		if errors.Is(err, unix.ENODEV) {
			continue // this CPU is offline
		}
		if err != nil {
			m.Close()
			return nil, os.NewSyscallError("perf_event_open", err)
		}
		m.fds = append(m.fds, fd)
		ring, err := unix.Mmap(fd, 0, (1+ringPages)*pageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		if err != nil {
			m.Close()
			return nil, os.NewSyscallError("mmap of a perf ring", err)
		}
		m.rings = append(m.rings, ring)
	}
	if len(m.fds) == 0 {
		return nil, errors.New("target: no CPU to watch")
	}
	return m, nil
}

func possibleCPUs() int { return max(runtime.NumCPU(), onlineCPUs()) }

func onlineCPUs() int {
	var set unix.CPUSet
	if unix.SchedGetaffinity(1, &set) != nil {
		return 0
	}
	top := 0
	for i := range len(set) * 64 {
		if set.IsSet(i) {
			top = i + 1
		}
	}
	return top
}

// FDs are the descriptors that become readable when there are records; they stay
// the watch's own.
func (m *Mmaps) FDs() []int { return m.fds }

// Read calls visit for the records since the last call. lost says that some are
// missing: what is mapped has to be looked at as a whole.
func (m *Mmaps) Read(visit func(Mapping)) (lost bool) {
	const dataHead, dataTail = 1024, 1032 // struct perf_event_mmap_page
	for _, ring := range m.rings {
		head := atomic.LoadUint64((*uint64)(unsafe.Pointer(&ring[dataHead])))
		tailWord := (*uint64)(unsafe.Pointer(&ring[dataTail]))
		tail := atomic.LoadUint64(tailWord)
		data := ring[pageSize:]
		for tail < head {
			size := uint64(binary.LittleEndian.Uint16(data[(tail+6)%uint64(len(data)):]))
			if size < 8 || size > head-tail {
				lost = true
				break
			}
			m.buf = m.buf[:0]
			for i := range size {
				m.buf = append(m.buf, data[(tail+i)%uint64(len(data))])
			}
			r, ok, missing := parseRecord(m.buf)
			lost = lost || missing
			if ok {
				visit(r)
			}
			tail += size
		}
		atomic.StoreUint64(tailWord, head)
	}
	return lost
}

// parseRecord decodes one record with its header.
func parseRecord(b []byte) (m Mapping, ok, lost bool) {
	const (
		recordLost  = 2
		recordMmap2 = 10
		fixed       = 8 + 4 + 4 + 8 + 8 + 8 + 24 + 4 + 4 // up to the file name
	)
	switch binary.LittleEndian.Uint32(b) {
	case recordLost:
		return m, false, true
	case recordMmap2:
	default:
		return m, false, false
	}
	if len(b) < fixed {
		return m, false, true
	}
	m.Pid = int32(binary.LittleEndian.Uint32(b[8:]))
	m.Start = binary.LittleEndian.Uint64(b[16:])
	m.End = m.Start + binary.LittleEndian.Uint64(b[24:])
	inode := binary.LittleEndian.Uint64(b[48:])
	flags := binary.LittleEndian.Uint32(b[68:])
	name := b[fixed:]
	for i, c := range name {
		if c == 0 {
			name = name[:i]
			break
		}
	}
	m.Anonymous = inode == 0 && (string(name) == "//anon" || string(name) == "[heap]")
	m.Private = flags&unix.MAP_PRIVATE != 0
	return m, m.Start < m.End, false
}

// Close ends the watch.
func (m *Mmaps) Close() {
	for _, r := range m.rings {
		_ = unix.Munmap(r)
	}
	for _, fd := range m.fds {
		_ = unix.Close(fd)
	}
	m.rings, m.fds = nil, nil
}

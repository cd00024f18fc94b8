package state

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// MaxContainers is how many containers one agent serves at most.
const MaxContainers = 4000

// rootTable is the agent's table of containers: the state descriptor of each.
type rootTable struct {
	Magic   uint64
	Version uint32
	_       uint32
	FDs     [MaxContainers]int32 // plus one; 0: free
}

const rootMagic uint64 = 0x31544f4f52505246 // "FRPROOT1"

// Root is the mapped table of containers.
type Root struct {
	FD int
	t  *rootTable
	b  []byte
}

const rootBytes = (unsafe.Sizeof(rootTable{}) + 4095) &^ 4095

// NewRoot makes an empty table. The descriptor is the caller's.
func NewRoot() (*Root, error) {
	fd, err := unix.MemfdCreate("farpage-root", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make the table of containers: %w", err)
	}
	if err := unix.Ftruncate(fd, int64(rootBytes)); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("size the table of containers: %w", err)
	}
	r, err := mapRoot(fd)
	if err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	r.t.Version = Version
	r.t.Magic = rootMagic
	return r, nil
}

// OpenRoot maps the table that a dead agent has left.
func OpenRoot(fd int) (*Root, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("stat the table of containers: %w", err)
	}
	if st.Size != int64(rootBytes) {
		return nil, errors.New("the table of containers is of another version")
	}
	r, err := mapRoot(fd)
	if err != nil {
		return nil, err
	}
	if r.t.Magic != rootMagic || r.t.Version != Version {
		return nil, errors.New("the table of containers is not farpage's or of another version")
	}
	return r, nil
}

func mapRoot(fd int) (*Root, error) {
	b, err := unix.Mmap(fd, 0, int(rootBytes), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map the table of containers: %w", err)
	}
	return &Root{FD: fd, t: (*rootTable)(unsafe.Pointer(&b[0])), b: b}, nil
}

// Add enters a container's state.
func (r *Root) Add(stateFD int) error {
	for i := range r.t.FDs {
		if r.t.FDs[i] == 0 {
			r.t.FDs[i] = int32(stateFD) + 1
			return nil
		}
	}
	return fmt.Errorf("more than %d containers", MaxContainers)
}

// Remove takes a container's state out, before its descriptor is closed.
func (r *Root) Remove(stateFD int) {
	for i := range r.t.FDs {
		if r.t.FDs[i] == int32(stateFD)+1 {
			r.t.FDs[i] = 0
		}
	}
}

// StateFDs returns the descriptors of all containers' states.
func (r *Root) StateFDs() []int {
	var fds []int
	for _, v := range r.t.FDs {
		if v > 0 {
			fds = append(fds, int(v)-1)
		}
	}
	return fds
}

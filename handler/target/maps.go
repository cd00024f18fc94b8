package target

import (
	"bytes"
	"errors"
	"fmt"
	"syscall"
)

// VMA is one line of /proc/PID/maps.
type VMA struct {
	Start, End uint64
	Readable   bool
	Writable   bool
	Executable bool
	Shared     bool
	File       bool // has an inode
	Name       []byte
}

// Flags are the two-letter VmFlags of /proc/PID/smaps that matter here.
type Flags struct {
	Registered  bool // um: a userfaultfd in missing mode watches it
	WipeOnFork  bool // wf
	DontCopy    bool // dc
	Locked      bool // lo
	HugePages   bool // hg
	NoHugePages bool // nh
}

// ErrGone says that the memory is no more (its last user exited or called exec).
var ErrGone = errors.New("target: the memory is gone")

// Reader reads proc files into a buffer that it keeps.
type Reader struct{ buf []byte }

func (r *Reader) prepare() {
	if r.buf == nil {
		r.buf = make([]byte, 128<<10)
	}
}

// All reads a proc file from its beginning. The result is valid until the next
// call. The file position is not used.
func (r *Reader) All(fd int) ([]byte, error) {
	r.prepare()
	n := 0
	for {
		if n == len(r.buf) {
			r.buf = append(r.buf, make([]byte, len(r.buf))...)
		}
		k, err := syscall.Pread(fd, r.buf[n:], int64(n))
		if err == syscall.EINTR {
			continue
		}
		if err == syscall.ESRCH {
			return nil, ErrGone
		}
		if err != nil {
			return nil, err
		}
		if k == 0 {
			break
		}
		n += k
	}
	if n == 0 {
		return nil, ErrGone
	}
	return r.buf[:n], nil
}

// Record reads a proc file that is one record: the kernel gives all of it at once
// (single_open in fs/seq_file.c). The result is valid until the next call.
func (r *Reader) Record(fd int) ([]byte, error) {
	r.prepare()
	for {
		n, err := syscall.Pread(fd, r.buf, 0)
		switch {
		case err == syscall.EINTR:
			continue
		case err == syscall.ESRCH, err == nil && n == 0:
			return nil, ErrGone
		case err != nil:
			return nil, err
		}
		return r.buf[:n], nil
	}
}

// Maps calls visit for each mapping in text, the content of /proc/PID/maps.
func Maps(text []byte, visit func(VMA)) error {
	for len(text) > 0 {
		line := text
		if i := bytes.IndexByte(text, '\n'); i >= 0 {
			line, text = text[:i], text[i+1:]
		} else {
			text = nil
		}
		v, ok := parseVMA(line)
		if !ok {
			return fmt.Errorf("target: not a line of /proc/PID/maps: %q", line)
		}
		visit(v)
	}
	return nil
}

// parseVMA parses "start-end perms offset dev inode   name".
func parseVMA(line []byte) (v VMA, ok bool) {
	var rest []byte
	if v.Start, rest, ok = hex(line); !ok || len(rest) == 0 || rest[0] != '-' {
		return v, false
	}
	if v.End, rest, ok = hex(rest[1:]); !ok || len(rest) < 6 || rest[0] != ' ' {
		return v, false
	}
	v.Readable, v.Writable, v.Executable, v.Shared = rest[1] == 'r', rest[2] == 'w', rest[3] == 'x', rest[4] == 's'
	rest = rest[5:]
	for range 2 { // offset, device
		rest = bytes.TrimLeft(rest, " ")
		i := bytes.IndexByte(rest, ' ')
		if i < 0 {
			return v, false
		}
		rest = rest[i:]
	}
	rest = bytes.TrimLeft(rest, " ")
	if len(rest) == 0 {
		return v, false
	}
	v.File = rest[0] != '0'
	for len(rest) > 0 && rest[0] != ' ' {
		rest = rest[1:]
	}
	v.Name = bytes.TrimLeft(rest, " ")
	return v, v.Start < v.End
}

func hex(b []byte) (n uint64, rest []byte, ok bool) {
	i := 0
	for ; i < len(b) && i < 17; i++ {
		c := b[i]
		switch {
		case c >= '0' && c <= '9':
			n = n<<4 | uint64(c-'0')
		case c >= 'a' && c <= 'f':
			n = n<<4 | uint64(c-'a'+10)
		default:
			return n, b[i:], i > 0
		}
	}
	return n, b[i:], i > 0 && i < 17
}

// Smaps calls visit for each mapping in text, the content of /proc/PID/smaps.
func Smaps(text []byte, visit func(VMA, Flags)) error {
	var at VMA
	have := false
	for len(text) > 0 {
		line := text
		if i := bytes.IndexByte(text, '\n'); i >= 0 {
			line, text = text[:i], text[i+1:]
		} else {
			text = nil
		}
		if v, ok := parseVMA(line); ok {
			at, have = v, true
			continue
		}
		flags, ok := bytes.CutPrefix(line, []byte("VmFlags:"))
		if !ok || !have {
			continue
		}
		var f Flags
		for _, w := range bytes.Fields(flags) {
			switch string(w) {
			case "um":
				f.Registered = true
			case "wf":
				f.WipeOnFork = true
			case "dc":
				f.DontCopy = true
			case "lo":
				f.Locked = true
			case "hg":
				f.HugePages = true
			case "nh":
				f.NoHugePages = true
			}
		}
		visit(at, f)
		have = false
	}
	return nil
}

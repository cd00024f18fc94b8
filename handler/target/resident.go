package target

import (
	"bytes"
	"errors"
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// field finds "name <spaces> number" at the beginning of a line.
func field(text []byte, name string) (int64, bool) {
	for len(text) > 0 {
		line := text
		if i := bytes.IndexByte(text, '\n'); i >= 0 {
			line, text = text[:i], text[i+1:]
		} else {
			text = nil
		}
		rest, ok := bytes.CutPrefix(line, []byte(name))
		if !ok || len(rest) == 0 || rest[0] != ' ' && rest[0] != '\t' {
			continue
		}
		rest = bytes.TrimLeft(rest, " \t")
		n, digits := int64(0), 0
		for ; digits < len(rest) && rest[digits] >= '0' && rest[digits] <= '9'; digits++ {
			n = n*10 + int64(rest[digits]-'0')
		}
		return n, digits > 0
	}
	return 0, false
}

// CgroupAnon returns the bytes of anonymous memory of a memory cgroup and its
// children from an open memory.stat: `anon` (v2), `total_rss` (v1).
func (r *Reader) CgroupAnon(memoryStat int) (int64, error) {
	text, err := r.Record(memoryStat)
	if err != nil {
		return 0, err
	}
	if n, ok := field(text, "anon"); ok {
		return n, nil
	}
	if n, ok := field(text, "total_rss"); ok {
		return n, nil
	}
	return 0, errors.New("target: memory.stat has neither anon nor total_rss")
}

// RssAnon returns the bytes of anonymous memory that a process has resident, from
// /proc/PID/status: exact, unlike statm. Pages shared after a fork count in each.
func (r *Reader) RssAnon(pid int) (int64, error) { return r.kilobytes(pid, "status", "RssAnon:") }

// PssAnon returns a process's share of anonymous memory in bytes, from
// /proc/PID/smaps_rollup: pages shared after a fork count in proportion. The kernel walks
// the memory for that, and counts twice what is moved meanwhile from where it has been to
// where it comes to, so it is at most what RssAnon was before or after.
func (r *Reader) PssAnon(pid int) (int64, error) {
	before, err := r.RssAnon(pid)
	if err != nil {
		return 0, err
	}
	share, err := r.kilobytes(pid, "smaps_rollup", "Pss_Anon:")
	if err != nil {
		return 0, err
	}
	after, err := r.RssAnon(pid)
	if err != nil {
		return 0, err
	}
	return min(share, max(before, after)), nil
}

// kilobytes is a field of a process's file. Where the process's first thread has ended
// before the others, only theirs tell.
func (r *Reader) kilobytes(pid int, file, name string) (int64, error) {
	dir := "/proc/" + strconv.Itoa(pid) + "/"
	n, err := r.kilobytesIn(dir+file, name)
	if !errors.Is(err, ErrGone) {
		return n, err
	}
	threads, _ := os.ReadDir(dir + "task") // of a process that is gone there are none
	for _, t := range threads {
		if n, err := r.kilobytesIn(dir+"task/"+t.Name()+"/"+file, name); err == nil {
			return n, nil
		}
	}
	return 0, ErrGone
}

func (r *Reader) kilobytesIn(path, name string) (int64, error) {
	fd, err := syscall.Open(path, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ESRCH) {
		return 0, ErrGone
	}
	if err != nil {
		return 0, err
	}
	defer syscall.Close(fd)
	text, err := r.Record(fd)
	if err != nil {
		return 0, err
	}
	n, ok := field(text, name)
	if !ok {
		return 0, ErrGone // a zombie has no memory to tell of
	}
	return n << 10, nil
}

// MappedBytes returns how much address space a process has, from an open
// /proc/PID/statm: it changes whenever something is mapped or grows.
func (r *Reader) MappedBytes(statm int) (int64, error) {
	text, err := r.Record(statm)
	if err != nil {
		return 0, err
	}
	n := int64(0)
	for _, c := range text {
		if c < '0' || c > '9' {
			break
		}
		n = n*10 + int64(c-'0')
	}
	return n * pageSize, nil
}

// Command returns a process's command name, empty when it is gone.
func Command(pid int) string {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/comm")
	if err != nil {
		return ""
	}
	return string(bytes.TrimSpace(b))
}

// StartTime returns when a process started, in clock ticks after boot: with the
// pid it names a process for good. 0 when it is gone.
func StartTime(pid int) uint64 {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0
	}
	i := bytes.LastIndexByte(b, ')')
	if i < 0 {
		return 0
	}
	f := bytes.Fields(b[i+1:])
	if len(f) < 20 {
		return 0
	}
	n, err := strconv.ParseUint(string(f[19]), 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// Ended says whether nothing of a process runs any more: it is gone, or all of its
// threads are zombies that somebody has yet to wait for.
func Ended(pid int) bool {
	dir, err := unix.Open("/proc/"+strconv.Itoa(pid)+"/task", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return true
	}
	defer func() { _ = unix.Close(dir) }()
	tids := make([]int32, 4096)
	n, more, err := Tasks(dir, tids)
	if err != nil || more {
		return err != nil
	}
	for _, tid := range tids[:n] {
		if ended, _ := Zombie(dir, tid); !ended {
			return false
		}
	}
	return true
}

// Zombie says whether a thread has ended, by an open /proc/PID/task, and with which
// status. The first thread of a process stays so until the others have ended too.
func Zombie(taskDir int, tid int32) (ended bool, status uint8) {
	fd, err := unix.Openat(taskDir, strconv.Itoa(int(tid))+"/stat", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return true, 0
	}
	defer func() { _ = unix.Close(fd) }()
	var buf [1024]byte
	n, err := unix.Read(fd, buf[:])
	if err != nil {
		return true, 0
	}
	i := bytes.LastIndexByte(buf[:n], ')')
	if i < 0 || i+2 >= n || buf[i+2] != 'Z' && buf[i+2] != 'X' {
		return false, 0
	}
	f := bytes.Fields(buf[i+2 : n])
	code, err := strconv.Atoi(string(f[len(f)-1])) // exit_code, as wait(2) has it
	if err != nil {
		return true, 0
	}
	return true, uint8(code >> 8)
}

package uffd

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/farpage/farpage/internal/need"
	"golang.org/x/sys/unix"
)

// seedPages is how many pages testdata/seed.c maps.
const seedPages = 16

// seedPatience is how long anything may take: the machine may be busy.
const seedPatience = 30 * time.Second

// seed is the program testdata/seed.c, whose pages the test serves.
type seed struct {
	t     *testing.T
	pid   int
	fd    int    // its userfaultfd, ours
	base  uint64 // of its pages
	input io.Writer
	lines chan string
}

// startSeed starts the program and takes its userfaultfd.
func startSeed(t *testing.T, path string) *seed {
	t.Helper()
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	theirs := os.NewFile(uintptr(ends[1]), "socket")
	defer unix.Close(ends[0])
	s := &seed{t: t, lines: make(chan string, 16)}
	command := exec.Command(path)
	command.Stderr = os.Stderr
	command.ExtraFiles = []*os.File{theirs}
	if s.input, err = command.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	output, err := command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	err = command.Start()
	_ = theirs.Close()
	if err != nil {
		t.Fatal(err)
	}
	s.pid = command.Process.Pid
	t.Cleanup(func() {
		_ = command.Process.Kill()
		_ = command.Wait()
	})
	go func() {
		defer close(s.lines)
		for lines := bufio.NewScanner(output); lines.Scan(); {
			s.lines <- lines.Text()
		}
	}()
	s.take(ends[0])
	return s
}

// take receives the userfaultfd and the address of the pages.
func (s *seed) take(socket int) {
	s.t.Helper()
	var address [8]byte
	control := make([]byte, unix.CmsgSpace(4))
	n, controlBytes, _, _, err := unix.Recvmsg(socket, address[:], control, unix.MSG_CMSG_CLOEXEC)
	if err != nil || n != len(address) {
		s.t.Fatalf("%d bytes of the program, %v", n, err)
	}
	messages, err := unix.ParseSocketControlMessage(control[:controlBytes])
	if err != nil || len(messages) != 1 {
		s.t.Fatalf("%d messages, %v", len(messages), err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		s.t.Fatalf("descriptors %v, %v", fds, err)
	}
	s.fd, s.base = fds[0], binary.LittleEndian.Uint64(address[:])
	s.t.Cleanup(func() { _ = unix.Close(s.fd) })
}

func (s *seed) page(i uint64) uint64 { return s.base + i*PageSize }

func (s *seed) tell(format string, arguments ...any) {
	s.t.Helper()
	if _, err := fmt.Fprintf(s.input, format+"\n", arguments...); err != nil {
		s.t.Fatal(err)
	}
}

// answers says what the program answers next.
func (s *seed) answers(want string) {
	s.t.Helper()
	if got := s.answer(); got != want {
		s.t.Fatalf("the program answers %q, want %q", got, want)
	}
}

func (s *seed) answer() string {
	s.t.Helper()
	select {
	case line, ok := <-s.lines:
		if !ok {
			s.t.Fatal("the program has ended")
		}
		return line
	case <-time.After(seedPatience):
		s.t.Fatal("the program does not answer")
	}
	return ""
}

// silent says that the program waits: it has not answered.
func (s *seed) silent() {
	s.t.Helper()
	select {
	case line := <-s.lines:
		s.t.Fatalf("the program answers %q before it can", line)
	default:
	}
}

// event waits for a userfaultfd to have one, and reads it.
func (s *seed) event(fd int, want uint8) *Msg {
	s.t.Helper()
	poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	n, err := unix.Poll(poll, int(seedPatience.Milliseconds()))
	if err == unix.EINTR {
		return s.event(fd, want)
	}
	if err != nil || n != 1 || poll[0].Revents != unix.POLLIN {
		s.t.Fatalf("poll: %d, %v, events %#x", n, err, poll[0].Revents)
	}
	s.silent()
	m := &Msg{}
	if e := Read(fd, m); e != 0 || m.Event != want {
		s.t.Fatalf("event %#x, %v: want %#x", m.Event, e, want)
	}
	return m
}

// faults waits for a thread that reads a page that is missing.
func (s *seed) faults(fd int, page uint64) {
	s.t.Helper()
	flags, address, _ := s.event(fd, EventPagefault).Fault()
	if address != page || flags&(FaultWrite|FaultWP) != 0 {
		s.t.Fatalf("fault at %#x with flags %#x, want one at %#x that reads", address, flags, page)
	}
}

// quiet says that there is nothing to be read.
func (s *seed) quiet(fds ...int) {
	s.t.Helper()
	for _, fd := range fds {
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		if n, err := unix.Poll(poll, 0); n != 0 || err != nil {
			s.t.Fatalf("poll: %d, %v, events %#x: want nothing", n, err, poll[0].Revents)
		}
	}
}

// copies gives a page that is full of one word.
func (s *seed) copies(fd int, page, word uint64) {
	s.t.Helper()
	s.gives(fd, page, pageOf(word))
}

func (s *seed) gives(fd int, page uint64, bytes []byte) {
	s.t.Helper()
	if done, e := Copy(fd, page, bytes, 0); e != 0 || done != PageSize {
		s.t.Fatalf("UFFDIO_COPY to %#x: %d bytes, %v", page, done, e)
	}
}

func (s *seed) zeros(fd int, page uint64) {
	s.t.Helper()
	if done, e := Zero(fd, page, PageSize, 0); e != 0 || done != PageSize {
		s.t.Fatalf("UFFDIO_ZEROPAGE to %#x: %d bytes, %v", page, done, e)
	}
}

func pageOf(word uint64) []byte {
	page := make([]byte, PageSize)
	for at := 0; at < PageSize; at += 8 {
		binary.LittleEndian.PutUint64(page[at:], word)
	}
	return page
}

// A handler and a program in two processes go through what a userfaultfd is for: the
// handshake, registering, faults answered with bytes and with zeros, a child, and pages
// evicted by mremap(MREMAP_DONTUNMAP), which one thread of the program calls while the
// other is stopped.
func TestHandlerServesAnotherProcessAndItsChildAndGivesBackWhatItEvicts(t *testing.T) {
	need.Root(t, "userfaultfd with fork events")
	path := filepath.Join(t.TempDir(), "seed")
	if out, err := exec.Command(need.Program(t, "gcc"), "-O1", "-Wall", "-Wextra", "-Werror", "-pthread", "-o", path, "testdata/seed.c").CombinedOutput(); err != nil {
		t.Fatalf("gcc: %v\n%s", err, out)
	}
	for _, test := range []struct {
		name   string
		remaps bool // the handler asks to be told of them
	}{{"told of forks", false}, {"told of forks and remaps", true}} {
		t.Run(test.name, func(t *testing.T) {
			s := startSeed(t, path)
			s.register(test.remaps)
			s.serve()
			s.serveChild()
			s.evict(test.remaps)
		})
	}
}

func (s *seed) register(remaps bool) {
	s.t.Helper()
	features := uint64(FeatureEventFork)
	if remaps {
		features |= FeatureEventRemap
	}
	if has, e := API(s.fd, features); e != 0 || has&features != features {
		s.t.Fatalf("UFFDIO_API: features %#x, %v", has, e)
	}
	if e := Register(s.fd, s.base, seedPages*PageSize, ModeMissing); e != 0 {
		s.t.Fatalf("UFFDIO_REGISTER: %v", e)
	}
	s.quiet(s.fd)
}

// serve answers one fault with bytes and one with zeros; what is there is no fault.
func (s *seed) serve() {
	s.t.Helper()
	s.tell("read %x", s.page(0))
	s.faults(s.fd, s.page(0))
	s.copies(s.fd, s.page(0), 0x11)
	s.answers("read 0x11")

	s.tell("read %x", s.page(1))
	s.faults(s.fd, s.page(1))
	s.zeros(s.fd, s.page(1))
	s.answers("read 0")

	for page, word := range []string{"0x11", "0"} {
		s.tell("read %x", s.page(uint64(page)))
		s.answers("read " + word)
	}
	s.quiet(s.fd)
}

// serveChild answers a child's fault by the child's own userfaultfd, with other bytes
// than its parent's.
func (s *seed) serveChild() {
	s.t.Helper()
	s.tell("fork %x", s.page(2))
	child := s.event(s.fd, EventFork).ForkFD()
	defer func() { _ = unix.Close(child) }()
	s.faults(child, s.page(2))
	s.quiet(s.fd)
	s.copies(child, s.page(2), 0x22)
	s.answers("read 0x22")

	s.tell("read %x", s.page(2))
	s.faults(s.fd, s.page(2))
	s.copies(s.fd, s.page(2), 0x33)
	s.answers("read 0x33")

	s.tell("fork %x", s.page(0)) // which it has by itself
	second := s.event(s.fd, EventFork).ForkFD()
	defer func() { _ = unix.Close(second) }()
	s.answers("read 0x11")
	s.quiet(s.fd, second)
	for _, fd := range []int{child, second} {
		s.gone(fd)
	}
}

// gone waits until a userfaultfd says that its memory is no more.
func (s *seed) gone(fd int) {
	s.t.Helper()
	for deadline := time.Now().Add(seedPatience); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if _, gone := Quiet(fd, 0x10000); gone {
			return
		}
	}
	s.t.Fatal("the child's memory is still there")
}

// evict has the program's second thread move two pages away, of which one was never
// there, saves the other's bytes, and gives them back when the first thread needs them.
func (s *seed) evict(remaps bool) {
	s.t.Helper()
	s.tell("read %x", s.page(4))
	s.faults(s.fd, s.page(4))
	s.copies(s.fd, s.page(4), 0x44)
	s.answers("read 0x44")

	s.tell("evict %x 2", s.page(4))
	var from, to, length uint64
	if remaps {
		// The call returns when it was told of.
		from, to, length = s.event(s.fd, EventRemap).Remap()
		if from != s.page(4) || length != 2*PageSize {
			s.t.Fatalf("%d bytes went from %#x, want 2 pages from %#x", length, from, s.page(4))
		}
	}
	at, found := strings.CutPrefix(s.answer(), "at ")
	buffer, err := strconv.ParseUint(at, 0, 64)
	if !found || err != nil || remaps && buffer != to {
		s.t.Fatalf("the pages are at %q, %v; told was %#x", at, err, to)
	}
	s.quiet(s.fd)
	saved := s.peek(buffer)

	// Where the pages went is watched as well if that was told of, else nobody watches it.
	s.tell("read %x", buffer+PageSize)
	if remaps {
		s.faults(s.fd, buffer+PageSize)
		s.zeros(s.fd, buffer+PageSize)
	}
	s.answers("read 0")
	s.quiet(s.fd)
	s.tell("unmap %x 2", buffer)
	s.answers("unmapped")

	s.tell("read %x", s.page(4))
	s.faults(s.fd, s.page(4))
	s.gives(s.fd, s.page(4), saved)
	s.answers("read 0x44")
	for page, word := range map[uint64]string{0: "0x11", 1: "0", 2: "0x33"} {
		s.tell("read %x", s.page(page))
		s.answers("read " + word)
	}
	s.quiet(s.fd)
}

// peek reads a page of the program's from outside.
func (s *seed) peek(address uint64) []byte {
	s.t.Helper()
	memory, err := os.Open(fmt.Sprintf("/proc/%d/mem", s.pid))
	if err != nil {
		s.t.Fatal(err)
	}
	defer memory.Close()
	page := make([]byte, PageSize)
	if _, err := memory.ReadAt(page, int64(address)); err != nil {
		s.t.Fatalf("read the page that was evicted: %v", err)
	}
	return page
}

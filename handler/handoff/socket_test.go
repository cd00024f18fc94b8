package handoff

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// pair makes a connected pair of sockets as helper and agent have them.
func pair(t *testing.T) (helper, agent int) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, fd := range fds {
			if fd >= 0 {
				_ = unix.Close(fd)
			}
		}
	})
	return fds[0], fds[1]
}

// openFDs counts the descriptors of this process.
func openFDs(t *testing.T) int {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(fds)
}

// send sends bytes and copies of n descriptors of one file.
func send(t *testing.T, socket int, b []byte, n int) {
	t.Helper()
	fd, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	var oob []byte
	if n > 0 {
		fds := make([]int, n)
		for i := range fds {
			fds[i] = fd
		}
		oob = unix.UnixRights(fds...)
	}
	if err := unix.Sendmsg(socket, b, oob, nil, 0); err != nil {
		t.Fatal(err)
	}
}

func TestReceiveKeepsTheFirstDescriptorAndClosesTheOthers(t *testing.T) {
	for _, n := range []int{0, 1, 2, maxFDs} {
		helper, agent := pair(t)
		send(t, helper, Message{Type: Uffd}.Append(nil), n)
		before := openFDs(t)
		m, fd, closed, err := Receive(agent)
		if err != nil || closed || m.Type != Uffd {
			t.Fatalf("%d descriptors: %+v, closed %v, %v", n, m, closed, err)
		}
		if (fd >= 0) != (n > 0) {
			t.Errorf("%d were sent, and descriptor %d came", n, fd)
		}
		if got, want := openFDs(t)-before, min(n, 1); got != want {
			t.Errorf("%d were sent, %d are open, want %d", n, got, want)
		}
		if fd < 0 {
			continue
		}
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
			t.Errorf("flags %#x, %v: what the agent starts would inherit it", flags, err)
		}
		_ = unix.Close(fd)
	}
}

func TestReceiveRefusesWhatIsNoMessageAndKeepsNoDescriptorOfIt(t *testing.T) {
	good := Message{Type: Uffd}.Append(nil)
	for _, c := range []struct {
		name  string
		bytes []byte
		fds   int
	}{
		{"a short one", good[:MessageSize-1], 2},
		{"one byte", good[:1], 1},
		{"a long one", append(Message{Type: Uffd}.Append(nil), 0), 3},
		{"a very long one", make([]byte, 60000), 1},
		{"one of another magic", make([]byte, MessageSize), 1},
		{"one with too many descriptors", good, maxFDs + 1},
		{"one with as many as fit", good, 253}, // SCM_MAX_FD
		{"an empty one with descriptors", nil, 2},
	} {
		helper, agent := pair(t)
		send(t, helper, c.bytes, c.fds)
		before := openFDs(t)
		_, fd, closed, err := Receive(agent)
		if !errors.Is(err, ErrMessage) || closed || fd != -1 {
			t.Errorf("%s: descriptor %d, closed %v, %v", c.name, fd, closed, err)
		}
		if n := openFDs(t) - before; n != 0 {
			t.Errorf("%s: %d descriptors are left", c.name, n)
		}
		// The next one is read as if nothing had been.
		send(t, helper, good, 0)
		if m, _, _, err := Receive(agent); err != nil || m.Type != Uffd {
			t.Errorf("after %s: %+v, %v", c.name, m, err)
		}
	}
}

func TestReceiveTellsNothingYetFromHungUp(t *testing.T) {
	helper, agent := pair(t)
	if _, fd, closed, err := Receive(agent); !errors.Is(err, unix.EAGAIN) || closed || fd != -1 {
		t.Errorf("nothing was sent: descriptor %d, closed %v, %v", fd, closed, err)
	}
	if Gone(agent) {
		t.Error("the peer is there and is taken for gone")
	}
	send(t, helper, Message{Type: Notice}.Append(nil), 0)
	if err := unix.Shutdown(helper, unix.SHUT_RDWR); err != nil {
		t.Fatal(err)
	}
	if !Gone(agent) {
		t.Error("the peer has hung up and is not taken for gone")
	}
	if m, _, closed, err := Receive(agent); err != nil || closed || m.Type != Notice {
		t.Errorf("what was sent before: %+v, closed %v, %v", m, closed, err)
	}
	if _, fd, closed, err := Receive(agent); err != nil || !closed || fd != -1 {
		t.Errorf("after the end: descriptor %d, closed %v, %v", fd, closed, err)
	}
}

func TestPeerThatDiesWithUnreadMessagesIsClosedNotAnError(t *testing.T) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fds[1])
	// The kernel answers with ECONNRESET once: the peer had not read this.
	if err := Send(fds[1], Message{Type: Armed}); err != nil {
		t.Fatal(err)
	}
	_ = unix.Close(fds[0])
	if _, fd, closed, err := Receive(fds[1]); err != nil || !closed || fd != -1 {
		t.Errorf("descriptor %d, closed %v, %v", fd, closed, err)
	}
	if !Gone(fds[1]) {
		t.Error("it is not taken for gone")
	}
	if err := Send(fds[1], Message{Type: Armed}); !errors.Is(err, unix.EPIPE) {
		t.Errorf("sending to it: %v, want EPIPE", err)
	}
}

func TestSendDoesNotWaitForAPeerThatDoesNotRead(t *testing.T) {
	_, agent := pair(t) // a socket that would block
	done := make(chan error, 1)
	go func() {
		for range 1 << 20 {
			if err := Send(agent, Message{Type: Armed}, 0); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	select {
	case err := <-done:
		if !errors.Is(err, unix.EAGAIN) {
			t.Errorf("a full socket: %v, want EAGAIN", err)
		}
	case <-time.After(20 * time.Second):
		t.Error("it waits")
	}
}

func TestListenOpensTheSocketToEveryUserOfTheContainer(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sock")
	fd, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o666 {
		t.Errorf("mode %v, %v: want 0666", info.Mode(), err)
	}
	// Nobody waits in accept, and connecting succeeds all the same.
	client, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(client)
	if err := unix.Connect(client, &unix.SockaddrUnix{Name: path}); err != nil {
		t.Error(err)
	}
	before := openFDs(t)
	long := filepath.Join(t.TempDir(), strings.Repeat("d", 100), "sock")
	for _, p := range []string{long, filepath.Join(t.TempDir(), "none", "sock"), path} {
		if fd, err := Listen(p); err == nil || fd != -1 {
			t.Errorf("%s: descriptor %d, %v", p, fd, err)
		}
	}
	if n := openFDs(t) - before; n != 0 {
		t.Errorf("%d descriptors are left of sockets that could not be made", n)
	}
}

func TestOnlyAUserfaultfdIsTakenForOne(t *testing.T) {
	null, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(null)
	event, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(event)
	// A file can have any name.
	path := filepath.Join(t.TempDir(), "anon_inode:[userfaultfd]")
	named, err := unix.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(named)
	for _, fd := range []int{null, event, named, -1} {
		if IsUserfaultfd(fd) {
			t.Errorf("descriptor %d is taken for one", fd)
		}
	}
}

func TestChannelCannotBeResizedByTheContainer(t *testing.T) {
	fd, err := NewChannel()
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	for _, size := range []int64{0, ChannelBytes - PageSize, ChannelBytes + PageSize} {
		if err := unix.Ftruncate(fd, size); !errors.Is(err, unix.EPERM) {
			t.Errorf("resizing to %d bytes: %v, want EPERM: the agent would get SIGBUS", size, err)
		}
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_WRITE); !errors.Is(err, unix.EPERM) {
		t.Errorf("sealing it against writes: %v, want EPERM", err)
	}
}

// The helper's side of the channel, for what the agent does with it.
func TestRaiseSaysWhetherTheHelperIsInsideAMove(t *testing.T) {
	fd, err := NewChannel()
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	agent, err := OpenPipe(fd)
	if err != nil {
		t.Fatal(err)
	}
	defer agent.Close()
	helper, err := OpenPipe(fd)
	if err != nil {
		t.Fatal(err)
	}
	defer helper.Close()
	agent.SetRun(0, 0x10000, 3, 5)
	agent.Publish(1, 1)
	stale := func() bool { return helper.c.Epoch != helper.c.CommandEpoch }
	if r := helper.c.Runs[0]; stale() || helper.c.Command != 1 || r.Addr != 0x10000 || r.Pages != 3 || r.First != 5 || r.Result != Pending {
		t.Fatalf("the helper sees %+v, stale %v", r, stale())
	}
	if agent.Raise() || !stale() || helper.c.Want != 0 {
		t.Errorf("nobody is inside: stale %v, want %d", stale(), helper.c.Want)
	}
	agent.SetRun(0, 0, 0, 0)
	if helper.c.Runs[0].Pages != 0 {
		t.Error("a run that was taken back is still there")
	}
	agent.Renew()
	if stale() {
		t.Error("the command is still out of date after Renew")
	}
	helper.c.InIoctl = 1
	if !agent.Raise() || helper.c.Want != 1 || !agent.Busy() {
		t.Errorf("the helper is inside: want %d, busy %v", helper.c.Want, agent.Busy())
	}
}

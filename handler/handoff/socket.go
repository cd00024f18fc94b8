package handoff

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// maxFDs is how many descriptors one message may bring; what comes beside the
// one that is asked for is closed.
const maxFDs = 8

// Listen makes the container's hand-off socket. Everybody in the container may
// connect. The descriptor is the caller's.
func Listen(path string) (int, error) {
	if len(path) >= 108 {
		return -1, fmt.Errorf("socket path %q is longer than 107 bytes: choose a shorter --socket-dir", path)
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("bind %s: %w", path, err)
	}
	if err := os.Chmod(path, 0o666); err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("open %s to the container: %w", path, err)
	}
	if err := unix.Listen(fd, 4096); err != nil {
		_ = unix.Close(fd)
		return -1, os.NewSyscallError("listen", err)
	}
	return fd, nil
}

// Receive reads one message without blocking: EAGAIN when there is none, EOF as
// closed. fd is -1 or the first descriptor that came with it, the caller's own;
// others are closed, and all of them on any error.
func Receive(socket int) (m Message, fd int, closed bool, err error) {
	var buf [MessageSize + 1]byte
	oob := make([]byte, unix.CmsgSpace(maxFDs*4))
	n, oobn, flags, _, err := unix.Recvmsg(socket, buf[:], oob, unix.MSG_CMSG_CLOEXEC|unix.MSG_DONTWAIT)
	if err != nil {
		if errors.Is(err, unix.ECONNRESET) {
			return m, -1, true, nil
		}
		return m, -1, false, err
	}
	fd = -1
	if msgs, e := unix.ParseSocketControlMessage(oob[:oobn]); e == nil {
		for i := range msgs {
			fds, e := unix.ParseUnixRights(&msgs[i])
			if e != nil {
				continue
			}
			for _, f := range fds {
				if fd < 0 {
					fd = f
				} else {
					_ = unix.Close(f)
				}
			}
		}
	}
	drop := func() {
		if fd >= 0 {
			_ = unix.Close(fd)
			fd = -1
		}
	}
	if n == 0 && oobn == 0 {
		drop()
		return m, -1, true, nil
	}
	if flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		drop()
		return m, -1, false, fmt.Errorf("%w: too long", ErrMessage)
	}
	m, err = Parse(buf[:n])
	if err != nil {
		drop()
	}
	return m, fd, false, err
}

// Send sends one message with descriptors, without blocking: a container that
// does not read its socket is told so by EAGAIN.
func Send(socket int, m Message, fds ...int) error {
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	err := unix.Sendmsg(socket, m.Append(nil), oob, nil, unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT)
	if err != nil {
		return os.NewSyscallError("sendmsg", err)
	}
	return nil
}

// IsUserfaultfd says whether a descriptor from a container is what it claims to
// be, without calling anything of its own that could block.
func IsUserfaultfd(fd int) bool {
	name, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	return err == nil && name == "anon_inode:[userfaultfd]"
}

// Gone says whether the peer has hung up.
func Gone(socket int) bool {
	p := []unix.PollFd{{Fd: int32(socket), Events: unix.POLLRDHUP}}
	n, err := unix.Poll(p, 0)
	return err != nil && !errors.Is(err, syscall.EINTR) || n > 0 && p[0].Revents&(unix.POLLHUP|unix.POLLRDHUP|unix.POLLERR) != 0
}

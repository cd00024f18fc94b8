package keeper

import (
	"fmt"
	"io"
	"math"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// Output takes standard output and error out of the descriptor table that a keeper
// shares, where they are pipes: who reads a pipe waits until nobody can write to it any
// more, and an engine takes a container for running until then. What is written to the
// result goes where standard error did, by a thread with a table of its own, which ends
// with the process, however that ends. Where none is a pipe the result is os.Stderr.
//
// To be called once, before Reserve and Spawn. os.Stdout and os.Stderr lead nowhere
// afterwards. Needs Linux 5.9 (close_range(2)).
func Output() (io.Writer, error) {
	if !isPipe(unix.Stdout) && !isPipe(unix.Stderr) {
		return os.Stderr, nil
	}
	o := &output{texts: make(chan []byte), results: make(chan error)}
	go o.run()
	if err := <-o.results; err != nil {
		return nil, err
	}
	null, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/null: %w", err)
	}
	for _, fd := range []int{unix.Stdout, unix.Stderr} {
		if err := unix.Dup3(null, fd, 0); err != nil {
			return nil, os.NewSyscallError("dup3", err)
		}
	}
	return o, unix.Close(null)
}

func isPipe(fd int) bool {
	var s unix.Stat_t
	return unix.Fstat(fd, &s) == nil && s.Mode&unix.S_IFMT == unix.S_IFIFO
}

// output is the way to the thread that has standard error.
type output struct {
	texts   chan []byte
	results chan error
}

// Write implements io.Writer for one caller at a time, as a logger is.
func (o *output) Write(text []byte) (int, error) {
	o.texts <- text
	if err := <-o.results; err != nil {
		return 0, err
	}
	return len(text), nil
}

// run is the thread. Go makes no other thread out of one that is locked.
func (o *output) run() {
	runtime.LockOSThread() // for ever
	if unix.Gettid() == unix.Getpid() {
		// The main thread's table is what others see as the process's (pidfd_getfd(2),
		// kcmp(2), /proc/PID/fd): another thread does it.
		defer runtime.UnlockOSThread()
		locked := make(chan struct{})
		go func() {
			runtime.LockOSThread()
			close(locked)
			o.run()
		}()
		<-locked
		return
	}
	// Its own table from here on, with standard error in it.
	err := unix.CloseRange(uint(unix.Stderr)+1, math.MaxUint32, unix.CLOSE_RANGE_UNSHARE)
	if err == nil {
		err = unix.Close(unix.Stdout)
	}
	if err != nil {
		o.results <- os.NewSyscallError("close_range", err)
		return
	}
	o.results <- nil
	for text := range o.texts {
		o.results <- writeAll(unix.Stderr, text)
	}
}

// writeAll writes to a descriptor that may not block.
func writeAll(fd int, text []byte) error {
	for len(text) > 0 {
		n, err := unix.Write(fd, text)
		switch err {
		case nil:
			text = text[n:]
		case unix.EINTR:
		case unix.EAGAIN:
			if _, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, -1); err != nil && err != unix.EINTR {
				return os.NewSyscallError("poll", err)
			}
		default:
			return os.NewSyscallError("write", err)
		}
	}
	return nil
}

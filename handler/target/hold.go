package target

import (
	"fmt"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// InEvent says whether a thread waits until the userfaultfd event that it has raised is
// read: by the kernel function that it sleeps in, which kernels with CONFIG_KALLSYMS name.
// taskDir is an open /proc/PID/task. Needs CAP_SYS_PTRACE.
func InEvent(taskDir int, tid int32) bool {
	in, err := readAt(taskDir, fmt.Sprintf("%d/wchan", tid))
	return err == nil && strings.HasPrefix(in, "userfaultfd_event_wait")
}

func readAt(dir int, name string) (string, error) {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer func() { _ = unix.Close(fd) }()
	var buf [512]byte
	n, err := unix.Read(fd, buf[:])
	return string(buf[:max(n, 0)]), err
}

// Hold has a thread stop when it is next about to return to its program, and not
// before: a thread that sleeps in the kernel where no signal wakes it ends its system
// call as if nothing had happened. The caller must stay on its OS thread and Release the
// thread from there; if that ends first, the kernel lets the held thread run.
func Hold(tid int32) error {
	if err := unix.PtraceSeize(int(tid)); err != nil {
		return os.NewSyscallError("ptrace(PTRACE_SEIZE)", err)
	}
	if err := unix.PtraceInterrupt(int(tid)); err != nil {
		_ = Release(tid)
		return os.NewSyscallError("ptrace(PTRACE_INTERRUPT)", err)
	}
	return nil
}

// si_code of SIGCHLD where a process has ended (siginfo.h).
const (
	cldExited = 1
	cldKilled = 2
	cldDumped = 3
)

// Release lets a held thread go on. false: it has not stopped yet; ask again.
func Release(tid int32) (released bool) {
	var status unix.WaitStatus
	if ownChild(int(tid)) {
		// Its exit is its parent's to wait for, which is elsewhere in this process. What
		// is traced is told of when it stops, too.
		var info unix.Siginfo
		err := unix.Waitid(unix.P_PID, int(tid), &info, unix.WEXITED|unix.WNOWAIT|unix.WNOHANG|unix.WALL, nil)
		if err == nil && info.Signo != 0 && (info.Code == cldExited || info.Code == cldKilled || info.Code == cldDumped) {
			return true
		}
	}
	got, err := unix.Wait4(int(tid), &status, unix.WALL|unix.WNOHANG, nil)
	if err == unix.EINTR || err == nil && got == 0 {
		return false
	}
	if err != nil || !status.Stopped() {
		return true // it has ended
	}
	// A signal that arrived first is handed on; a stop that is ptrace's own (its event is
	// in the bits above) is not a signal.
	signal := uintptr(0)
	if status>>16 == 0 {
		signal = uintptr(status.StopSignal())
	}
	_, _, _ = syscall.RawSyscall6(unix.SYS_PTRACE, unix.PTRACE_DETACH, uintptr(tid), 0, signal, 0, 0)
	return true
}

// ownChild says whether a thread is the first of a child of this process.
func ownChild(tid int) bool {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", tid))
	return err == nil && strings.Contains(string(status), fmt.Sprintf("\nTgid:\t%d\n", tid)) &&
		strings.Contains(string(status), fmt.Sprintf("\nPPid:\t%d\n", os.Getpid()))
}

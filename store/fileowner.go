package store

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// fileOwner is the process that uses a slot file. A lock would not say so: whoever
// shares the descriptors of an agent (its keeper does) holds its locks when it is
// long dead.
type fileOwner struct {
	pid       int64    // 0: nobody
	start     uint64   // field 22 of /proc/PID/stat, proc_pid_stat(5)
	namespace uint64   // inode of /proc/PID/ns/pid: where pid counts
	boot      [16]byte // start times begin anew with each boot
}

// thisProcess is who opens files here.
func thisProcess() (o fileOwner, err error) {
	o.pid = int64(os.Getpid())
	if o.start, _, err = readStat(o.pid); err != nil {
		return o, err
	}
	var st syscall.Stat_t
	if err := syscall.Stat("/proc/self/ns/pid", &st); err != nil {
		return o, &os.PathError{Op: "stat", Path: "/proc/self/ns/pid", Err: err}
	}
	o.namespace = st.Ino
	text, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return o, err
	}
	id, err := hex.DecodeString(strings.ReplaceAll(strings.TrimSpace(string(text)), "-", ""))
	if err != nil || len(id) != len(o.boot) {
		return o, fmt.Errorf("/proc/sys/kernel/random/boot_id is %q", text)
	}
	o.boot = [16]byte(id)
	return o, nil
}

// mayStillUse says why o may still read and write its file, as self sees it; nil:
// it cannot.
func (o fileOwner) mayStillUse(self fileOwner) error {
	switch {
	case o.pid == 0 || o.boot != self.boot:
		return nil
	case o == self:
		return errors.New("is in use by this process already")
	case o.namespace != self.namespace:
		return fmt.Errorf("was last used by an agent in another pid namespace (pid %d there), and from here one cannot see whether that has ended: make sure of it and remove the file", o.pid)
	}
	start, ended, err := readStat(o.pid)
	switch {
	case errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH):
		return nil
	case err != nil:
		return fmt.Errorf("was last used by pid %d, and one cannot see whether that has ended: %w", o.pid, err)
	case start != o.start || ended:
		return nil
	}
	return fmt.Errorf("is in use by another agent (pid %d): stop that, or choose another path", o.pid)
}

// readStat reads when a process has started and whether it has ended: a zombie
// has, but only when its last thread is gone, which a write to the disk may hold
// up.
func readStat(pid int64) (start uint64, ended bool, err error) {
	text, err := os.ReadFile("/proc/" + strconv.FormatInt(pid, 10) + "/stat")
	if err != nil {
		return 0, false, err
	}
	return parseStat(text)
}

func parseStat(text []byte) (start uint64, ended bool, err error) {
	// The name, field 2, may contain anything.
	fields := bytes.Fields(text[bytes.LastIndexByte(text, ')')+1:])
	const first = 3
	if len(fields) <= 22-first {
		return 0, false, fmt.Errorf("/proc/PID/stat has only %d fields", len(fields)+first-1)
	}
	if start, err = strconv.ParseUint(string(fields[22-first]), 10, 64); err != nil {
		return 0, false, fmt.Errorf("/proc/PID/stat: %w", err)
	}
	state, threads := string(fields[0]), string(fields[20-first])
	return start, (state == "Z" || state == "X") && (threads == "1" || threads == "0"), nil
}

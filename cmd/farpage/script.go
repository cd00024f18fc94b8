package main

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"
)

// shell starts a script that does not name its interpreter, as by execvp(3).
const shell = "/bin/sh"

// mostInterpreters is how often the kernel lets an interpreter be a script itself.
const mostInterpreters = 5

// head is the beginning of a program file, as much as the kernel looks at.
func head(path string) []byte {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	buf := make([]byte, 256)
	n, err := io.ReadFull(f, buf)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return nil
	}
	return buf[:n]
}

// interpreter is the one that a script's first line names, empty when none is named.
func interpreter(path string) string {
	line, script := bytes.CutPrefix(head(path), []byte("#!"))
	if !script {
		return ""
	}
	line, _, _ = bytes.Cut(line, []byte("\n"))
	fields := bytes.FieldsFunc(line, func(r rune) bool { return r == ' ' || r == '\t' || r == 0 })
	if len(fields) == 0 {
		return ""
	}
	return string(fields[0])
}

// isText says whether a file that the kernel does not start may be a script: then its
// first line has no zero byte in it.
func isText(path string) bool {
	line, _, _ := bytes.Cut(head(path), []byte("\n"))
	return !bytes.Contains(line, []byte{0})
}

// unmanageable says why a program cannot be managed, empty when nothing speaks
// against it.
func unmanageable(path string) string {
	subject := "it"
	for range mostInterpreters {
		name := interpreter(path)
		if name == "" {
			break
		}
		subject, path = "its interpreter "+name, name
	}
	f, err := elf.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	if f.Machine != elf.EM_X86_64 {
		return fmt.Sprintf("%s is a program for %v, the shim is for x86-64", subject, f.Machine)
	}
	if loader(f) == "" {
		return subject + " is a static program, no library can be preloaded into it"
	}
	return ""
}

// loader is the dynamic loader that a program asks for, empty for a static one.
func loader(f *elf.File) string {
	for _, p := range f.Progs {
		if p.Type != elf.PT_INTERP {
			continue
		}
		name, err := io.ReadAll(p.Open())
		if err != nil {
			return ""
		}
		return string(bytes.TrimRight(name, "\x00"))
	}
	return ""
}

// start starts a program as execvp(3) does: what the kernel does not know may be a
// script for the shell.
func start(path string, args []string, attributes *os.ProcAttr) (*os.Process, error) {
	process, err := os.StartProcess(path, args, attributes)
	if errors.Is(err, syscall.ENOEXEC) && isText(path) {
		return os.StartProcess(shell, append([]string{shell, path}, args[1:]...), attributes)
	}
	return process, err
}

// startFailed says what is wrong with a program that was found and could not be
// started, and which exit status that is.
func startFailed(path string, err error) (int, error) {
	if !errors.Is(err, fs.ErrNotExist) {
		return statusNotExecutable, fmt.Errorf("%s cannot be executed: %w", path, errors.Unwrap(err))
	}
	// It was there when it was looked for: what it is started with is not.
	what := interpreter(path)
	if f, elfErr := elf.Open(path); elfErr == nil {
		what = loader(f)
		f.Close()
	}
	if what == "" {
		return statusNotFound, fmt.Errorf("%s: %w", path, errors.Unwrap(err))
	}
	return statusNotFound, fmt.Errorf("%s: there is no %s, which it is started with", path, what)
}

package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
)

// folders are those that an agent keeps its things in.
type folders struct {
	made []string // by this agent, in this order
}

// make makes a folder, or takes one that is there. What is in it the agent relies on,
// and hands descriptors of its containers' memory to whoever its record names: one that
// somebody else can change is refused, and no folder that was there is changed. option
// is the flag that names it.
func (f *folders) make(option, path string, mode fs.FileMode) error {
	err := f.makeAll(path, mode)
	if err == nil {
		err = ours(path)
	}
	if err != nil {
		return fmt.Errorf("%s %w", option, err)
	}
	return nil
}

// makeAll makes a folder of a mode and those above it that are missing.
func (f *folders) makeAll(path string, mode fs.FileMode) error {
	var missing []string
	for dir := path; ; dir = filepath.Dir(dir) {
		_, err := os.Lstat(dir)
		if err == nil {
			break
		}
		if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTDIR) {
			return fmt.Errorf("%s cannot be looked at: %w", dir, errors.Unwrap(err))
		}
		missing = append(missing, dir)
	}
	for i, dir := range slices.Backward(missing) {
		m := fs.FileMode(0o755)
		if i == 0 {
			m = mode
		}
		if err := os.Mkdir(dir, m); err != nil {
			return fmt.Errorf("%s cannot be made: %w: choose another folder", dir, errors.Unwrap(err))
		}
		f.made = append(f.made, dir)
	}
	return nil
}

// ours says why somebody else than us may change what is in a folder.
func ours(path string) error {
	info, err := os.Lstat(path)
	if err != nil {
		return fmt.Errorf("%s cannot be looked at: %w", path, errors.Unwrap(err))
	}
	owner, _ := info.Sys().(*syscall.Stat_t)
	switch {
	case info.Mode()&fs.ModeSymlink != 0:
		return fmt.Errorf("%s is a symbolic link: give the folder that it leads to", path)
	case !info.IsDir():
		return fmt.Errorf("%s is a file: choose a folder", path)
	case int(owner.Uid) != os.Geteuid():
		return fmt.Errorf("%s belongs to user %d, who could change what the agent relies on: choose another folder, or make it root's (chown root %[1]s)", path, owner.Uid)
	case info.Mode().Perm()&0o022 != 0:
		return fmt.Errorf("%s can be changed by others (mode %#o): choose another folder, or forbid it (chmod go-w %[1]s)", path, info.Mode().Perm())
	}
	return nil
}

// undo removes what was made, if nothing is in it.
func (f *folders) undo() {
	for _, dir := range slices.Backward(f.made) {
		_ = os.Remove(dir)
	}
	f.made = nil
}

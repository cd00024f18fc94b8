package store

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// errDiskFull is what the file system says, or would.
var errDiskFull error = unix.ENOSPC

// errFileFull is for a store that has no block left.
func errFileFull(f *File) error {
	f.mu.Lock()
	settled := f.blocks.Settled()
	f.mu.Unlock()
	if !settled {
		return fmt.Errorf("%w: %s: what an agent before this one has left is not free yet", ErrFull, f.spec.path)
	}
	return fmt.Errorf("%w: %s: max is reached", ErrFull, f.spec.path)
}

// lengthenBytes is how much longer than needed a file is made. A write within the
// file takes half the time of one that makes it longer (ext4), and what is not
// written takes no room.
const lengthenBytes = 64 << 20

// lengthen makes the file long enough for a write that ends at end.
func (f *File) lengthen(end int64) error {
	f.lengthMu.Lock()
	defer f.lengthMu.Unlock()
	if end <= f.lengthBytes {
		return nil
	}
	length := min((end+lengthenBytes-1)/lengthenBytes*lengthenBytes, f.limit*PageSize)
	if length < end {
		return unix.EFBIG
	}
	if err := f.file.Truncate(length); err != nil {
		return err
	}
	f.lengthBytes = length
	return nil
}

// queueTrim asks for a trim if there is something for it to do. Preconditions: f.mu.
func (f *File) queueTrim() {
	if f.trimming || f.closing || f.holesUnknown.Load() || !f.blocks.ShouldLeave() {
		return
	}
	f.trimming = true
	f.trims.push(fileJob{})
}

// trim gives idle blocks back to the file system until few enough are left. It runs
// once at a time. Puts that need a block meanwhile get others, or wait for returned.
func (f *File) trim() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for !f.closing && !f.holesUnknown.Load() {
		runs := f.blocks.Leave()
		if len(runs) == 0 {
			break
		}
		f.mu.Unlock()
		done := 0
		for _, run := range runs {
			if err := f.file.Punch(run.First*PageSize, run.Count*PageSize); err != nil {
				f.punchErrors.Add(1)
				// Whatever it is: the room is still ours, and used again.
				f.holesUnknown.Store(true)
				break
			}
			done++
		}
		f.mu.Lock()
		f.blocks.Return(runs[:done], true)
		f.blocks.Return(runs[done:], false)
		f.returned.Broadcast()
	}
	f.trimming = false
}

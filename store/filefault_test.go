package store_test

import (
	"sync"

	"github.com/farpage/farpage/store"
)

// faultyFile is a slot file in which tests put faults.
type faultyFile struct {
	store.SlotFile

	mu            sync.Mutex
	read          func(pages int, block int64) error        // mu: before each read; may wait
	write         func(pages int, block int64) (int, error) // mu: instead of a write, when it has an error or a length
	punch         func(block, count int64) error            // mu
	reads, writes int                                       // mu
}

func (f *faultyFile) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

func (f *faultyFile) ReadAt(pages [][]byte, offset int64) (int, error) {
	f.mu.Lock()
	f.reads++
	fault := f.read
	f.mu.Unlock()
	if fault != nil {
		if err := fault(len(pages), offset/store.PageSize); err != nil {
			return 0, err
		}
	}
	return f.SlotFile.ReadAt(pages, offset)
}

func (f *faultyFile) WriteAt(pages [][]byte, offset int64) (int, error) {
	f.mu.Lock()
	f.writes++
	fault := f.write
	f.mu.Unlock()
	if fault != nil && offset > 0 {
		if n, err := fault(len(pages), offset/store.PageSize); n != 0 || err != nil {
			return n, err
		}
	}
	return f.SlotFile.WriteAt(pages, offset)
}

func (f *faultyFile) Punch(offset, bytes int64) error {
	f.mu.Lock()
	fault := f.punch
	f.mu.Unlock()
	if fault != nil {
		if err := fault(offset/store.PageSize, bytes/store.PageSize); err != nil {
			return err
		}
	}
	return f.SlotFile.Punch(offset, bytes)
}

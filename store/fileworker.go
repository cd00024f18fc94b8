package store

import (
	"fmt"
	"io"

	"github.com/farpage/farpage/store/internal/blocks"
)

// fileWorker reads and writes for one lane.
type fileWorker struct {
	store *File
	trim  bool  // there is a trim to do
	ops   []*Op // there is this to do, all Puts or all Gets of one space

	blocks []int64  // of ops
	pages  [][]byte // of ops, or scratch
	bounce [][]byte // aligned pages, made when first needed
}

// do reads or writes w.ops and reports them.
func (w *fileWorker) do(space *FileSpace) {
	if w.ops[0].Write {
		w.put(space)
	} else {
		w.get(space)
	}
}

// buffers sets w.pages to what the file can read to or write from: the Ops' own
// pages, or aligned ones in their place.
func (w *fileWorker) buffers(ops []*Op) {
	w.pages = w.pages[:0]
	for i, op := range ops {
		page := op.Page
		if w.store.direct && !aligned(page) {
			if w.bounce == nil {
				w.bounce = alignedPages(writeTogether)
			}
			page = w.bounce[i]
		}
		w.pages = append(w.pages, page)
	}
}

// sound takes the Ops out of w.ops that have no page to fill or to read, and
// reports them.
func (w *fileWorker) sound(space *FileSpace) {
	kept := w.ops[:0]
	for _, op := range w.ops {
		if len(op.Page) == PageSize {
			kept = append(kept, op)
			continue
		}
		op.Err = errPageLength
		space.done(op)
	}
	w.ops = kept
}

// get reads w.ops, whose blocks follow one another.
func (w *fileWorker) get(space *FileSpace) {
	w.sound(space)
	f := w.store
	together := true
	w.blocks = w.blocks[:0]
	f.mu.Lock()
	for _, op := range w.ops {
		op.Err = nil
		block, ok := space.locate(op.Handle)
		if !ok {
			op.Err = ErrHandle
		}
		together = together && ok && block == w.follows(block)
		w.blocks = append(w.blocks, block)
	}
	f.mu.Unlock()
	if len(w.ops) > 1 && together && w.read(w.ops, w.blocks[0]) == nil {
		for _, op := range w.ops {
			space.done(op)
		}
		return
	}
	// One by one, so that each has its own error only.
	for i, op := range w.ops {
		if op.Err == nil {
			op.Err = w.read(w.ops[i:i+1], w.blocks[i])
		}
		space.done(op)
	}
}

// follows is the block behind the last one in w.blocks; block if there is none.
func (w *fileWorker) follows(block int64) int64 {
	if k := len(w.blocks); k > 0 {
		return w.blocks[k-1] + 1
	}
	return block
}

func (w *fileWorker) read(ops []*Op, first int64) error {
	w.buffers(ops)
	n, err := w.store.file.ReadAt(w.pages, first*PageSize)
	if err == nil && n < len(ops)*PageSize {
		err = fmt.Errorf("%w after %d bytes", io.ErrUnexpectedEOF, n)
	}
	if err != nil {
		return fmt.Errorf("store: read block %d of %s: %w", first, w.store.spec.path, err)
	}
	for i, op := range ops {
		if page := w.pages[i]; &page[0] != &op.Page[0] {
			copy(op.Page, page)
		}
	}
	return nil
}

// put writes w.ops, each run of blocks at once.
func (w *fileWorker) put(space *FileSpace) {
	w.sound(space)
	n := w.alloc(space)
	for _, op := range w.ops[n:] {
		op.Err = errFileFull(w.store)
		space.done(op)
	}
	at := 0
	for _, run := range blocks.Runs(w.blocks) {
		w.putRun(space, w.ops[at:at+int(run.Count)], run.First)
		at += int(run.Count)
	}
}

// alloc finds blocks for w.ops, as many as there are. Those that are on their way
// back to the file system are room.
func (w *fileWorker) alloc(space *FileSpace) (n int) {
	f := w.store
	w.blocks = w.blocks[:0]
	f.mu.Lock()
	defer f.mu.Unlock()
	for n < len(w.ops) {
		block, ok := f.blocks.Alloc(space.owner, &space.group)
		switch {
		case ok:
			w.blocks = append(w.blocks, block)
			n++
		case f.blocks.Leaving():
			f.returned.Wait()
		default:
			return n
		}
	}
	return n
}

func (w *fileWorker) putRun(space *FileSpace, ops []*Op, first int64) {
	n, err := w.write(ops, first)
	for i, op := range ops[:n] {
		w.stored(space, op, first+int64(i))
	}
	// The rest one by one, so that each has its own error only. Where the file
	// system has no room for one, it has none for those behind it.
	full := false
	for i := n; i < len(ops); i++ {
		one, block := ops[i:i+1], first+int64(i)
		switch {
		case full:
			err = errDiskFull
		case len(ops) > 1:
			_, err = w.write(one, block)
		}
		if noRoom(err) {
			full = true
			block, err = w.overwrite(space, one, block)
		}
		switch {
		case err == nil:
			w.stored(space, ops[i], block)
			continue
		case noRoom(err):
			ops[i].Err = fmt.Errorf("%w: %s: %w", ErrFull, w.store.spec.path, err)
		default:
			w.giveUp(block)
			ops[i].Err = fmt.Errorf("store: write block %d of %s: %w", block, w.store.spec.path, err)
		}
		space.done(ops[i])
	}
}

func (w *fileWorker) stored(space *FileSpace, op *Op, block int64) {
	op.Handle, op.Err = blockHandle(w.store.header.number, block), nil
	space.pages.Add(1)
	space.done(op)
}

// overwriteTries bounds how often a block turns out to be a hole already.
const overwriteTries = 8

// overwrite stores a page whose block finds no room on the file system in one that
// was used before, and says which. Without room in any, all are given up.
func (w *fileWorker) overwrite(space *FileSpace, op []*Op, block int64) (_ int64, err error) {
	f := w.store
	err = errDiskFull
	for range overwriteTries {
		f.mu.Lock()
		f.blocks.Cancel(block)
		next, ok := f.blocks.AllocIdle(space.owner)
		f.mu.Unlock()
		if !ok {
			return 0, err
		}
		block = next
		if _, err = w.write(op, block); !noRoom(err) {
			return block, err
		}
	}
	f.mu.Lock()
	f.blocks.Cancel(block)
	f.mu.Unlock()
	return 0, err
}

// write says how many pages were written; err is nil only if all were.
func (w *fileWorker) write(ops []*Op, first int64) (n int, err error) {
	w.buffers(ops)
	for i, op := range ops {
		if page := w.pages[i]; &page[0] != &op.Page[0] {
			copy(page, op.Page)
		}
	}
	f := w.store
	if err := f.lengthen((first + int64(len(ops))) * PageSize); err != nil {
		return 0, err
	}
	bytes, err := f.file.WriteAt(w.pages, first*PageSize)
	n = bytes / PageSize
	if err == nil && n < len(ops) {
		err = errDiskFull // what a write means that ends early
	}
	return n, err
}

// maxBadBlocks are given up at most: if more cannot be written it is not the
// blocks.
const maxBadBlocks = 1024

// giveUp takes back a block that cannot be written.
func (w *fileWorker) giveUp(block int64) {
	f := w.store
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.blocks.Retired() < maxBadBlocks {
		f.blocks.Retire(block)
	} else {
		f.blocks.Cancel(block)
	}
}

package storetest

import (
	"bytes"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/farpage/farpage/store"
)

// container is an open space together with what the checks watch about it.
type container struct {
	id    string
	arena []byte
	space store.Space
	ended chan *store.Op

	mu       sync.Mutex
	underWay map[*store.Op]bool // mu
	wrong    []error            // mu: at most a few
}

func newContainer(id string, arena []byte) *container {
	return &container{
		id: id, arena: arena,
		ended:    make(chan *store.Op, 1<<16),
		underWay: map[*store.Op]bool{},
	}
}

func (c *container) complain(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.wrong) < 5 {
		c.wrong = append(c.wrong, fmt.Errorf("container "+c.id+": "+format, args...))
	}
}

// release drops memory as the kernel would.
func (c *container) release(offset, length int64) error {
	if offset < 0 || length <= 0 || offset%store.PageSize != 0 || length%store.PageSize != 0 ||
		offset+length > int64(len(c.arena)) {
		c.complain("Release(%d, %d) in an arena of %d bytes", offset, length, len(c.arena))
		return errors.New("bad range")
	}
	clear(c.arena[offset : offset+length])
	return nil
}

// done takes an Op's end. The page of a Put is spoilt at once: it is the
// caller's again.
func (c *container) done(op *store.Op) {
	if calledByUs() {
		c.complain("Done was called from inside Put or Get")
	}
	c.mu.Lock()
	known := c.underWay[op]
	delete(c.underWay, op)
	c.mu.Unlock()
	if !known {
		c.complain("Done was called again for an Op")
		return
	}
	if op.Write {
		copy(op.Page, spoilt)
	}
	c.ended <- op
}

// spoilt is what no check stores.
var spoilt = bytes.Repeat([]byte{0xdb, 0xbd, 0xde}, store.PageSize)

// callSpace is what calledByUs looks for.
//
//go:noinline
func callSpace(f func(*store.Op), op *store.Op) { f(op) }

func calledByUs() bool {
	var pcs [64]uintptr
	frames := runtime.CallersFrames(pcs[:runtime.Callers(2, pcs[:])])
	for {
		frame, more := frames.Next()
		if strings.HasSuffix(frame.Function, "storetest.callSpace") {
			return true
		}
		if !more {
			return false
		}
	}
}

// startPut starts storing a copy of page.
func (c *container) startPut(page []byte, tag uint64) *store.Op {
	op := &store.Op{Page: bytes.Clone(page), Tag: tag}
	c.start(c.space.Put, op)
	return op
}

func (c *container) startGet(h store.Handle, tag uint64) *store.Op {
	op := &store.Op{Handle: h, Page: bytes.Repeat([]byte{0xa5}, store.PageSize), Tag: tag}
	c.start(c.space.Get, op)
	return op
}

func (c *container) start(f func(*store.Op), op *store.Op) {
	op.Write = true // stale, for a Get
	c.mu.Lock()
	c.underWay[op] = true
	c.mu.Unlock()
	callSpace(f, op)
}

// wait takes the next n ends.
func (c *container) wait(n int) error {
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	for range n {
		select {
		case <-c.ended:
		case <-deadline.C:
			return fmt.Errorf("container %s: Ops are never reported", c.id)
		}
	}
	return nil
}

// put stores pages at once and waits. Each Op has its own Err.
func (c *container) put(pages ...[]byte) ([]*store.Op, error) {
	ops := make([]*store.Op, len(pages))
	for i, page := range pages {
		ops[i] = c.startPut(page, uint64(i))
	}
	if err := c.wait(len(ops)); err != nil {
		return nil, err
	}
	for i, op := range ops {
		switch {
		case !op.Write || op.Tag != uint64(i):
			return nil, fmt.Errorf("after a Put, Write is %v and Tag %d, want true and %d", op.Write, op.Tag, i)
		case op.Err == nil && op.Handle == 0:
			return nil, errors.New("a page got handle 0")
		}
	}
	return ops, nil
}

// store stores pages that must all find room.
func (c *container) store(pages ...[]byte) ([]store.Handle, error) {
	ops, err := c.put(pages...)
	if err != nil {
		return nil, err
	}
	handles := make([]store.Handle, len(ops))
	for i, op := range ops {
		if op.Err != nil {
			return nil, fmt.Errorf("page %d of %d cannot be stored: %w", i, len(ops), op.Err)
		}
		handles[i] = op.Handle
	}
	return handles, nil
}

// expect reads a page in both ways.
func (c *container) expect(h store.Handle, want []byte) error {
	op := c.startGet(h, uint64(h))
	if err := c.wait(1); err != nil {
		return err
	}
	switch {
	case op.Err != nil:
		return fmt.Errorf("Get(%#x): %w", h, op.Err)
	case op.Write || op.Tag != uint64(h) || op.Handle != h:
		return fmt.Errorf("Get(%#x) left Write %v, Tag %#x, Handle %#x", h, op.Write, op.Tag, op.Handle)
	}
	if err := same("Get", h, op.Page, want); err != nil {
		return err
	}
	page := bytes.Repeat([]byte{0x5a}, store.PageSize)
	switch ok, err := c.space.TryGet(h, page); {
	case err != nil:
		return fmt.Errorf("TryGet(%#x): %w", h, err)
	case ok:
		return same("TryGet", h, page, want)
	}
	return nil
}

func (c *container) expectAll(handles []store.Handle, want [][]byte) error {
	for i, h := range handles {
		if err := c.expect(h, want[i]); err != nil {
			return fmt.Errorf("page %d: %w", i, err)
		}
	}
	return nil
}

func same(how string, h store.Handle, got, want []byte) error {
	if bytes.Equal(got, want) {
		return nil
	}
	for i := range want {
		if got[i] != want[i] {
			return fmt.Errorf("%s(%#x): byte %d is %#x, want %#x", how, h, i, got[i], want[i])
		}
	}
	return fmt.Errorf("%s(%#x): %d bytes, want %d", how, h, len(got), len(want))
}

// close closes the space and says what was wrong with its reports.
func (c *container) close() error { return c.end("Space.Close", c.space.Close) }

// end is close in one of the two ways that there are.
func (c *container) end(what string, f func() error) error {
	err := inTime(what, f)
	c.mu.Lock()
	defer c.mu.Unlock()
	if n := len(c.underWay); n > 0 && err == nil {
		err = fmt.Errorf("container %s: %d Ops are not reported after %s", c.id, n, what)
	}
	return errors.Join(append(c.wrong, err)...)
}

package storetest

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/farpage/farpage/store"
)

// Check is one thing that every store must do.
type Check struct {
	Name      string
	roomPages int
	do        func(*place) error
}

// Run tries the check in a new place of mk's. A panic of the store in the
// calling goroutine is an error, too.
func (c Check) Run(tb testing.TB, mk Maker) (err error) {
	p, err := newPlace(tb, mk, c.roomPages)
	if err != nil {
		return err
	}
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("panic: %v", r)
		}
		err = errors.Join(err, p.close())
	}()
	return c.do(p)
}

// Checks is the table that Run goes through.
func Checks() []Check {
	return []Check{
		{"pages of every kind come back as they went", 4096, roundTrip},
		{"thousands of Ops are under way at once and end once each", 8192, manyAtOnce},
		{"a full store says so and takes pages again after a Free", 256, full},
		{"freed room is used again and never shows old content", 256, reuse},
		{"after reopening, pages in use are the same and all else is free", 256, reopen},
		{"after reopening, pages of every kind are the same", 4096, reopenKinds},
		{"after reopening, what is not in use needs no room", 256, reopenEmpty},
		{"after reopening, the last container finds its pages whatever the first did", 256, reopenSeveral},
		{"Bytes goes up and down", 4096, bytesUpAndDown},
		{"two containers have nothing in common", 512, twoContainers},
		{"Discard frees everything", 256, discard},
		{"Close waits until every Op is reported", 4096, closeWaits},
		{"unknown handles do no harm", 512, unknownHandles},
		{"a buffer that is no page is an error", 64, badLength},
		{"TryGet allocates nothing", 512, tryGetAllocates},
		{"a store agrees with a map over a long random life", modelRoomPages, randomLife},
	}
}

// randomPages does not compress: n of them need room for n.
func randomPages(n int, seed uint64) [][]byte {
	pages := make([][]byte, n)
	for i := range pages {
		pages[i] = Random.Page(seed + uint64(i))
	}
	return pages
}

// mixedPages are n pages of each kind.
func mixedPages(n int, seed uint64) (pages [][]byte) {
	for i := range n {
		for _, kind := range Contents() {
			pages = append(pages, kind.Page(seed+uint64(i)))
		}
	}
	return pages
}

func roundTrip(p *place) error {
	c, err := p.container("a")
	if err != nil {
		return err
	}
	pages := mixedPages(40, 1)
	for b := range 256 {
		pages = append(pages, bytes.Repeat([]byte{byte(b)}, store.PageSize))
	}
	handles, err := c.store(pages...)
	if err != nil {
		return err
	}
	return c.expectAll(handles, pages)
}

func manyAtOnce(p *place) error {
	c, err := p.container("a")
	if err != nil {
		return err
	}
	pages := mixedPages(100, 2)
	handles, err := c.store(pages...)
	if err != nil {
		return err
	}
	// Puts of new pages between Gets of old ones.
	var gets, puts []*store.Op
	for round := range 2 {
		for i, h := range handles {
			gets = append(gets, c.startGet(h, uint64(i)))
			puts = append(puts, c.startPut(pages[i], uint64(round)))
		}
	}
	if err := c.wait(len(gets) + len(puts)); err != nil {
		return err
	}
	for _, op := range gets {
		if op.Err != nil {
			return fmt.Errorf("Get among many: %w", op.Err)
		}
		if err := same("Get among many", op.Handle, op.Page, pages[op.Tag]); err != nil {
			return err
		}
	}
	for i, op := range puts {
		if op.Err != nil {
			return fmt.Errorf("Put among many: %w", op.Err)
		}
		if err := c.expect(op.Handle, pages[i%len(pages)]); err != nil {
			return err
		}
	}
	return nil
}

// fillUp stores random pages until there is no room.
func fillUp(p *place, c *container, seed uint64) (handles []store.Handle, pages [][]byte, err error) {
	for len(handles) <= 2*p.roomPages {
		batch := randomPages(16, seed+uint64(len(handles)))
		ops, err := c.put(batch...)
		if err != nil {
			return nil, nil, err
		}
		isFull := false
		for i, op := range ops {
			switch {
			case op.Err == nil:
				handles, pages = append(handles, op.Handle), append(pages, batch[i])
			case errors.Is(op.Err, store.ErrFull):
				isFull = true
			default:
				return nil, nil, fmt.Errorf("a store without room says %w", op.Err)
			}
		}
		if isFull {
			return handles, pages, nil
		}
	}
	return nil, nil, fmt.Errorf("%d pages in a place for %d, and no ErrFull", len(handles), p.roomPages)
}

func full(p *place) error {
	c, err := p.container("a")
	if err != nil {
		return err
	}
	handles, pages, err := fillUp(p, c, 3)
	if err != nil {
		return err
	}
	if len(handles) < p.roomPages {
		return fmt.Errorf("full with %d pages in a place for %d", len(handles), p.roomPages)
	}
	if err := c.expectAll(handles, pages); err != nil {
		return fmt.Errorf("when full: %w", err)
	}
	// A page that needs no room or little may go in; nothing may break by it.
	if _, err := c.put(mixedPages(1, 3)...); err != nil {
		return err
	}
	n := len(handles) / 4
	for _, h := range handles[:n] {
		c.space.Free(h)
	}
	handles, pages = handles[n:], pages[n:]
	more := randomPages(n/2, 1<<20)
	added, err := c.store(more...)
	if err != nil {
		return fmt.Errorf("after Free of %d: %w", n, err)
	}
	return c.expectAll(append(handles, added...), append(pages, more...))
}

func reuse(p *place) error {
	c, err := p.container("a")
	if err != nil {
		return err
	}
	var handles []store.Handle
	var pages [][]byte
	for round := range 20 {
		// Every second page goes, and as many of another kind come.
		for i := round % 2; i < len(handles); i += 2 {
			c.space.Free(handles[i])
		}
		fresh := make([][]byte, p.roomPages/4)
		for i := range fresh {
			fresh[i] = Contents()[(round+i%2)%len(Contents())].Page(uint64(1000*round + i))
		}
		added, err := c.store(fresh...)
		if err != nil {
			return fmt.Errorf("round %d: %w", round, err)
		}
		kept, keptPages := added, fresh
		for i := 1 - round%2; i < len(handles); i += 2 {
			kept, keptPages = append(kept, handles[i]), append(keptPages, pages[i])
		}
		handles, pages = kept, keptPages
		if err := c.expectAll(handles, pages); err != nil {
			return fmt.Errorf("round %d: %w", round, err)
		}
		if len(handles) > p.roomPages/2 {
			for _, h := range handles {
				c.space.Free(h)
			}
			handles, pages = nil, nil
		}
	}
	return nil
}

func reopen(p *place) error {
	c, err := p.container("a")
	if err != nil {
		return err
	}
	handles, pages, err := fillUp(p, c, 4)
	if err != nil {
		return err
	}
	var live []store.Handle
	var livePages [][]byte
	for i := 0; i < len(handles); i += 3 {
		live, livePages = append(live, handles[i]), append(livePages, pages[i])
	}
	if c, err = p.takeOver(live...); err != nil {
		return err
	}
	if err := c.expectAll(live, livePages); err != nil {
		return fmt.Errorf("reopened: %w", err)
	}
	more := randomPages(p.roomPages-len(live), 1<<21)
	added, err := c.store(more...)
	if err != nil {
		return fmt.Errorf("reopened with %d pages in a place for %d: %w", len(live), p.roomPages, err)
	}
	return c.expectAll(slices.Concat(live, added), slices.Concat(livePages, more))
}

func reopenKinds(p *place) error {
	c, err := p.container("a")
	if err != nil {
		return err
	}
	pages := mixedPages(40, 5)
	handles, err := c.store(pages...)
	if err != nil {
		return err
	}
	for round := range 3 {
		slices.Reverse(handles)
		slices.Reverse(pages)
		if c, err = p.takeOver(handles...); err != nil {
			return err
		}
		if err := c.expectAll(handles, pages); err != nil {
			return fmt.Errorf("reopened %d times: %w", round+1, err)
		}
		for i, h := range handles[:len(handles)/4] {
			c.space.Free(h)
			pages[i] = Contents()[i%len(Contents())].Page(uint64(1000 + i + 100*round))
		}
		fresh, err := c.store(pages[:len(handles)/4]...)
		if err != nil {
			return err
		}
		copy(handles, fresh)
	}
	return c.expectAll(handles, pages)
}

func reopenEmpty(p *place) error {
	c, err := p.container("a")
	if err != nil {
		return err
	}
	empty := c.space.Bytes()
	if _, _, err := fillUp(p, c, 6); err != nil {
		return err
	}
	if c, err = p.takeOver(); err != nil {
		return err
	}
	if n := c.space.Bytes(); n > empty {
		return fmt.Errorf("reopened without pages, Bytes is %d, at first it was %d", n, empty)
	}
	pages := randomPages(p.roomPages, 1<<22)
	handles, err := c.store(pages...)
	if err != nil {
		return fmt.Errorf("reopened without pages: %w", err)
	}
	return c.expectAll(handles, pages)
}

// reopenSeveral is a take-over of two containers in which the first is at work
// before the second is there. It may find the store full meanwhile.
func reopenSeveral(p *place) error {
	ids := []string{"a", "b"}
	handles, pages := map[string][]store.Handle{}, map[string][][]byte{}
	for i, id := range ids {
		c, err := p.container(id)
		if err != nil {
			return err
		}
		pages[id] = randomPages(p.roomPages/4, uint64(1+i)<<23)
		if handles[id], err = c.store(pages[id]...); err != nil {
			return err
		}
		// The dead agent had just freed some.
		for _, h := range handles[id][:8] {
			c.space.Free(h)
		}
		handles[id], pages[id] = handles[id][8:], pages[id][8:]
	}
	if err := p.reopen(); err != nil {
		return err
	}
	open := map[string]*container{}
	for i, id := range ids {
		c, err := p.container(id, handles[id]...)
		if err != nil {
			return err
		}
		open[id] = c
		if err := c.expectAll(handles[id], pages[id]); err != nil {
			return fmt.Errorf("opened as number %d: %w", i+1, err)
		}
		for _, h := range handles[id][:8] {
			c.space.Free(h)
		}
		handles[id], pages[id] = handles[id][8:], pages[id][8:]
		fresh := randomPages(32, uint64(11+i)<<23)
		ops, err := c.put(fresh...)
		if err != nil {
			return err
		}
		for k, op := range ops {
			switch {
			case op.Err == nil:
				handles[id], pages[id] = append(handles[id], op.Handle), append(pages[id], fresh[k])
			case !errors.Is(op.Err, store.ErrFull):
				return fmt.Errorf("before Recovered: %w", op.Err)
			}
		}
	}
	p.store.Recovered()
	for i, id := range ids {
		more := randomPages(p.roomPages/8, uint64(21+i)<<23)
		added, err := open[id].store(more...)
		if err != nil {
			return fmt.Errorf("after Recovered: %w", err)
		}
		handles[id], pages[id] = append(handles[id], added...), append(pages[id], more...)
	}
	for _, id := range ids {
		if err := open[id].expectAll(handles[id], pages[id]); err != nil {
			return fmt.Errorf("after Recovered: %w", err)
		}
	}
	return nil
}

func bytesUpAndDown(p *place) error {
	c, err := p.container("a")
	if err != nil {
		return err
	}
	before := c.space.Bytes()
	pages := randomPages(p.roomPages/2, 7)
	handles, err := c.store(pages...)
	if err != nil {
		return err
	}
	with := c.space.Bytes()
	if least := before + int64(len(pages)*store.PageSize); with < least {
		return fmt.Errorf("Bytes is %d with %d pages that do not compress, want %d", with, len(pages), least)
	}
	for i, h := range handles {
		if i%2 == 0 {
			c.space.Free(h)
		}
	}
	for i, h := range handles {
		if i%2 == 1 {
			c.space.Free(h)
		}
	}
	for deadline := time.Now().Add(patience); c.space.Bytes() > before+(with-before)/2; {
		if time.Now().After(deadline) {
			return fmt.Errorf("Bytes stays %d when all is freed; it was %d before, %d with pages", c.space.Bytes(), before, with)
		}
		time.Sleep(time.Millisecond)
	}
	return nil
}

func twoContainers(p *place) error {
	a, err := p.container("a")
	if err != nil {
		return err
	}
	b, err := p.container("b")
	if err != nil {
		return err
	}
	pagesA, pagesB := mixedPages(10, 8), mixedPages(10, 9)
	for i := range pagesA { // in turns, so that both are at the same point
		ha, err := a.store(pagesA[i])
		if err != nil {
			return err
		}
		hb, err := b.store(pagesB[i])
		if err != nil {
			return err
		}
		if err := errors.Join(a.expect(ha[0], pagesA[i]), b.expect(hb[0], pagesB[i])); err != nil {
			return err
		}
		if i%3 == 0 {
			a.space.Free(ha[0])
			if err := b.expect(hb[0], pagesB[i]); err != nil {
				return fmt.Errorf("after the other container's Free: %w", err)
			}
		}
	}
	// One may go while the other lives on.
	hb, err := b.store(pagesB...)
	if err != nil {
		return err
	}
	if err := a.close(); err != nil {
		return err
	}
	p.containers = []*container{b}
	return b.expectAll(hb, pagesB)
}

func discard(p *place) error {
	a, err := p.container("a")
	if err != nil {
		return err
	}
	if _, _, err := fillUp(p, a, 14); err != nil {
		return err
	}
	for _, page := range mixedPages(10, 15) { // reported too late
		a.startPut(page, 0)
	}
	if err := a.end("Space.Discard", a.space.Discard); err != nil {
		return err
	}
	p.containers = nil
	b, err := p.container("b")
	if err != nil {
		return err
	}
	pages := randomPages(p.roomPages, 1<<24)
	handles, err := b.store(pages...)
	if err != nil {
		return fmt.Errorf("after another container's Discard: %w", err)
	}
	return b.expectAll(handles, pages)
}

func closeWaits(p *place) error {
	c, err := p.container("a")
	if err != nil {
		return err
	}
	for _, page := range mixedPages(100, 10) {
		c.startPut(page, 0)
	}
	return c.close() // says what is not reported
}

func unknownHandles(p *place) error {
	c, err := p.container("a")
	if err != nil {
		return err
	}
	pages := mixedPages(20, 11)
	handles, err := c.store(pages...)
	if err != nil {
		return err
	}
	n := len(handles) / 2
	for _, h := range handles[:n] {
		c.space.Free(h)
		if !slices.Contains(handles[n:], h) {
			c.space.Free(h)
		}
	}
	page := make([]byte, store.PageSize)
	for bit := range 64 {
		for _, h := range []store.Handle{0, ^store.Handle(0), handles[n], handles[len(handles)-1]} {
			h ^= 1 << bit
			if slices.Contains(handles[n:], h) {
				continue
			}
			// Whatever comes of it: an error, or bytes that no checksum fits.
			_, _ = c.space.TryGet(h, page)
			c.startGet(h, 0)
			if err := c.wait(1); err != nil {
				return err
			}
		}
	}
	c.space.Free(0)
	c.space.Free(^store.Handle(0))
	if err := c.expectAll(handles[n:], pages[n:]); err != nil {
		return fmt.Errorf("after unknown handles: %w", err)
	}
	fresh, err := c.store(pages[:n]...)
	if err != nil {
		return fmt.Errorf("after unknown handles: %w", err)
	}
	return c.expectAll(slices.Concat(fresh, handles[n:]), pages)
}

func badLength(p *place) error {
	c, err := p.container("a")
	if err != nil {
		return err
	}
	want := Text.Page(1)
	handles, err := c.store(want)
	if err != nil {
		return err
	}
	for _, length := range []int{0, 1, store.PageSize - 1, store.PageSize + 1} {
		buffer := make([]byte, length)
		put, get := &store.Op{Page: buffer}, &store.Op{Page: buffer, Handle: handles[0]}
		c.start(c.space.Put, put)
		if err := c.wait(1); err != nil {
			return err
		}
		c.start(c.space.Get, get)
		if err := c.wait(1); err != nil {
			return err
		}
		ok, err := c.space.TryGet(handles[0], buffer)
		if put.Err == nil || get.Err == nil || ok {
			return fmt.Errorf("%d bytes: Put says %v, Get %v, TryGet %v, %v", length, put.Err, get.Err, ok, err) //nolint:errorlint // which of them are nil is what it tells
		}
	}
	return c.expect(handles[0], want)
}

func tryGetAllocates(p *place) error {
	c, err := p.container("a")
	if err != nil {
		return err
	}
	page := make([]byte, store.PageSize)
	for _, kind := range Contents() {
		handles, err := c.store(kind.Page(12))
		if err != nil {
			return err
		}
		if n := testing.AllocsPerRun(20, func() {
			if _, tryErr := c.space.TryGet(handles[0], page); tryErr != nil {
				err = tryErr
			}
		}); n != 0 || err != nil {
			return fmt.Errorf("TryGet of a %v page allocates %v times, err %v", kind, n, err) //nolint:errorlint // the error may be nil
		}
	}
	return nil
}

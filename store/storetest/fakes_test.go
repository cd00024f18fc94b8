package storetest

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"github.com/farpage/farpage/store"
)

// openOne opens container a in st, with an arena of its own.
func openOne(t *testing.T, st store.Store) *container {
	t.Helper()
	p := &place{roomPages: 256, store: st, arenas: map[string][]byte{}}
	c, err := p.container("a")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func storeAll(t *testing.T, c *container, pages ...[]byte) []store.Handle {
	t.Helper()
	handles, err := c.store(pages...)
	if err != nil {
		t.Fatal(err)
	}
	return handles
}

func TestSlowHoldsGetsUntilTheyAreReleased(t *testing.T) {
	slow := NewSlow(store.NewMem(), 0)
	c := openOne(t, slow)
	pages := mixedPages(2, 1)
	handles := storeAll(t, c, pages...)
	if ok, err := c.space.TryGet(handles[0], make([]byte, store.PageSize)); ok || err != nil {
		t.Errorf("TryGet says %v, %v", ok, err)
	}
	for i, h := range handles {
		c.startGet(h, uint64(i))
	}
	if !slow.WaitHeld(len(handles), patience) || slow.WaitHeld(len(handles)+1, time.Millisecond) {
		t.Fatalf("%d Gets are held, want %d", slow.Held(), len(handles))
	}
	if n := slow.Release(3); n != 3 || len(c.ended) != 3 || slow.Held() != len(handles)-3 {
		t.Errorf("%d released, %d reported, %d held", n, len(c.ended), slow.Held())
	}
	if n := slow.Release(-1); n != len(handles)-3 || slow.Held() != 0 {
		t.Errorf("%d released at last, %d held", n, slow.Held())
	}
	for range handles {
		if op := <-c.ended; op.Err != nil || !bytes.Equal(op.Page, pages[op.Tag]) {
			t.Errorf("page %d came back wrong, err %v", op.Tag, op.Err)
		}
	}
}

func TestSlowReportsAfterItsDelay(t *testing.T) {
	const delay = 20 * time.Millisecond
	c := openOne(t, NewSlow(store.NewMem(), delay))
	h := storeAll(t, c, Text.Page(1))[0]
	began := time.Now()
	c.startGet(h, 0)
	if err := c.wait(1); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took < delay {
		t.Errorf("reported after %v", took)
	}
}

func TestSlowReportsWhatIsHeldWhenItIsClosed(t *testing.T) {
	c := openOne(t, NewSlow(store.NewMem(), time.Hour))
	c.startGet(storeAll(t, c, Text.Page(1))[0], 0)
	if err := c.close(); err != nil {
		t.Error(err)
	}
}

func TestLossyDamagesAsManyReadsAsItIsTold(t *testing.T) {
	want := Text.Page(1)
	lossy := NewLossy(store.NewMem())
	c := openOne(t, lossy)
	h := storeAll(t, c, want)[0]
	for damage, wrong := range map[Damage]func(page []byte) bool{
		FlipBit: func(page []byte) bool {
			n := 0
			for i := range page {
				for x := page[i] ^ want[i]; x != 0; x &= x - 1 {
					n++
				}
			}
			return n == 1
		},
		Zeros:    func(page []byte) bool { return bytes.Equal(page, make([]byte, store.PageSize)) },
		Truncate: func(page []byte) bool { return bytes.Equal(page[:2048], want[:2048]) && page[2048] == 0 },
		Garbage:  func(page []byte) bool { return page[0] != want[0] && page[4095] != want[4095] },
	} {
		lossy.Damage(damage, 2)
		page := make([]byte, store.PageSize)
		if _, err := c.space.TryGet(h, page); err != nil || !wrong(page) {
			t.Errorf("damage %d of TryGet: err %v", damage, err)
		}
		op := c.startGet(h, 0)
		if err := c.wait(1); err != nil || op.Err != nil || !wrong(op.Page) {
			t.Errorf("damage %d of Get: err %v, %v", damage, err, op.Err)
		}
		if err := c.expect(h, want); err != nil {
			t.Errorf("damage %d goes on: %v", damage, err)
		}
	}
	lossy.Damage(Fails, 1)
	if ok, err := c.space.TryGet(h, make([]byte, store.PageSize)); ok || !errors.Is(err, ErrLost) {
		t.Errorf("TryGet says %v, %v, want ErrLost", ok, err)
	}
	if n := lossy.Damaged(); n != 9 {
		t.Errorf("%d reads are counted, want 9", n)
	}
}

func TestWrongSlotGivesAnotherPageInUse(t *testing.T) {
	wrong := NewWrongSlot(store.NewMem())
	c := openOne(t, wrong)
	pages := [][]byte{Text.Page(1), Random.Page(2), Zero.Page(0)}
	handles := storeAll(t, c, pages...)
	if err := c.expectAll(handles, pages); err != nil {
		t.Error(err)
	}
	wrong.Switch(true)
	if c.expect(handles[0], pages[0]) == nil {
		t.Error("the right page")
	}
	c.space.Free(handles[1])
	if err := c.expect(handles[0], pages[2]); err != nil {
		t.Errorf("not the only other page: %v", err)
	}
	c.space.Free(handles[2])
	if err := c.expect(handles[0], pages[0]); err != nil {
		t.Errorf("without another page: %v", err)
	}
	if wrong.Mixed() != 3 { // the first one by Get only
		t.Errorf("%d reads are counted, want 3", wrong.Mixed())
	}
}

func TestFullTakesAsManyPagesAsItIsTold(t *testing.T) {
	full := NewFull(store.NewMem(), 3)
	c := openOne(t, full)
	ops, err := c.put(mixedPages(1, 1)...)
	if err != nil {
		t.Fatal(err)
	}
	for i, op := range ops {
		if want := i >= 3; errors.Is(op.Err, store.ErrFull) != want {
			t.Errorf("page %d of 3: err %v", i, op.Err)
		}
	}
	c.space.Free(ops[0].Handle)
	storeAll(t, c, Text.Page(1))
	full.SetMax(5)
	storeAll(t, c, Text.Page(2), Text.Page(3))
	if full.Pages() != 5 {
		t.Errorf("%d pages are counted, want 5", full.Pages())
	}
	if err := c.close(); err != nil || full.Pages() != 0 {
		t.Errorf("closed: err %v, %d pages", err, full.Pages())
	}
}

package engine_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/farpage/farpage/handler/state"
	"github.com/farpage/farpage/oci/policy"
	"github.com/farpage/farpage/store"
	"github.com/farpage/farpage/store/storetest"
)

// rightThrough is guest.right while held reads are released.
func (g *guest) rightThrough(slow *storetest.Slow, command string) {
	g.t.Helper()
	g.send("%s", command)
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			case <-time.After(200 * time.Microsecond):
				slow.Release(-1)
			}
		}
	}()
	f := g.found()
	close(stop)
	<-stopped
	if f != (found{}) {
		g.t.Errorf("guest (%s): %d wrong pages, %d lost", g.name, f.Wrong, f.Bus)
	}
}

func TestReadThatTakesLongMakesOnlyThoseWaitWhoNeedThatPage(t *testing.T) {
	slow := storetest.NewSlow(memory(t), 0)
	c, other := newContainer(t, slow, inRegion), newContainer(t, slow, inRegion)
	g, h := c.interpreter(), other.interpreter()
	g.does("map 2048")
	g.does("write 0 300 1")
	c.evict(300)
	g.does("beside 17 18 1")
	if !slow.WaitHeld(1, patience) {
		t.Fatal("nobody asks the store for the page")
	}
	// Another thread of the same process: fresh pages, and pages that leave.
	for round := range 3 {
		from := 500 + 100*round
		g.does("write %d %d 2", from, from+100)
		g.right("read %d %d 2", from, from+100)
		c.evict(100)
	}
	// Another container of the same store.
	h.does("map 1024")
	h.does("write 0 500 3")
	h.right("read 0 500 3")
	other.evict(500)
	h.does("write 600 700 4")
	h.right("read 600 700 4")
	if g.send("done"); g.reply() != "0" {
		t.Error("the reader has its page, which nobody has released")
	}
	if slow.Held() == 0 {
		t.Error("no read is held any more")
	}

	g.rightThrough(slow, "join")
	g.rightThrough(slow, "read 0 300 1")
	g.rightThrough(slow, "read 500 800 2")
	h.rightThrough(slow, "read 0 500 3")
}

func TestPageThatIsGivenUpWhileItIsReadIsZeros(t *testing.T) {
	slow := storetest.NewSlow(memory(t), 0)
	c := newContainer(t, slow, inRegion)
	g := c.interpreter()
	g.does("map 512")
	g.does("write 0 100 1")
	c.evict(100)
	g.does("beside 17 18 0") // wants zeros
	if !slow.WaitHeld(1, patience) {
		t.Fatal("nobody asks the store for the page")
	}
	g.does("drop 10 30")
	g.rightThrough(slow, "join")
	g.rightThrough(slow, "read 10 30 0")
	g.rightThrough(slow, "read 0 10 1")
	g.rightThrough(slow, "read 30 100 1")
}

func TestProcessThatEndsWhileItsPageIsReadLeavesNothing(t *testing.T) {
	counted := storetest.NewFull(memory(t), 1<<20)
	slow := storetest.NewSlow(counted, 0)
	c := newContainer(t, slow, inRegion)
	g := c.interpreter()
	g.does("map 512")
	g.does("write 0 100 1")
	c.evict(100)
	g.does("beside 17 18 1")
	if !slow.WaitHeld(1, patience) {
		t.Fatal("nobody asks the store for the page")
	}
	g.kill()
	c.within("its memory is given up", func() bool { return c.stats().Processes.Managed == 0 })
	slow.Release(-1)
	c.within("the store is empty", func() bool { return counted.Pages() == 0 })
}

func TestPageThatComesBackDamagedRaisesSIGBUSAndNoOtherDoes(t *testing.T) {
	for damage, name := range map[storetest.Damage]string{
		storetest.FlipBit: "a flipped bit", storetest.Zeros: "zeros", storetest.Truncate: "half of it",
		storetest.Garbage: "other bytes", storetest.Fails: "an error",
	} {
		t.Run(name, func(t *testing.T) {
			lossy := storetest.NewLossy(memory(t))
			c := newContainer(t, lossy, inRegion)
			c.lossy = true
			g := c.interpreter()
			g.does("map 256")
			g.does("write 0 200 1")
			c.evict(200)
			c.within("everything is in the store", func() bool { return c.stats().StoreBytes > 0 })
			lossy.Damage(damage, 1)
			const page = region + 17*pageSize
			if f := g.finds("read 17 18 1"); f != (found{Bus: 1, First: page}) {
				t.Fatalf("reading the damaged page: %+v, want SIGBUS at %#x", f, page)
			}
			s := c.stats()
			if damage == storetest.Fails {
				s.Errors.Checksum, s.Errors.Store = s.Errors.Store, s.Errors.Checksum
			}
			if s.Errors.Checksum != 1 || s.Errors.Store != 0 {
				t.Errorf("errors %+v", c.stats().Errors)
			}
			reason := "checksum"
			if damage == storetest.Fails {
				reason = storetest.ErrLost.Error()
			}
			if log := c.log.String(); !strings.Contains(log, fmt.Sprintf("page %#x", page)) || !strings.Contains(log, reason) {
				t.Errorf("the log names no page %#x or no %q:\n%s", page, reason, log)
			}
			// For good, and for this page only.
			if f := g.finds("read 0 200 1"); f != (found{Bus: 1, First: page}) {
				t.Errorf("reading all pages: %+v, want one SIGBUS", f)
			}
			if n := lossy.Damaged(); n != 1 {
				t.Errorf("%d reads were damaged", n)
			}
			// What the program gives up is good again.
			g.does("drop 17 18")
			g.right("read 17 18 0")
			g.does("write 17 18 2")
			c.evict(100)
			g.right("read 17 18 2")
		})
	}
}

func TestForkedChildOfADamagedPageGetsSIGBUSToo(t *testing.T) {
	lossy := storetest.NewLossy(memory(t))
	c := newContainer(t, lossy, inRegion)
	c.lossy = true
	g := c.interpreter()
	g.does("map 256")
	g.does("write 0 100 1")
	c.evict(100)
	lossy.Damage(storetest.FlipBit, 1)
	if f := g.finds("read 17 18 1"); f.Bus != 1 || f.Wrong != 0 {
		t.Fatalf("%+v, want a SIGBUS", f)
	}
	if f := g.finds("fork 0 100 100 100 1 0"); f.Bus != 1 || f.Wrong != 0 {
		t.Errorf("the child found %+v, want a SIGBUS and no wrong page", f)
	}
}

func TestPageOfAnotherSlotIsNotHandedOver(t *testing.T) {
	mixed := storetest.NewWrongSlot(memory(t))
	c := newContainer(t, mixed, inRegion)
	c.lossy = true
	g := c.interpreter()
	g.does("map 256")
	g.does("write 0 200 1")
	c.evict(200)
	mixed.Switch(true)
	if f := g.finds("read 17 18 1"); f.Bus != 1 || f.Wrong != 0 {
		t.Errorf("%+v, want a SIGBUS and no wrong byte", f)
	}
	if mixed.Mixed() == 0 {
		t.Error("the store has mixed up nothing")
	}
	mixed.Switch(false)
	if f := g.finds("read 0 200 1"); f.Bus != 1 || f.Wrong != 0 {
		t.Errorf("%+v, want one SIGBUS and no wrong byte", f)
	}
	if n := c.stats().Errors.Checksum; n != 1 {
		t.Errorf("%d checksum errors, want 1", n)
	}
}

func TestWhenTheStoreIsFullEvictionStopsAndNothingIsLost(t *testing.T) {
	const room = 512
	full := storetest.NewFull(memory(t), room)
	c := newContainer(t, full, inRegion)
	g := c.interpreter()
	g.does("map 8192")
	g.does("write 0 8192 1") // 32 MiB
	s := c.stats()
	if s.FarLimitHits == 0 {
		t.Error("it is not counted that eviction stops")
	}
	// What the store refuses stays in the agent's own buffers.
	if s.FarBytes > (room+state.RawBuffers)*pageSize || s.FarBytes < room*pageSize {
		t.Errorf("%d pages are far", s.FarBytes/pageSize)
	}
	if log := c.log.String(); !strings.Contains(log, "store is full") {
		t.Errorf("the log does not say why:\n%s", log)
	}
	g.right("read 0 8192 1")
	g.right("fork 0 4096 4096 4096 1 0")
	if n := full.Pages(); n > room {
		t.Errorf("%d pages are in a store for %d", n, room)
	}
	// It goes on when there is room.
	full.SetMax(1 << 20)
	c.within("back in the budget", func() bool { return c.stats().ResidentBytes <= 9<<20 })
	g.right("read 0 8192 1")
	g.wait()
	c.within("the store is empty", func() bool { return full.Pages() == 0 })
}

// heldPuts is a store that takes its time to say that it has a page.
type heldPuts struct {
	store.Store
	gate chan struct{} // closed: it says so at once
}

func (h heldPuts) Open(cfg store.SpaceConfig) (store.Space, error) {
	s, done := &heldSpace{}, cfg.Done
	cfg.Done = func(op *store.Op) {
		if !op.Write {
			done(op)
			return
		}
		s.reporting.Go(func() {
			<-h.gate
			done(op)
		})
	}
	var err error
	s.Space, err = h.Store.Open(cfg)
	return s, err
}

type heldSpace struct {
	store.Space
	reporting sync.WaitGroup
}

func (s *heldSpace) Discard() error {
	err := s.Space.Discard()
	s.reporting.Wait()
	return err
}

// The writer is faster than the store: it waits, and its budget holds.
func TestProgramThatOutrunsTheStoreWaitsForIt(t *testing.T) {
	held := heldPuts{memory(t), make(chan struct{})}
	c := newContainer(t, held, inRegion)
	release := sync.OnceFunc(func() { close(held.gate) })
	defer release()
	g := c.interpreter()
	g.does("map 8192")
	g.send("write 0 8192 1") // 32 MiB, of which 8 are local and 8 in the agent's buffers
	c.within("all buffers are full", func() bool { return c.stats().FarBytes > (state.RawBuffers-256)*pageSize })
	var before int64
	c.within("nothing moves", func() bool {
		time.Sleep(100 * time.Millisecond)
		now := c.stats().ResidentBytes
		still := now == before
		before = now
		return still
	})
	if before > 9<<20 {
		t.Errorf("%d bytes are resident", before)
	}
	select {
	case s := <-g.lines:
		t.Errorf("the guest has written all of it: %s", s)
	default:
	}
	release()
	if s := g.reply(); s != "ok" {
		t.Errorf("the guest says %q", s)
	}
	g.right("read 0 8192 1")
}

func TestFarLimitIsNeverPassed(t *testing.T) {
	const limit = 8 << 20
	c := newContainer(t, memory(t), inRegion, func(p *policy.Policy) { p.FarBytes = limit })
	g := c.interpreter()
	g.does("map 8192")
	g.send("write 0 8192 1") // 32 MiB: half of it neither local nor far
	var reply string
	for reply == "" {
		if far := c.stats().FarBytes; far > limit {
			t.Fatalf("%d bytes are far, more than %d", far, limit)
		}
		select {
		case reply = <-g.lines:
		case <-time.After(time.Millisecond):
		}
	}
	c.evict(0)
	s := c.stats()
	if reply != "ok" || s.FarLimitHits == 0 || s.FarBytes != limit {
		t.Errorf("reply %q, %d hits, %d bytes far, want %d", reply, s.FarLimitHits, s.FarBytes, limit)
	}
	if log := c.log.String(); !strings.Contains(log, "far limit of 8 MiB") {
		t.Errorf("the log does not say so:\n%s", log)
	}
	g.right("read 0 8192 1")
	if far := c.stats().FarBytes; far > limit {
		t.Errorf("%d bytes are far", far)
	}
	// Far pages that are given up make room for others.
	g.does("drop 0 8192")
	c.within("nothing is far", func() bool { return c.stats().FarBytes == 0 })
	g.does("write 0 1500 2")
	c.evict(1400)
	g.right("read 0 1500 2")
}

func TestPagesOfZerosNeedNoRoom(t *testing.T) {
	c := newContainer(t, memory(t), inRegion)
	g := c.interpreter()
	g.does("map 1024")
	g.does("write 0 1024 1")
	g.does("drop 0 1024")
	g.right("read 0 1024 0") // 4 MiB of zero pages
	g.does("write 1000 1001 1")
	g.does("drop 1000 1001")
	c.evict(0)
	if s := c.stats(); s.FarBytes != 0 || s.StoreBytes != 0 {
		t.Errorf("%d bytes are far and cost %d", s.FarBytes, s.StoreBytes)
	}
	g.right("read 0 1024 0")
}

package engine

import (
	"testing"

	"github.com/farpage/farpage/handler/space"
	"github.com/farpage/farpage/handler/uffd"
	"golang.org/x/sys/unix"
)

// A child that is forked beside other events goes to where its mappings say that it was
// made, and stays where its event was read where they do not say: a REMOVE changes no
// mapping, and one that the parent made after the fork must not reach the child.
func TestForkStaysWhereItWasReadWhereMappingsDoNotSayOtherwise(t *testing.T) {
	const a, b = uint64(0x7f0000000000), uint64(0x7f0000100000)
	remove := uffd.Msg{Event: uffd.EventRemove, Arg: [3]uint64{a, a + 0x4000}}
	unmap := uffd.Msg{Event: uffd.EventUnmap, Arg: [3]uint64{a, a + 0x4000}}
	remap := uffd.Msg{Event: uffd.EventRemap, Arg: [3]uint64{a, b, 0x4000}}
	at := func(addrs ...uint64) (r ranges) {
		for _, x := range addrs {
			r.add(x, x+0x4000)
		}
		return r
	}
	for _, c := range []struct {
		name     string
		others   []uffd.Msg
		now, had ranges
		read     int
		want     int
	}{
		{"a remove read after the fork", []uffd.Msg{remove}, at(a), at(a), 0, 0},
		{"a remove read before the fork", []uffd.Msg{remove}, at(a), at(a), 1, 1},
		{"the child has what was unmapped", []uffd.Msg{unmap}, at(), at(a), 1, 0},
		{"the child has not what was unmapped", []uffd.Msg{unmap}, at(), at(), 0, 1},
		{"unmapped, and mapped again since", []uffd.Msg{unmap}, at(a), at(a), 0, 0},
		{"forked before a move, read behind it", []uffd.Msg{remap}, at(b), at(a), 1, 0},
		{"forked behind a move, read before it", []uffd.Msg{remap}, at(b), at(b), 0, 1},
		{"between a remove and a move", []uffd.Msg{remove, remap}, at(b), at(a), 1, 1},
	} {
		e, _, _ := fakeEngine(t)
		var others []int
		for i, m := range c.others {
			e.mem.Ring[i].Msg = m
			others = append(others, i)
		}
		if got := e.position(others, c.now, c.had, c.read); got != c.want {
			t.Errorf("%s: after %d of the others, want %d", c.name, got, c.want)
		}
	}
}

// The parent may die while its child is looked for: the FORK has a record by then, and
// the child lives on with that record's userfaultfd.
func TestChildOfAParentThatDiesBeforeItsForkIsAppliedIsTakenIn(t *testing.T) {
	e, p, _ := fakeEngine(t)
	var err error
	if e.poller, err = newPoller(); err != nil {
		t.Fatal(err)
	}
	defer e.poller.close()
	if e.buf, err = pages(1); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Munmap(e.buf) }()
	slot := mustPut(t, e.slots, pageOf(1))
	const addr = uint64(0x7f0000000000)
	if err := p.table.Set(addr, space.Make(space.Slot, slot)); err != nil {
		t.Fatal(err)
	}
	uffdOfChild, err := unix.Eventfd(0, unix.EFD_CLOEXEC) // something that can be polled
	if err != nil {
		t.Fatal(err)
	}
	ev := &e.mem.Ring[0]
	ev.Source, ev.Msg = uint32(p.index)+1, uffd.Msg{Event: uffd.EventFork, Arg: [3]uint64{uint64(uffdOfChild)}}
	p.batch, p.placing = []int{0}, true
	if _, err := e.child(p, ev); err != nil { // as looking for it does
		t.Fatal(err)
	}
	e.reap(p)
	if len(e.live) != 1 || e.live[0].uffd() != uffdOfChild || ev.Source != 0 {
		t.Fatalf("%d processes are left, ring slot of %d", len(e.live), ev.Source)
	}
	if got := e.live[0].table.Get(addr); got.Slot() != slot || e.slots.refs[slot] != 1 {
		t.Errorf("the child has %v, its slot %d references", got.State(), e.slots.refs[slot])
	}
	e.reap(e.live[0])
}

package engine

import (
	"testing"

	"github.com/farpage/farpage/handler/uffd"
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

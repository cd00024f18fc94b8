package state

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/farpage/farpage/handler/space"
	"golang.org/x/sys/unix"
)

func newMemory(t *testing.T) *Memory {
	t.Helper()
	m, err := New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
		_ = unix.Close(m.FD)
	})
	return m
}

func open2(t *testing.T, fd int) *Memory {
	t.Helper()
	m, err := Open(fd)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close() })
	return m
}

// last writes into and reads from the last of everything: parts that overlap, or
// that two mappings have at different places, show.
func TestWhatOneMappingWritesAnotherReads(t *testing.T) {
	a := newMemory(t)
	if a.Header.Magic != Magic || a.Header.Version != Version || a.Header.ListenerFD != -1 {
		t.Fatalf("a new state begins with %+v", a.Header)
	}
	a.Header.Sequence, a.Header.ID, a.Header.Counters.Latency[39] = 7, 8, 9
	config := bytes.Repeat([]byte("c"), configMax/2) // there is room for two
	if err := a.SetConfig(config); err != nil {
		t.Fatal(err)
	}
	ends := func(n int) []int { return []int{0, n - 1} }
	for _, i := range ends(MaxProcs) {
		a.Procs[i] = Proc{Used: ProcLive, UffdFD: int32(i), Root: ^uint32(i), Parent: -5}
		for _, j := range ends(RunsMax) {
			a.Runs(i)[j] = Run{Addr: uint64(i + j), Pages: 2, First: 3}
		}
	}
	for _, i := range ends(RingSlots) {
		a.Ring[i].Sequence, a.Ring[i].Source = uint64(i)+11, 12
		a.Ring[i].Msg.Arg[2] = 13
		a.Ring[i].Child = 14
	}
	for _, i := range ends(len(a.Slots)) {
		a.Slots[i] = Slot{Handle: uint64(i) + 21, Sum: 22, Raw: 23, Generation: 24}
	}
	for _, i := range ends(len(a.Nodes)) {
		a.Nodes[i] = space.Make(space.Slot, uint32(i)+31)
	}
	for _, i := range ends(RawBuffers) {
		copy(a.RawPage(uint32(i)), fmt.Sprintf("raw %d", i))
	}
	for _, i := range ends(len(a.Arena) / 4096) {
		copy(a.Arena[i*4096:], fmt.Sprintf("arena %d", i))
	}

	b := open2(t, a.FD)
	if *b.Header != *a.Header || b.Header.Counters.Latency[39] != 9 {
		t.Errorf("header %+v, want %+v", b.Header, a.Header)
	}
	if !bytes.Equal(b.Config(), config) {
		t.Error("the configuration is another one")
	}
	for _, i := range ends(MaxProcs) {
		if want := (Proc{Used: ProcLive, UffdFD: int32(i), Root: ^uint32(i), Parent: -5}); b.Procs[i] != want {
			t.Errorf("Procs[%d] is %+v", i, b.Procs[i])
		}
		for _, j := range ends(RunsMax) {
			if b.Runs(i)[j] != (Run{Addr: uint64(i + j), Pages: 2, First: 3}) {
				t.Errorf("Runs(%d)[%d] is %+v", i, j, b.Runs(i)[j])
			}
		}
	}
	for _, i := range ends(RingSlots) {
		if e := b.Ring[i]; e.Sequence != uint64(i)+11 || e.Source != 12 || e.Msg.Arg[2] != 13 || e.Child != 14 {
			t.Errorf("Ring[%d] is %+v", i, e)
		}
	}
	for _, i := range ends(len(a.Slots)) {
		if b.Slots[i] != (Slot{Handle: uint64(i) + 21, Sum: 22, Raw: 23, Generation: 24}) {
			t.Errorf("Slots[%d] is %+v", i, b.Slots[i])
		}
	}
	for _, i := range ends(len(a.Nodes)) {
		if b.Nodes[i] != space.Make(space.Slot, uint32(i)+31) {
			t.Errorf("Nodes[%d] is %#x", i, b.Nodes[i])
		}
	}
	for _, i := range ends(RawBuffers) {
		if want := fmt.Sprintf("raw %d", i); !bytes.HasPrefix(b.RawPage(uint32(i)), []byte(want)) {
			t.Errorf("raw page %d is %q", i, b.RawPage(uint32(i))[:16])
		}
	}
	for _, i := range ends(len(a.Arena) / 4096) {
		if want := fmt.Sprintf("arena %d", i); !bytes.HasPrefix(b.Arena[i*4096:], []byte(want)) {
			t.Errorf("arena page %d is %q", i, b.Arena[i*4096:i*4096+16])
		}
	}
	// The other way round, while both live: it is one memory.
	b.Header.Sequence = 99
	if a.Header.Sequence != 99 {
		t.Error("the two mappings are copies")
	}
}

func TestPartsOfTheStateDoNotOverlap(t *testing.T) {
	m := newMemory(t)
	type part struct {
		name       string
		start, end uintptr
	}
	var parts []part
	add := func(name string, start, end uintptr) { parts = append(parts, part{name, start, end}) }
	start, end := extent(m.mapping[:4096])
	add("header", start, end)
	start, end = extent(m.config)
	add("configuration", start, end)
	start, end = extent(m.Procs)
	add("procs", start, end)
	start, end = extent(m.runs)
	add("runs", start, end)
	start, end = extent(m.Ring)
	add("ring", start, end)
	start, end = extent(m.Slots)
	add("slots", start, end)
	start, end = extent(m.Nodes)
	add("nodes", start, end)
	start, end = extent(m.Raw)
	add("raw buffers", start, end)
	start, end = extent(m.Arena)
	add("arena", start, end)
	_, limit := extent(m.mapping)
	add("the end", limit, limit)
	for i := range parts[1:] {
		if a, b := parts[i], parts[i+1]; a.end > b.start || b.start%8 != 0 {
			t.Errorf("%s ends at %#x, %s begins at %#x", a.name, a.end, b.name, b.start)
		}
	}
}

func TestStateThatIsNotOursIsRefusedWithTheReason(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(m *Memory) error
		says   string
	}{
		{"another magic", func(m *Memory) error { m.Header.Magic++; return nil }, "not farpage's"},
		{"another version", func(m *Memory) error { m.Header.Version++; return nil }, "another version"},
		{"a page more", func(m *Memory) error {
			return unix.Ftruncate(m.FD, int64(len(m.mapping))+4096)
		}, fmt.Sprintf("%d bytes, want %d", int64(len(newMemory(t).mapping))+4096, len(newMemory(t).mapping))},
		{"nothing", func(m *Memory) error { return unix.Ftruncate(m.FD, 0) }, "0 bytes"},
	} {
		m := newMemory(t)
		if err := c.change(m); err != nil {
			t.Fatal(err)
		}
		_, err := Open(m.FD)
		if err == nil || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), "state of a container") {
			t.Errorf("%s: %v, want %q", c.name, err, c.says)
		}
	}
	if _, err := Open(-1); err == nil {
		t.Error("no descriptor was taken")
	}
}

func TestConfigurationIsReplacedAsAWholeAndRefusedWhereItDoesNotFit(t *testing.T) {
	m := newMemory(t)
	for _, length := range []int{3, 0, configMax / 2, 17, configMax / 2} {
		old := bytes.Clone(m.Config())
		want := bytes.Repeat([]byte{byte(length) + 1}, length)
		if err := m.SetConfig(make([]byte, configMax/2+1)); err == nil {
			t.Error("one that does not fit was taken")
		}
		if !bytes.Equal(m.Config(), old) {
			t.Errorf("after one that was refused there are %d bytes, want the %d before", len(m.Config()), len(old))
		}
		// What a crash would leave: the new one is there, and not yet in force.
		before := m.Header.ConfigLen
		if err := m.SetConfig(want); err != nil {
			t.Fatal(err)
		}
		if got := open2(t, m.FD).Config(); !bytes.Equal(got, want) {
			t.Errorf("%d bytes, want %d", len(got), length)
		}
		after := m.Header.ConfigLen
		if m.Header.ConfigLen = before; !bytes.Equal(m.Config(), old) {
			t.Error("the one before was overwritten before the new one was in force")
		}
		m.Header.ConfigLen = after
	}
	// What is read back is never longer than there is.
	m.Header.ConfigLen = ^uint32(0)
	if len(m.Config()) > configMax {
		t.Errorf("a broken length gives %d bytes", len(m.Config()))
	}
}

// present counts pages of the file that have memory.
func present(t *testing.T, b []byte) int {
	t.Helper()
	vec := make([]byte, (len(b)+4095)/4096)
	if err := mincore(b, vec); err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, v := range vec {
		n += int(v & 1)
	}
	return n
}

func TestRingHasItsMemoryFromTheFirstMomentAndNothingElseHas(t *testing.T) {
	a := newMemory(t)
	ring := bytesOf(a.Ring)
	if n, want := present(t, ring), len(ring)/4096; n != want {
		t.Errorf("%d of the ring's %d pages have memory: an event read at a bad moment is lost", n, want)
	}
	var before unix.Stat_t
	if err := unix.Fstat(a.FD, &before); err != nil {
		t.Fatal(err)
	}
	if most := int64(len(ring)) + 64<<10; before.Blocks*512 > most {
		t.Errorf("an idle container's state costs %d bytes, more than %d", before.Blocks*512, most)
	}
	b := open2(t, a.FD)
	if n, want := present(t, bytesOf(b.Ring)), len(ring)/4096; n != want {
		t.Errorf("in a second mapping %d of the ring's %d pages have memory", n, want)
	}
}

func TestReleasedMemoryReadsAsZerosAndCostsNothing(t *testing.T) {
	m := newMemory(t)
	blocks := func() int64 {
		var st unix.Stat_t
		if err := unix.Fstat(m.FD, &st); err != nil {
			t.Fatal(err)
		}
		return st.Blocks * 512
	}
	before := blocks()
	const at, length = 1 << 20, 256 << 10
	for i := range 3 * length {
		m.Arena[at-length+i] = 1
	}
	m.RawPage(3)[0], m.RawPage(RawBuffers - 1)[4095] = 1, 1
	grown := blocks()
	if err := m.ReleaseArena(at, length); err != nil {
		t.Fatal(err)
	}
	if n := grown - blocks(); n != length {
		t.Errorf("%d bytes came back, want %d", n, length)
	}
	if err := m.ReleaseRaw(); err != nil {
		t.Fatal(err)
	}
	if n := blocks() - before; n != 2*length {
		t.Errorf("%d bytes are left, want %d", n, 2*length)
	}
	// To read a hole fills it: this comes last.
	if m.Arena[at-1] != 1 || m.Arena[at] != 0 || m.Arena[at+length-1] != 0 || m.Arena[at+length] != 1 {
		t.Error("another range was released than asked for")
	}
	if m.RawPage(3)[0] != 0 || m.RawPage(RawBuffers - 1)[4095] != 0 || m.Arena[at-1] != 1 {
		t.Error("not the raw buffers were released")
	}
}

func newRoot(t *testing.T) *Root {
	t.Helper()
	r, err := NewRoot()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = unix.Munmap(r.b)
		_ = unix.Close(r.FD)
	})
	return r
}

func TestTableOfContainersIsTheSameInASecondMapping(t *testing.T) {
	r := newRoot(t)
	for _, fd := range []int{0, 70, 71} { // 0 is a descriptor as others
		if err := r.Add(fd); err != nil {
			t.Fatal(err)
		}
	}
	r.Remove(70)
	r.Remove(12345) // of none
	if err := r.Add(72); err != nil {
		t.Fatal(err)
	}
	other, err := OpenRoot(r.FD)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Munmap(other.b) })
	got := other.StateFDs()
	slices.Sort(got)
	if !slices.Equal(got, []int{0, 71, 72}) {
		t.Errorf("containers %v, want 0, 71 and 72", got)
	}
	other.Remove(0)
	if got := r.StateFDs(); len(got) != 2 {
		t.Errorf("containers %v after one was removed by the other mapping", got)
	}
}

func TestTableOfContainersSaysWhenItIsFull(t *testing.T) {
	r := newRoot(t)
	for i := range MaxContainers {
		if err := r.Add(i); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Add(MaxContainers); err == nil || !strings.Contains(err.Error(), "4000") {
		t.Errorf("one more: %v", err)
	}
	if n := len(r.StateFDs()); n != MaxContainers {
		t.Errorf("%d containers", n)
	}
	r.Remove(1234)
	if err := r.Add(MaxContainers); err != nil {
		t.Errorf("after one was removed: %v", err)
	}
}

func TestTableOfContainersThatIsNotOursIsRefused(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(r *Root) error
	}{
		{"another magic", func(r *Root) error { r.t.Magic++; return nil }},
		{"another version", func(r *Root) error { r.t.Version++; return nil }},
		{"another size", func(r *Root) error { return unix.Ftruncate(r.FD, int64(rootBytes)+4096) }},
	} {
		r := newRoot(t)
		if err := c.change(r); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenRoot(r.FD); err == nil || !strings.Contains(err.Error(), "another version") {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	if _, err := OpenRoot(-1); err == nil {
		t.Error("no descriptor was taken")
	}
}

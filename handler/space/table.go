package space

import "iter"

// levels of the tree: 4 times 9 bits above the page offset, 48 bits in all.
const levels = 4

func index(addr uint64, level int) int {
	return int(addr>>(PageShift+9*level)) & (Fan - 1)
}

// span is how many bytes one entry of a node at this level covers.
func span(level int) uint64 { return 1 << (PageShift + 9*level) }

// Table is one process's page table. Addresses are of that process, page
// aligned, below Limit; ranges are half open. Inner entries are empty, a pointer
// to a node, or `removed` for everything below them.
//
// Slots are counted by the caller: `drop` is called for each entry that gives up
// a slot, before it is overwritten.
type Table struct {
	nodes *Nodes
	root  uint32
}

// NewTable makes an empty table.
func NewTable(n *Nodes) (Table, error) {
	r := n.alloc()
	if r == 0 {
		return Table{}, ErrNoNodes
	}
	return Table{n, r}, nil
}

// OpenTable takes up a table by its root, after an agent's death.
func OpenTable(n *Nodes, root uint32) Table { return Table{n, root} }

// Root names the table for OpenTable.
func (t Table) Root() uint32 { return t.root }

// Get returns a page's entry.
func (t Table) Get(addr uint64) Entry {
	if addr >= Limit {
		return 0
	}
	i := t.root
	for level := levels - 1; level > 0; level-- {
		e := t.nodes.node(i)[index(addr, level)]
		if e.State() != pointer {
			return e
		}
		i = e.Slot()
	}
	return t.nodes.node(i)[index(addr, 0)]
}

// Set writes a page's entry. It does not drop the old one.
func (t Table) Set(addr uint64, e Entry) error {
	if addr >= Limit {
		return ErrNoNodes
	}
	leaf, err := t.leaf(addr)
	if err != nil {
		return err
	}
	leaf[index(addr, 0)] = e
	return nil
}

// leaf returns the leaf of addr, made if it is not there.
func (t Table) leaf(addr uint64) (*[Fan]Entry, error) {
	i := t.root
	for level := levels - 1; level > 0; level-- {
		e := &t.nodes.node(i)[index(addr, level)]
		if e.State() != pointer {
			below := t.nodes.alloc()
			if below == 0 {
				return nil, ErrNoNodes
			}
			if *e != 0 { // `removed` for all: now one by one
				for j := range t.nodes.node(below) {
					t.nodes.node(below)[j] = *e
				}
			}
			*e = Make(pointer, below)
		}
		i = e.Slot()
	}
	return t.nodes.node(i), nil
}

// NextLeaf returns the first leaf that covers addr or something above it: its
// entries, which may be changed in place, and the address of the first. ok is
// false when there is none.
func (t Table) NextLeaf(addr uint64) (base uint64, leaf *[Fan]Entry, ok bool) {
	return t.nextLeaf(t.root, levels-1, 0, addr)
}

// Leaves yields all leaves: the address of the first entry, and the entries, which may
// be changed in place.
func (t Table) Leaves() iter.Seq2[uint64, *[Fan]Entry] {
	return func(yield func(uint64, *[Fan]Entry) bool) {
		for at := uint64(0); ; {
			base, leaf, ok := t.NextLeaf(at)
			if !ok || !yield(base, leaf) {
				return
			}
			at = base + span(1)
		}
	}
}

func (t Table) nextLeaf(i uint32, level int, at, addr uint64) (uint64, *[Fan]Entry, bool) {
	if level == 0 {
		return at, t.nodes.node(i), true
	}
	first := 0
	if addr > at {
		first = index(addr, level)
	}
	for j := first; j < Fan; j++ {
		e := t.nodes.node(i)[j]
		if e.State() != pointer {
			continue
		}
		if b, l, ok := t.nextLeaf(e.Slot(), level-1, at+uint64(j)*span(level), addr); ok {
			return b, l, true
		}
	}
	return 0, nil, false
}

// Remove applies a REMOVE event: every page of the range becomes `removed`,
// because the pages go only after the event was read. Doing it twice is doing it
// once.
func (t Table) Remove(start, end uint64, drop func(slot uint32)) error {
	return t.overwrite(t.root, levels-1, 0, start, min(end, Limit), Make(Removed, 0)|removedOnce, drop)
}

// Clear applies an UNMAP event: every page of the range becomes `untouched`.
func (t Table) Clear(start, end uint64, drop func(slot uint32)) error {
	return t.overwrite(t.root, levels-1, 0, start, min(end, Limit), 0, drop)
}

// overwrite gives all entries of [start, end) one value.
func (t Table) overwrite(i uint32, level int, at, start, end uint64, value Entry, drop func(uint32)) error {
	node := t.nodes.node(i)
	step := span(level)
	first, last := 0, Fan-1
	if start > at {
		first = int((start - at) / step)
	}
	if end < at+step*Fan {
		last = int((end - 1 - at) / step)
	}
	if end <= start || first >= Fan {
		return nil
	}
	for j := first; j <= last; j++ {
		from := at + uint64(j)*step
		e := node[j]
		if level == 0 {
			if e.State() == Slot && drop != nil {
				drop(e.Slot())
			}
			node[j] = value
			continue
		}
		whole := start <= from && end >= from+step
		if e.State() != pointer {
			if e == value {
				continue
			}
			if whole && level < levels-1 {
				node[j] = value
				continue
			}
			if _, err := t.leaf(max(from, start)); err != nil {
				return err
			}
			e = node[j]
		}
		if err := t.overwrite(e.Slot(), level-1, from, start, end, value, drop); err != nil {
			return err
		}
		if whole && level < levels-1 {
			node[j] = value
			t.nodes.release(e.Slot())
		}
	}
	return nil
}

// Copy is the first phase of a REMAP: the entries of [from, from+length) are
// written over those at `to`, which are dropped. The ranges do not overlap.
// Doing it twice is doing it once.
func (t Table) Copy(from, to, length uint64, drop func(slot uint32)) error {
	for off := uint64(0); off < length; {
		e, run := t.run(from+off, length-off)
		if e == 0 && run >= PageSize {
			if err := t.Clear(to+off, to+off+run, drop); err != nil {
				return err
			}
			off += run
			continue
		}
		old := t.Get(to + off)
		if old != e {
			if old.State() == Slot && drop != nil {
				drop(old.Slot())
			}
			if err := t.Set(to+off, e); err != nil {
				return err
			}
		}
		off += PageSize
	}
	return nil
}

// run returns the entry at addr and for how many bytes, at most length, nothing
// else is known to follow.
func (t Table) run(addr, length uint64) (Entry, uint64) {
	if addr >= Limit {
		return 0, length
	}
	i := t.root
	for level := levels - 1; level > 0; level-- {
		e := t.nodes.node(i)[index(addr, level)]
		if e.State() != pointer {
			return e, min(length, span(level)-addr&(span(level)-1))
		}
		i = e.Slot()
	}
	return t.nodes.node(i)[index(addr, 0)], PageSize
}

// Fork makes a child's table: a copy in which nothing is in flight. ref is called
// for each slot that it shares, before the copy shows it, and drop for each of them
// again if there is no memory for the whole.
func (t Table) Fork(ref, drop func(slot uint32)) (Table, error) {
	r, err := t.fork(t.root, levels-1, ref, drop)
	if err != nil {
		return Table{}, err
	}
	return Table{t.nodes, r}, nil
}

func (t Table) fork(i uint32, level int, ref, drop func(uint32)) (uint32, error) {
	to := t.nodes.alloc()
	if to == 0 {
		return 0, ErrNoNodes
	}
	from, dst := t.nodes.node(i), t.nodes.node(to)
	for j, e := range from {
		switch e.State() {
		case pointer:
			below, err := t.fork(e.Slot(), level-1, ref, drop)
			if err != nil {
				t.free(to, level, drop)
				return 0, err
			}
			e = Make(pointer, below)
		case Slot:
			ref(e.Slot())
		case InFlight:
			e = e.To(Touched, 0)
		case Untouched, Touched, Removed, Poisoned:
		}
		dst[j] = e
	}
	return to, nil
}

// Free drops every entry and gives the table's nodes back.
func (t Table) Free(drop func(slot uint32)) {
	t.free(t.root, levels-1, drop)
}

func (t Table) free(i uint32, level int, drop func(uint32)) {
	for _, e := range t.nodes.node(i) {
		switch {
		case e.State() == pointer:
			t.free(e.Slot(), level-1, drop)
		case e.State() == Slot && drop != nil:
			drop(e.Slot())
		}
	}
	t.nodes.release(i)
}

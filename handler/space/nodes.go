package space

import "errors"

// ErrNoNodes says that the memory for page tables is used up.
var ErrNoNodes = errors.New("space: out of page table memory")

// Fan is the number of entries in a node.
const Fan = 512

// NodeSize is a node's size in bytes.
const NodeSize = Fan * 8

// Nodes hands out the nodes of all tables of one container from one piece of
// memory. Node 0 is never given out. Which nodes are free is private: after an
// agent's death it follows from the tables (Recover).
type Nodes struct {
	mem  []Entry
	free []uint32
	next uint32 // nodes from here on were never used
}

// NewNodes takes mem, whose length is a multiple of Fan, all zero beyond what
// tables use.
func NewNodes(mem []Entry) *Nodes { return &Nodes{mem: mem, next: 1} }

// Used returns how many nodes are in use.
func (n *Nodes) Used() int { return int(n.next) - 1 - len(n.free) }

func (n *Nodes) node(i uint32) *[Fan]Entry {
	return (*[Fan]Entry)(n.mem[uint64(i)*Fan:])
}

// alloc returns a zeroed node, 0 when there is none.
func (n *Nodes) alloc() uint32 {
	if k := len(n.free); k > 0 {
		i := n.free[k-1]
		n.free = n.free[:k-1]
		*n.node(i) = [Fan]Entry{}
		return i
	}
	if uint64(n.next+1)*Fan > uint64(len(n.mem)) {
		return 0
	}
	n.next++
	i := n.next - 1
	*n.node(i) = [Fan]Entry{}
	return i
}

func (n *Nodes) release(i uint32) { n.free = append(n.free, i) }

// Recover rebuilds the free list: everything that is not reached from a root is
// free. Preconditions: no table of n is in use.
func (n *Nodes) Recover(roots []uint32) {
	used := map[uint32]bool{}
	top := uint32(0)
	var visit func(i uint32, level int)
	visit = func(i uint32, level int) {
		if i == 0 || uint64(i+1)*Fan > uint64(len(n.mem)) || used[i] {
			return
		}
		used[i] = true
		top = max(top, i)
		if level == 0 {
			return
		}
		for _, e := range n.node(i) {
			if e.State() == pointer {
				visit(e.Slot(), level-1)
			}
		}
	}
	for _, r := range roots {
		visit(r, levels-1)
	}
	n.free = n.free[:0]
	n.next = top + 1
	for i := top; i > 0; i-- {
		if !used[i] {
			n.free = append(n.free, i)
		}
	}
}

// Package space holds the page table of a managed process: for each page, what
// to give when the kernel says that it is missing. The kernel's own page table is
// the truth about presence; nothing here says that a page is there.
//
// The table is a radix tree of 4 KiB nodes in memory that outlives the agent
// (see Nodes), changed in an order that a reader after a crash understands. The
// package is pure: no I/O, no clock, standard library only.
package space

// Page sizes and the range of addresses that a table covers: 47 bits, what
// programs on x86-64 have unless they ask for more by a hint.
const (
	PageSize  = 4096
	PageShift = 12
	Limit     = uint64(1) << 47
)

// State says what a missing page is served with.
//
//	           fault served            moved out          REMOVE read
//	Untouched ------------> Touched ------------> Slot ------------> Removed
//	                          ^  |                 |                    |
//	                          |  +--> InFlight ----+ (moved)            |
//	                          |         |                               |
//	                          +---------+ (not moved)                   |
//	                          +---- fault served <----------------------+
//
// Slot -> Touched when its bytes were served. Poisoned: the bytes are lost, the
// page raises SIGBUS. UNMAP leads from everywhere to Untouched.
type State uint8

// The states. Untouched is 0: fresh memory is a table of nothing.
const (
	Untouched State = 0 // zeros
	Slot      State = 1 // the bytes in Entry.Slot
	InFlight  State = 2 // the helper was told to move it; wait for the result
	Touched   State = 3 // the program has it; missing only after a REMOVE
	Removed   State = 4 // zeros; may still be present until the zap
	Poisoned  State = 5
	pointer   State = 7 // inner nodes only: Entry.Slot is a node
)

func (s State) String() string {
	switch s {
	case Untouched:
		return "untouched"
	case Slot:
		return "slot"
	case InFlight:
		return "in flight"
	case Touched:
		return "touched"
	case Removed:
		return "removed"
	case Poisoned:
		return "poisoned"
	case pointer:
		return "pointer"
	}
	return "invalid"
}

// Entry is one page's word: state in bits 0-2, flags in 3-7, slot from bit 8.
type Entry uint64

const (
	stateMask   Entry = 7
	removedOnce Entry = 1 << 3 // a REMOVE was read for this page: zeros are explained
	ageShift          = 4
	ageMask     Entry = 3 << ageShift
	refused     Entry = 1 << 6 // the kernel would not move it lately
	keep              = removedOnce
	slotShift         = 8
)

// MaxAge is the largest age.
const MaxAge = 3

// Make returns an entry without flags. slot is only used with Slot.
func Make(s State, slot uint32) Entry { return Entry(s) | Entry(slot)<<slotShift }

// State returns the entry's state.
func (e Entry) State() State { return State(e & stateMask) }

// Slot returns the number of the slot that holds the page's bytes.
func (e Entry) Slot() uint32 { return uint32(e >> slotShift) }

// Age is how many more times the clock passes the page by before it is cold.
func (e Entry) Age() int { return int(e&ageMask) >> ageShift }

// WithAge returns the entry with another age.
func (e Entry) WithAge(age int) Entry { return e&^ageMask | Entry(age)<<ageShift&ageMask }

// RemovedOnce says whether a REMOVE was ever read for the page.
func (e Entry) RemovedOnce() bool { return e&removedOnce != 0 }

// Refused says whether the kernel refused to move the page lately.
func (e Entry) Refused() bool { return e&refused != 0 }

// WithRefused returns the entry with that flag set or cleared.
func (e Entry) WithRefused(on bool) Entry {
	if on {
		return e | refused
	}
	return e &^ refused
}

// To returns the entry in another state, keeping what is known for good.
func (e Entry) To(s State, slot uint32) Entry { return e&keep | Make(s, slot) }

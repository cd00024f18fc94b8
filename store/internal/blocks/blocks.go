// Package blocks divides a file into blocks and knows whose each of them is. It
// does no I/O: whoever holds the block numbers can rebuild the books from them
// (New, Claim, Settle).
//
// 64 blocks are a group, the unit in which a file is filled and given back:
//
//	group      blocks in use  given out by Alloc
//	empty      none           first, the lowest of them
//	partial    some           to who took from it last, else before the file grows too far
//	full       all            no
//	unsettled  any            no: somebody may still claim blocks in it
//
// relist is the one function that moves a group between them. Beside that, a block
// that was written and is not in use any more is idle: it costs room on the disk
// until it is used again or given back.
//
// A Map is not safe for concurrent use.
package blocks

import "math/bits"

// Group is how many blocks a group has.
const Group = 64

// Slack is how many blocks beyond what the rules say may be idle or lie between
// those in use, so that a small file is not looked after too closely.
const Slack = 4096

// Owner says whose a block is. 0 and the numbers from Reserved on are nobody's.
type Owner uint32

// Owners that are no user's.
const (
	nobody   Owner = 0
	Reserved Owner = 1<<32 - 2 // never to be given out
	leaving  Owner = 1<<32 - 1 // on its way back to the file system
)

const all = ^uint64(0)

// group holds no pointers: the collector does not look at it.
type group struct {
	used   uint64 // a bit for each block that has an owner
	idle   uint64
	owners [Group]Owner
}

const groupsPerChunk = 256

type chunk [groupsPerChunk]group

// Map keeps the books of one file.
type Map struct {
	chunks    []*chunk // nil: nothing in it was ever used
	limit     int64    // blocks from here on are not given out
	most      int64    // in use at one time
	high      int64    // groups; those from here on were never used
	unsettled int64    // groups; those below may hold blocks that nobody has claimed yet
	end       int64    // blocks from here on were not there when the file was opened

	empty   index // groups, see above
	partial index // groups, see above
	idle    index // groups with idle blocks
	allIdle index // those of them in which nothing is used

	used     int64 // blocks with any owner
	idling   int64 // blocks that are idle
	leavings int64 // blocks that are leaving
	reserved int64 // blocks that are Reserved
}

// New makes the books of a file that has end blocks, of which nobody knows yet who
// has them. Blocks from limit on are not given out. Block 0 is the caller's own.
func New(end, limit int64) *Map {
	groups := max(1, (end+Group-1)/Group)
	m := &Map{limit: limit, most: limit - 1, high: groups, unsettled: groups, end: end}
	if end <= 1 {
		m.unsettled = 0 // there is nothing to claim
	}
	m.own(0, Reserved)
	m.reserved++
	m.relist(0)
	return m
}

// Used is how many blocks have a user.
func (m *Map) Used() int64 { return m.used - m.leavings - m.reserved }

// Idle is how many blocks cost room on the disk for nothing.
func (m *Map) Idle() int64 { return m.idling }

// Has says whether block is user's.
func (m *Map) Has(user Owner, block int64) bool {
	if block < 0 || block >= m.high*Group || !m.touched(block/Group) {
		return false
	}
	return m.group(block / Group).owners[block%Group] == user
}

// Claim makes a block user's that was so before the file was opened. False: it
// was not there, or somebody has it.
func (m *Map) Claim(user Owner, block int64) bool {
	if block < 1 || block >= m.end || m.group(block/Group).used>>(block%Group)&1 != 0 {
		return false
	}
	m.own(block, user)
	m.relist(block / Group)
	return true
}

// Settle says that all who live have claimed what is theirs: the rest of the file
// is free. Before it only blocks that were not there when the file was opened are
// given out, which nobody can claim.
func (m *Map) Settle() {
	until := m.unsettled
	m.unsettled = 0
	for at := range until {
		g := m.group(at)
		idle := ^g.used
		if past := (at+1)*Group - m.end; past > 0 {
			idle &= all >> past
		}
		m.idling += int64(bits.OnesCount64(idle) - bits.OnesCount64(g.idle))
		g.idle = idle
		m.relist(at)
	}
}

// Settled says whether Settle was called, or there was nothing to claim.
func (m *Map) Settled() bool { return m.unsettled == 0 }

// Alloc gives user a block, from group *at if that has one, so that what is stored
// together lies together. *at is then where it came from. False: there is none.
func (m *Map) Alloc(user Owner, at *int64) (block int64, ok bool) {
	if m.Used()+m.leavings >= m.most {
		return 0, false
	}
	if *at < 0 || *at >= m.high || m.free(*at) == 0 {
		if *at, ok = m.choose(); !ok {
			return 0, false
		}
	}
	block = *at*Group + int64(bits.TrailingZeros64(m.free(*at)))
	m.own(block, user)
	m.relist(*at)
	return block, true
}

// choose picks a group that has a free block.
func (m *Map) choose() (at int64, ok bool) {
	if at, ok = m.empty.first(); ok {
		return at, true
	}
	if m.high*Group < 2*m.used+Slack && m.idling <= m.used/8+Slack {
		if at, ok = m.extend(); ok {
			return at, true
		}
	}
	if at, ok = m.partial.first(); ok {
		return at, true
	}
	return m.extend()
}

func (m *Map) extend() (at int64, ok bool) {
	if m.high*Group >= m.limit {
		return 0, false
	}
	m.high++
	m.relist(m.high - 1)
	return m.high - 1, true
}

// Free takes a block back from user, to be used again. False: it was not theirs.
func (m *Map) Free(user Owner, block int64) bool {
	if !m.Has(user, block) {
		return false
	}
	m.disown(block, true)
	m.relist(block / Group)
	return true
}

// AllocIdle is Alloc for a file system without room: it gives a block that has its
// room already. Once the file is settled it finds one if there is one.
func (m *Map) AllocIdle(user Owner) (block int64, ok bool) {
	at, ok := m.idle.first()
	if !ok || m.Used()+m.leavings >= m.most {
		return 0, false
	}
	usable := m.free(at) & m.group(at).idle
	if usable == 0 {
		return 0, false // in what is unsettled or beyond the limit
	}
	block = at*Group + int64(bits.TrailingZeros64(usable))
	m.own(block, user)
	m.relist(at)
	return block, true
}

// Give makes a block to's that is from's. False: it is not.
func (m *Map) Give(from, to Owner, block int64) bool {
	if !m.Has(from, block) {
		return false
	}
	m.group(block / Group).owners[block%Group] = to
	return true
}

// Cancel takes a block back that Alloc gave and that was not written.
func (m *Map) Cancel(block int64) {
	m.disown(block, false)
	m.relist(block / Group)
}

// Retire takes a block back that cannot be written. It is not given out again.
func (m *Map) Retire(block int64) {
	m.group(block / Group).owners[block%Group] = Reserved
	m.reserved++
}

// Retired is how many blocks cannot be written.
func (m *Map) Retired() int64 { return m.reserved - 1 }

// FreeAll frees what user has among the blocks of some groups from first on, 0 at
// first, and says where to go on; 0: that was all. So a caller can let others in
// between.
func (m *Map) FreeAll(user Owner, first int64) (next int64) {
	until := min(m.high, first+groupsPerChunk) // in one chunk
	for at := first; at < until && m.touched(at); at++ {
		for left := m.group(at).used; left != 0; left &= left - 1 {
			m.Free(user, at*Group+int64(bits.TrailingZeros64(left)))
		}
	}
	if until == m.high {
		return 0
	}
	return until
}

// free has a bit for each block of a group that may be given out.
func (m *Map) free(at int64) uint64 {
	if at < m.unsettled {
		return 0
	}
	free := ^m.group(at).used
	if past := (at+1)*Group - m.limit; past > 0 {
		free &= all >> past // 0 from 64 on
	}
	return free
}

// relist is to be called whenever something about a group has changed.
func (m *Map) relist(at int64) {
	g, free := m.group(at), m.free(at)
	m.empty.put(at, free == all)
	m.partial.put(at, free != 0 && free != all)
	m.idle.put(at, g.idle != 0)
	m.allIdle.put(at, g.idle != 0 && g.used == 0)
}

func (m *Map) own(block int64, owner Owner) {
	g, bit := m.group(block/Group), uint64(1)<<(block%Group)
	if g.idle&bit != 0 {
		m.idling--
	}
	g.idle &^= bit
	g.used |= bit
	g.owners[block%Group] = owner
	m.used++
	m.high = max(m.high, block/Group+1)
}

func (m *Map) disown(block int64, idle bool) {
	g, bit := m.group(block/Group), uint64(1)<<(block%Group)
	g.used &^= bit
	g.owners[block%Group] = nobody
	m.used--
	if idle {
		g.idle |= bit
		m.idling++
	}
}

// touched says whether anything of a group's chunk was ever used.
func (m *Map) touched(at int64) bool {
	i := at / groupsPerChunk
	return i < int64(len(m.chunks)) && m.chunks[i] != nil
}

func (m *Map) group(at int64) *group {
	for int64(len(m.chunks)) <= at/groupsPerChunk {
		m.chunks = append(m.chunks, nil)
	}
	c := &m.chunks[at/groupsPerChunk]
	if *c == nil {
		*c = new(chunk)
	}
	return &(*c)[at%groupsPerChunk]
}

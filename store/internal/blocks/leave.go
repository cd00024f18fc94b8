package blocks

import "math/bits"

// Run is blocks in a row.
type Run struct{ First, Count int64 }

// Runs puts ascending blocks into runs.
func Runs(blocks []int64) (runs []Run) {
	for _, block := range blocks {
		if k := len(runs); k > 0 && runs[k-1].First+runs[k-1].Count == block {
			runs[k-1].Count++
		} else {
			runs = append(runs, Run{block, 1})
		}
	}
	return runs
}

// leaveGroups is how many groups leave at one time.
const leaveGroups = 64

// Leave picks idle blocks that are to be given back to the file system. Until
// Return they are nobody's, so that the file may be punched without holding
// whatever lock guards the Map. It takes empty groups only, from the end of the
// file on, as long as an eighth of what is in use is idle, and a few; single blocks
// cost as much to give back as 64 in a row and are likely to be used again, so they
// go when half of what is in use is idle. No runs: there is nothing to do.
func (m *Map) Leave() []Run {
	from := &m.allIdle
	if _, ok := from.last(); !ok {
		from = &m.idle
	}
	if !m.shouldLeave(from == &m.idle) {
		return nil
	}
	var backwards []Run
	for range leaveGroups {
		at, ok := from.last()
		if !ok {
			break
		}
		g := m.group(at)
		for left := g.idle; left != 0; {
			last := int64(bits.Len64(left))
			count := int64(bits.LeadingZeros64(^(left << (Group - last))))
			first := at*Group + last - count
			left &^= all >> (Group - count) << (last - count)
			if k := len(backwards); k > 0 && backwards[k-1].First == first+count {
				backwards[k-1].First = first
				backwards[k-1].Count += count
			} else {
				backwards = append(backwards, Run{first, count})
			}
			for block := first; block < first+count; block++ {
				m.own(block, leaving)
			}
			m.leavings += count
		}
		m.relist(at)
	}
	return backwards
}

// LeaveSlack is how many idle blocks are always put up with.
const LeaveSlack = 256

// ShouldLeave says whether Leave would find something.
func (m *Map) ShouldLeave() bool {
	_, whole := m.allIdle.last()
	return m.shouldLeave(!whole)
}

func (m *Map) shouldLeave(single bool) bool {
	if single {
		return m.idling > m.Used()/2+Slack
	}
	return m.idling > m.Used()/8+LeaveSlack
}

// Return gives blocks back that Leave has picked, to be used again. done: the file
// system has their room.
func (m *Map) Return(runs []Run, done bool) {
	for _, run := range runs {
		for block := run.First; block < run.First+run.Count; block++ {
			m.disown(block, !done)
			if block%Group == Group-1 || block == run.First+run.Count-1 {
				m.relist(block / Group)
			}
		}
		m.leavings -= run.Count
	}
}

// Leaving says whether blocks are on their way to the file system; they will be
// room again.
func (m *Map) Leaving() bool { return m.leavings > 0 }

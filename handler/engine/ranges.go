package engine

import "sort"

// span is a half-open range of addresses.
type span struct{ start, end uint64 }

// ranges is a sorted list of spans that neither overlap nor touch.
type ranges []span

// at returns the index of the first span that ends above addr.
func (r ranges) at(addr uint64) int {
	return sort.Search(len(r), func(i int) bool { return r[i].end > addr })
}

// covers says whether all of [start, end) is in the list.
func (r ranges) covers(start, end uint64) bool {
	i := r.at(start)
	return i < len(r) && r[i].start <= start && r[i].end >= end
}

// overlaps says whether some of [start, end) is in the list.
func (r ranges) overlaps(start, end uint64) bool {
	i := r.at(start)
	return i < len(r) && r[i].start < end
}

// add puts [start, end) into the list.
func (r *ranges) add(start, end uint64) {
	if start >= end {
		return
	}
	i := sort.Search(len(*r), func(i int) bool { return (*r)[i].end >= start })
	j := i
	for j < len(*r) && (*r)[j].start <= end {
		start, end = min(start, (*r)[j].start), max(end, (*r)[j].end)
		j++
	}
	r.replace(i, j, span{start, end})
}

// remove takes [start, end) out of the list.
func (r *ranges) remove(start, end uint64) {
	i := r.at(start)
	j := i
	var keep [2]span
	n := 0
	for j < len(*r) && (*r)[j].start < end {
		s := (*r)[j]
		if s.start < start {
			keep[n] = span{s.start, start}
			n++
		}
		if s.end > end {
			keep[n] = span{end, s.end}
			n++
		}
		j++
	}
	r.replace(i, j, keep[:n]...)
}

func (r *ranges) replace(i, j int, with ...span) {
	switch d := len(with) - (j - i); {
	case d == 0:
	case d < 0:
		*r = append((*r)[:j+d], (*r)[j:]...)
	default:
		*r = append(*r, with[:d]...)
		copy((*r)[j+d:], (*r)[j:len(*r)-d])
	}
	copy((*r)[i:], with)
}

// gaps calls visit for each part of [start, end) that is not in the list.
func (r ranges) gaps(start, end uint64, visit func(start, end uint64)) {
	for i := r.at(start); start < end; i++ {
		if i >= len(r) || r[i].start >= end {
			visit(start, end)
			return
		}
		if r[i].start > start {
			visit(start, r[i].start)
		}
		start = r[i].end
	}
}

package store

// ring is a queue that grows and never shrinks: it allocates nothing once it
// has been as long as it gets.
type ring[T any] struct {
	slots   []T
	first   int
	waiting int
}

func (r *ring[T]) push(v T) {
	if r.waiting == len(r.slots) {
		grown := make([]T, max(64, 2*len(r.slots)))
		n := copy(grown, r.slots[r.first:])
		copy(grown[n:], r.slots[:r.first])
		r.slots, r.first = grown, 0
	}
	r.slots[(r.first+r.waiting)%len(r.slots)] = v
	r.waiting++
}

// peek is what pop would give.
func (r *ring[T]) peek() (v T, ok bool) {
	if r.waiting == 0 {
		return v, false
	}
	return r.slots[r.first], true
}

func (r *ring[T]) pop() (v T, ok bool) {
	if r.waiting == 0 {
		return v, false
	}
	var none T
	v, r.slots[r.first] = r.slots[r.first], none
	r.first = (r.first + 1) % len(r.slots)
	r.waiting--
	return v, true
}

package slab

// none is the index of no slab.
const none int32 = -1

// list is a doubly linked list through the slabs, by index.
type list struct{ head, tail int32 }

type link struct{ next, prev int32 }

var emptyList = list{none, none}

// Which of a slab's two links a list goes through.
type through uint8

const (
	byRoom through = iota
	byIdle
)

func (a *Arena) link(by through, i int32) *link {
	if by == byRoom {
		return &a.slab(i).byRoom
	}
	return &a.slab(i).byIdle
}

func (a *Arena) pushBack(l *list, by through, i int32) {
	*a.link(by, i) = link{next: none, prev: l.tail}
	if l.tail == none {
		l.head = i
	} else {
		a.link(by, l.tail).next = i
	}
	l.tail = i
}

func (a *Arena) pushFront(l *list, by through, i int32) {
	*a.link(by, i) = link{next: l.head, prev: none}
	if l.head == none {
		l.tail = i
	} else {
		a.link(by, l.head).prev = i
	}
	l.head = i
}

func (a *Arena) remove(l *list, by through, i int32) {
	at := *a.link(by, i)
	if at.prev == none {
		l.head = at.next
	} else {
		a.link(by, at.prev).next = at.next
	}
	if at.next == none {
		l.tail = at.prev
	} else {
		a.link(by, at.next).prev = at.prev
	}
}

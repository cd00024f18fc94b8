package engine

import (
	"encoding/binary"

	"github.com/farpage/farpage/handler/space"
	"github.com/farpage/farpage/handler/target"
	"github.com/farpage/farpage/handler/uffd"
	"golang.org/x/sys/unix"
)

// keep finds the pages that must not be far when a thread exits, for the clock to pass
// them by, and brings back those that are: the kernel's last writes to a missing page of
// an exiting thread are lost. They are those of the robust list head and of the TID word
// beside it, in glibc's thread descriptor; musl's are in libc's .bss, which is not
// registered at all.
//
// A helper may move a page long after it was chosen, when it had no CPU meanwhile. Then
// the page may have got a thread or a held mutex in between. So this is done again when
// pages have moved.
func (e *Engine) keep(p *process) {
	clear(p.kept)
	p.keptAt, p.unkept = e.now, false
	if p.task < 0 {
		return
	}
	var tids [512]int32
	n, more, err := target.Tasks(p.task, tids[:])
	all := tids[:n]
	if more && err == nil {
		big := make([]int32, 65536)
		if n, _, err = target.Tasks(p.task, big); err == nil {
			all = big[:n]
		}
	}
	for _, tid := range all {
		head := target.RobustList(int(tid))
		if head == 0 {
			continue
		}
		const around = 256 // the descriptor's fields before and behind the head
		e.keepPage(p, head-around)
		e.keepPage(p, head+around)
		e.keepHeld(p, head)
	}
}

// keepHeld keeps the robust mutexes that a thread holds: when it dies the kernel marks
// them, and a mark in a missing page would be lost. The list is struct robust_list_head
// of include/uapi/linux/futex.h: the first node, the futex's offset from a node, and a
// node that is just being put in or out.
func (e *Engine) keepHeld(p *process, head uint64) {
	const longest = 2048 // ROBUST_LIST_LIMIT
	var words [24]byte
	read := func(at uint64, n int) bool {
		k, err := unix.Pread(int(p.rec.MemFD), words[:n], int64(at))
		return err == nil && k == n
	}
	if !read(head, len(words)) {
		return
	}
	node := binary.LittleEndian.Uint64(words[:])
	offset := binary.LittleEndian.Uint64(words[8:])
	pending := binary.LittleEndian.Uint64(words[16:])
	if pending != 0 {
		e.keepPage(p, pending&^1)
		e.keepPage(p, pending&^1+offset)
	}
	for range longest {
		node &^= 1 // of priority inheritance
		if node == head || node == 0 {
			return
		}
		e.keepPage(p, node)
		e.keepPage(p, node+offset)
		if !read(node, 8) {
			return
		}
		node = binary.LittleEndian.Uint64(words[:])
	}
}

// keepPage keeps the page of an address.
func (e *Engine) keepPage(p *process, addr uint64) {
	addr &^= space.PageSize - 1
	p.kept[addr] = struct{}{}
	if addr < space.Limit && p.table.Get(addr).State() == space.Slot && e.bringBack(p, addr) == later {
		p.unkept = true
	}
}

// bringBack gives a far page that nobody waits for.
func (e *Engine) bringBack(p *process, addr uint64) outcome {
	if len(p.batch) > 0 || !e.checkChild(p, addr) {
		return later
	}
	entry := p.table.Get(addr) // the check may have changed it
	if entry.State() != space.Slot {
		return served
	}
	page := e.buf[:space.PageSize]
	if err := e.slots.read(entry.Slot(), page); err != nil {
		return e.unreadable(p, addr, entry, err)
	}
	if done, errno := uffd.Copy(p.uffd(), addr, page, 0); done == 0 {
		return e.refusal(p, addr, entry, errno)
	}
	e.write(p, addr, entry.To(space.Touched, 0).WithAge(2))
	e.slots.drop(entry.Slot())
	e.give(1)
	e.mem.Header.Counters.Restored++
	return served
}

package engine

import (
	"encoding/binary"

	"github.com/farpage/farpage/handler/space"
	"github.com/farpage/farpage/handler/target"
	"golang.org/x/sys/unix"
)

// exclude finds the pages that must not be far when a thread exits: the kernel's
// last writes to a missing page of an exiting thread are lost. They are those of
// the robust list head and of the TID word beside it, in glibc's thread
// descriptor; musl's are in libc's .bss, which is not registered at all.
//
// Threads that start after this are safe: before a thread of glibc exits it
// gives its stack back, and that event makes the command out of date.
func (e *Engine) exclude(p *process) {
	clear(p.excluded)
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
		p.excluded[(head-around)&^(space.PageSize-1)] = struct{}{}
		p.excluded[(head+around)&^(space.PageSize-1)] = struct{}{}
		e.excludeHeld(p, head)
	}
}

// excludeHeld excludes the robust mutexes that a thread holds: when it dies the
// kernel marks them, and a mark in a missing page would be lost. The list is
// struct robust_list_head of include/uapi/linux/futex.h: the first node, the
// futex's offset from a node, and a node that is just being put in or out.
func (e *Engine) excludeHeld(p *process, head uint64) {
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
	keep := func(node uint64) {
		p.excluded[node&^(space.PageSize-1)] = struct{}{}
		p.excluded[(node+offset)&^(space.PageSize-1)] = struct{}{}
	}
	if pending != 0 {
		keep(pending &^ 1)
	}
	for range longest {
		node &^= 1 // of priority inheritance
		if node == head || node == 0 {
			return
		}
		keep(node)
		if !read(node, 8) {
			return
		}
		node = binary.LittleEndian.Uint64(words[:])
	}
}

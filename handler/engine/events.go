package engine

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"syscall"
	"time"

	"github.com/farpage/farpage/handler/space"
	"github.com/farpage/farpage/handler/state"
	"github.com/farpage/farpage/handler/target"
	"github.com/farpage/farpage/handler/uffd"
	"golang.org/x/sys/unix"
)

// Reading and applying events.
//
// Events are read one by one, right into the ring, so that none dies with the
// agent. A REMOVE is applied at once. UNMAP, REMAP and FORK wait until the uffd is
// quiet, and what comes after them waits behind them: events are queued after the
// mmap lock is dropped, so they may have happened in another order than they are
// read in. At the quiet moment settle decides (order.go). Faults of that process
// wait meanwhile.

// readsPerTurn bounds how long one process can keep its engine from the others.
const readsPerTurn = 64

// maxDeferred bounds the faults of one process that wait. Beyond it its uffd is
// not read, and its threads wait in the kernel.
const maxDeferred = 1024

// drain reads what a process's uffd has to say.
func (e *Engine) drain(p *process) {
	for range readsPerTurn {
		if len(p.deferred) >= maxDeferred || p.placing || !p.restsSince.IsZero() {
			return
		}
		i := e.freeEvent()
		if i < 0 {
			e.warn("ring", "the event ring is full (%d): reading no more until some are applied", state.RingSlots)
			return
		}
		if p.running() {
			if p.pipe.Raise() {
				p.blocked = true
				return
			}
			e.collect(p)
		}
		p.blocked = false
		ev := &e.mem.Ring[i]
		ev.Phase, ev.Child = 0, 0
		e.mem.Header.Sequence++
		ev.Sequence = e.mem.Header.Sequence
		ev.Msg.Event = 0
		ev.Source = uint32(p.index) + 1
		errno := uffd.Read(p.uffd(), &ev.Msg)
		if errno != 0 {
			ev.Source = 0
			e.renew(p)
			switch errno {
			case syscall.EINTR:
				continue
			case syscall.EAGAIN:
				p.readable = false
			case syscall.EMFILE, syscall.ENFILE:
				// A FORK that could not be read is queued again.
				e.warn("files", "no descriptor left for a forked child (%v): forks wait; raise LimitNOFILE of the agent", errno)
			default:
				e.warn("read", "read of a userfaultfd of pid %d: %v", p.rec.Pid, errno)
				p.readable = false
			}
			return
		}
		e.lastWork = e.now
		if ev.Msg.Event == uffd.EventPagefault {
			flags, addr, tid := ev.Msg.Fault()
			ev.Source = 0
			e.renew(p)
			if len(p.batch) > 0 {
				e.flush(p) // who faults has been told that its event was read
			}
			e.fault(p, fault{addr: addr, flags: flags, tid: tid, since: time.Now()})
			continue
		}
		if !e.ownUnmap(p, ev) {
			p.company = len(p.batch) > 0 && p.company || ev.Msg.Event != uffd.EventRemove && !e.alone(p)
			p.batch = append(p.batch, i)
		}
		e.flush(p)
	}
}

// renew makes the rest of a command valid again after a read, unless an event is
// still to be applied.
func (e *Engine) renew(p *process) {
	if p.running() && len(p.batch) == 0 {
		p.pipe.Renew()
	}
}

// freeEvent finds a free ring slot, -1 when there is none.
func (e *Engine) freeEvent() int {
	for k := range state.RingSlots {
		i := (e.ringHint + k) % state.RingSlots
		if e.mem.Ring[i].Source == 0 {
			e.ringHint = i + 1
			return i
		}
	}
	return -1
}

// flush applies what may be applied now.
func (e *Engine) flush(p *process) {
	for len(p.batch) > 0 {
		if e.mem.Ring[p.batch[0]].Msg.Event != uffd.EventRemove {
			if !e.settled(p) {
				return
			}
			for len(p.batch) > 0 {
				if !e.applyFirst(p) {
					return
				}
			}
			break
		}
		if !e.applyFirst(p) {
			return
		}
	}
	e.renew(p)
	if len(p.deferred) > 0 {
		e.retry(p)
	}
}

// applyFirst applies the oldest event of the batch and frees its ring slot, last
// of all.
func (e *Engine) applyFirst(p *process) bool {
	ev := &e.mem.Ring[p.batch[0]]
	if !e.apply(p, ev) {
		return false
	}
	ev.Source = 0
	p.batch = append(p.batch[:0], p.batch[1:]...)
	p.unjudge()
	return true
}

// releaseRing applies what a memory that is no more has left in the ring: a child that
// was forked from it lives on, with the pages as those events left them. Nothing more
// can be learned of their order.
func (e *Engine) releaseRing(p *process) {
	for len(p.batch) > 0 && e.applyFirst(p) {
	}
	for _, i := range p.batch {
		e.mem.Ring[i].Source = 0 // no memory for a table: apply has said so
	}
	p.batch = nil
}

// apply does to the table what an event says. It may be done again after a crash.
func (e *Engine) apply(p *process, ev *state.Event) bool {
	var err error
	switch ev.Msg.Event {
	case uffd.EventRemove:
		start, end := ev.Msg.Range()
		e.takeBack(p, start, end)
		err = p.table.Remove(start, end, e.slots.drop)
	case uffd.EventUnmap:
		start, end := ev.Msg.Range()
		e.takeBack(p, start, end)
		err = p.table.Clear(start, end, e.slots.drop)
		p.ranges.remove(start, end)
		p.rescan.remove(start, end)
		p.refusedAt.remove(start, end)
	case uffd.EventRemap:
		from, to, length := ev.Msg.Remap()
		e.takeBack(p, from, from+length)
		e.takeBack(p, to, to+length)
		if ev.Phase == 0 {
			if err = p.table.Copy(from, to, length, e.slots.drop); err != nil {
				break
			}
			ev.Phase = 1
		}
		err = p.table.Clear(from, from+length, nil)
		p.ranges.remove(from, from+length)
		p.rescan.remove(from, from+length)
		p.ranges.add(to, to+length)
	case uffd.EventFork:
		e.takeBack(p, 0, space.Limit)
		err = e.forked(p, ev)
	default:
		e.warn("event", "unknown userfaultfd event %#x of pid %d", ev.Msg.Event, p.rec.Pid)
	}
	if err != nil {
		// The event stays in the ring; the process waits.
		e.warn("apply", "event %#x of pid %d cannot be applied yet: %v", ev.Msg.Event, p.rec.Pid, err)
		return false
	}
	return true
}

// smaps reads a process's mappings with their flags: of the memory that it was
// identified with, whatever it has executed since.
func (e *Engine) smaps(p *process, visit func(target.VMA, target.Flags)) error {
	text, err := e.smapsText(p)
	if err != nil {
		return err
	}
	return target.Smaps(text, visit)
}

// smapsText is valid until the reader is used again.
func (e *Engine) smapsText(p *process) ([]byte, error) {
	if !p.has(state.FlagIdentified) {
		return nil, errors.New("it is not known which process it is")
	}
	return e.reader.All(int(p.rec.SmapsFD))
}

// registered returns the mappings that a userfaultfd watches, from the content of
// /proc/PID/smaps.
func registered(smaps []byte) (r ranges, err error) {
	err = target.Smaps(smaps, func(v target.VMA, f target.Flags) {
		if f.Registered {
			r.add(v.Start, v.End)
		}
	})
	return r, err
}

func randomNonce() uint64 {
	var b [8]byte
	for {
		_, _ = rand.Read(b[:]) // does not fail: crypto/rand
		if n := binary.LittleEndian.Uint64(b[:]); n != 0 {
			return n
		}
	}
}

// nonblocking sets O_NONBLOCK again on a uffd whose container has cleared it.
func (e *Engine) nonblocking(p *process) {
	if err := unix.SetNonblock(p.uffd(), true); err != nil {
		e.warn("nonblock", "pid %d: %v", p.rec.Pid, err)
	}
}

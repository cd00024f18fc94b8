package engine

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/farpage/farpage/handler/handoff"
	"github.com/farpage/farpage/handler/space"
	"github.com/farpage/farpage/handler/state"
	"github.com/farpage/farpage/handler/uffd"
	"github.com/farpage/farpage/store"
	"github.com/sirupsen/logrus"
)

// Descriptors returns the numbers of all descriptors that a container's state
// names; they must be open under the same numbers before Recover.
func Descriptors(mem *state.Memory) []int {
	var fds []int
	add := func(fd int32) {
		if fd >= 0 {
			fds = append(fds, int(fd))
		}
	}
	add(mem.Header.ListenerFD)
	for i := range mem.Procs {
		p := &mem.Procs[i]
		if p.Used == state.ProcFree {
			continue
		}
		add(p.UffdFD)
		add(p.SockFD)
		add(p.ChannelFD)
		add(p.PagemapFD)
		add(p.MemFD)
		add(p.MapsFD)
		add(p.SmapsFD)
	}
	for i := range mem.Ring {
		if ev := &mem.Ring[i]; ev.Source != 0 && ev.Msg.Event == uffd.EventFork {
			add(int32(ev.Msg.ForkFD()))
		}
	}
	slices.Sort(fds)
	return slices.Compact(fds)
}

// RecoverConfig reads what a container was made from, out of its state.
func RecoverConfig(mem *state.Memory) (Config, error) {
	var cfg Config
	if err := json.Unmarshal(mem.Config(), &cfg); err != nil {
		return cfg, fmt.Errorf("configuration in a container's state: %w", err)
	}
	return cfg, nil
}

// Recover makes an engine that goes on where a dead one has stopped, at whatever
// instruction that was.
func Recover(cfg Config, mem *state.Memory, st store.Store, device int, log *logrus.Entry) (*Engine, error) {
	e, err := prepare(cfg, mem, device, log)
	if err != nil {
		return nil, err
	}
	named := map[uint32]bool{} // records that a FORK in the ring has taken
	for i := range mem.Ring {
		if ev := &mem.Ring[i]; ev.Source != 0 && ev.Msg.Event == uffd.EventFork && ev.Child != 0 {
			named[ev.Child-1] = true
		}
	}
	var roots []uint32
	for i := range mem.Procs {
		switch p := &mem.Procs[i]; p.Used {
		case state.ProcLive:
			roots = append(roots, p.Root)
		case state.ProcForked:
			p.Root = 0 // its table is made again from the ring
			if !named[uint32(i)] {
				p.Used = state.ProcFree // the ring was to name it next
			}
		}
	}
	e.nodes.Recover(roots)
	e.mendRemaps()
	live := e.slots.recover(func(seen func(slot uint32)) {
		for i := range mem.Procs {
			if mem.Procs[i].Used != state.ProcLive {
				continue
			}
			for _, leaf := range space.OpenTable(e.nodes, mem.Procs[i].Root).Leaves() {
				for _, entry := range leaf {
					if entry.State() == space.Slot {
						seen(entry.Slot())
					}
				}
			}
		}
	})
	if e.slots.space, err = st.Open(e.spaceConfig(live)); err != nil {
		return nil, err
	}
	e.slots.again()
	if mem.Header.ListenerFD >= 0 {
		e.listener = int(mem.Header.ListenerFD)
		if err := e.poller.add(e.listener, source{kind: kindListener}); err != nil {
			return nil, err
		}
	}
	for i := range mem.Procs {
		if mem.Procs[i].Used == state.ProcLive {
			if err := e.resume(i); err != nil {
				return nil, err
			}
		}
	}
	for _, p := range e.live {
		if i := p.rec.Parent; i >= 0 && int(i) < len(e.procs) {
			p.parent = e.procs[i]
		}
	}
	e.reloadRing()
	e.resident = e.budget // until it is measured
	return e, nil
}

// mendRemaps makes the REMAPs that were being applied show each slot once: of one
// whose entries were being copied the copies go, of one whose old entries were being
// cleared those.
func (e *Engine) mendRemaps() {
	for i := range e.mem.Ring {
		ev := &e.mem.Ring[i]
		if ev.Source == 0 || ev.Msg.Event != uffd.EventRemap || int(ev.Source) > len(e.mem.Procs) {
			continue
		}
		if rec := &e.mem.Procs[ev.Source-1]; rec.Used == state.ProcLive {
			mendRemap(space.OpenTable(e.nodes, rec.Root), ev)
		}
	}
}

// mendRemap mends one.
func mendRemap(table space.Table, ev *state.Event) {
	from, to, length := ev.Msg.Remap()
	for off := uint64(0); off < length; off += space.PageSize {
		old := table.Get(from + off)
		if old.State() != space.Slot || table.Get(to+off) != old {
			continue
		}
		twice := to + off
		if ev.Phase != 0 {
			twice = from + off
		}
		_ = table.Set(twice, 0) // the leaf is there
	}
}

// resume takes up one process.
func (e *Engine) resume(i int) error {
	p := e.track(i)
	p.table = space.OpenTable(e.nodes, p.rec.Root)
	if p.has(state.FlagIdentified) {
		e.look(p)
	}
	if p.rec.ChannelFD >= 0 {
		pipe, err := handoff.OpenPipe(int(p.rec.ChannelFD))
		if err != nil {
			return err
		}
		p.pipe = pipe
	}
	if err := e.enter(p); err != nil {
		return err
	}
	if p.rec.SockFD >= 0 && p.has(state.FlagReady) {
		if err := e.poller.add(int(p.rec.SockFD), source{kindHelper, p.tag, int32(i)}); err != nil {
			return err
		}
	}
	e.resumeCommand(p)
	if !p.has(state.FlagReady) {
		e.beginAgain(p)
	} else if p.rec.SockFD >= 0 {
		// The dead agent may not have come to say it; a helper that knows does not
		// look.
		_ = handoff.Send(int(p.rec.SockFD), handoff.Message{Type: handoff.Armed})
	}
	return nil
}

// beginAgain takes back a hand-off that was under way: its helper sees the socket
// close and begins again. A forked child stays, served by its parent's entries; of
// a new process nothing but its helper's own ranges was registered.
func (e *Engine) beginAgain(p *process) {
	if p.has(state.FlagChild) {
		e.forget(p)
		return
	}
	e.reap(p)
}

// forget gives up all that a hand-off brought, for the next one.
func (e *Engine) forget(p *process) {
	e.closeFD(&p.rec.SockFD, true)
	e.closeFD(&p.rec.ChannelFD, false)
	e.closeLooks(p)
	if p.pipe != nil {
		p.pipe.Close()
		p.pipe = nil
	}
	p.rec.Flags &^= state.FlagIdentified | state.FlagHungUp
	p.rec.Command, p.rec.RunCount = 0, 0
	p.unarmed = false
}

// resumeCommand brings entries in flight together with the command that was under
// way, if it was ever handed over.
func (e *Engine) resumeCommand(p *process) {
	if p.pipe != nil && p.running() && p.pipe.Published() == p.rec.Command {
		p.pipe.Raise() // the helper begins no run until the ring is applied
		for i := range p.runs[:p.rec.RunCount] {
			if r := &p.runs[i]; r.Pages > 0 {
				return
			}
		}
	}
	// Not handed over, or taken in but for the last word.
	p.rec.RunCount = 0
	for _, leaf := range p.table.Leaves() {
		for i, entry := range leaf {
			if entry.State() == space.InFlight {
				leaf[i] = entry.To(space.Touched, 0)
			}
		}
	}
}

// reloadRing finds the events that were read and not applied, in their order.
func (e *Engine) reloadRing() {
	var left []int
	for i := range e.mem.Ring {
		ev := &e.mem.Ring[i]
		if ev.Source == 0 {
			continue
		}
		k := int(ev.Source) - 1
		if ev.Msg.Event == 0 || ev.Msg.Event == uffd.EventPagefault || k >= len(e.procs) || e.procs[k] == nil {
			// Nothing was read, or a fault, which the wake-up tells again.
			ev.Source = 0
			continue
		}
		left = append(left, i)
	}
	slices.SortFunc(left, func(a, b int) int { return cmp.Compare(e.mem.Ring[a].Sequence, e.mem.Ring[b].Sequence) })
	for _, i := range left {
		p := e.procs[e.mem.Ring[i].Source-1]
		if !e.ownUnmap(p, &e.mem.Ring[i]) {
			p.company = true // who knows
			p.batch = append(p.batch, i)
		}
	}
}

// WakeAll makes every thread that waits for a page ask again: faults that the dead
// agent had read are not told a second time. To be called when the descriptors
// are this agent's for good.
func (e *Engine) WakeAll() {
	for _, p := range e.live {
		p.readable = true
		if errno := uffd.Wake(p.uffd(), 0x10000, space.Limit-0x20000); errno != 0 {
			e.log.Warnf("wake pid %d: %v", p.rec.Pid, errno)
		}
	}
	// Threads that are running already cannot be made to tell of their mappings:
	// these processes are looked at instead.
	e.unwatched = e.unwatched || len(e.live) > 0
}

// Abandon ends Run without giving anything up: the keeper holds it all.
func (e *Engine) Abandon() error {
	_, err := Ask(e, func() struct{} { e.stop = true; return struct{}{} })
	if errors.Is(err, ErrStalled) {
		return err
	}
	<-e.ended
	return nil
}

// Close gives up what an engine has. Preconditions: Run has returned or was never
// called.
func (e *Engine) Close() error {
	for len(e.live) > 0 {
		e.reap(e.live[0])
	}
	for _, c := range e.conns {
		if c.proc == nil { // else it went with its process
			e.poller.remove(c.fd)
			closeQuiet(c.fd)
		}
	}
	e.closeMmaps()
	var err error
	if e.slots.space != nil {
		err = e.slots.space.Discard()
	}
	if e.listener >= 0 {
		closeQuiet(e.listener)
	}
	return errors.Join(err, e.release(), free(e.mem))
}

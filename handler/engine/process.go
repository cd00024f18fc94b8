package engine

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/farpage/farpage/handler/handoff"
	"github.com/farpage/farpage/handler/space"
	"github.com/farpage/farpage/handler/state"
	"github.com/farpage/farpage/handler/target"
	"github.com/farpage/farpage/handler/uffd"
	"golang.org/x/sys/unix"
)

// process is one managed memory and what the engine knows of it beside its record
// in shared memory, all of which can be found out again.
type process struct {
	rec   *state.Proc
	index int
	tag   uint16
	table space.Table
	pipe  *handoff.Pipe
	runs  []state.Run

	statm, task  int // private descriptors, -1
	readable     bool
	blocked      bool      // the helper is inside a move: no event may be read
	batch        []int     // ring slots read and not applied
	waitsSince   time.Time // for a quiet moment, with the first of them
	deferred     []fault
	ranges       ranges // what is registered
	keepOut      ranges // what must never be registered
	refusedAt    ranges // what the kernel would not register
	unarmed      bool   // its helper waits for the end of the hand-off
	unprotected  bool   // to be write-protected, after a fork
	unscanned    bool
	rescan       ranges // registered, but the scan was not quiet
	mapped       int64
	told         ranges    // mapped, as the kernel told while events waited
	again        time.Time // when everything was registered anew
	cursor       uint64    // of the clock
	round        time.Time // when the clock last came round and found nothing
	rests        int       // rounds since the clock found something
	streams      [4]stream
	borders      []uint64            // where mappings end, as of the last look
	kept         map[uint64]struct{} // pages that must not be far, as of the last look
	keptAt       time.Time           // when that was
	unkept       bool                // one of them may be far
	parent       *process
	wiped        ranges // of the parent: what a child does not inherit
	wipedKnown   bool
	born         time.Time // to this engine
	lookingSince time.Time // for the child that it is, or that a FORK in its batch has brought
	looked       time.Time // when that was last tried
	leftByExec   bool
	judged       int      // events of the batch that judge has seen, and what it found:
	points       []uint64 // where their ranges begin and end, sorted
	ambiguous    bool     // an UNMAP and a REMAP met
	company      bool     // events of the batch may have been read in another order than they happened
	forks        bool
	others       bool      // an UNMAP or a REMAP
	placing      bool      // the batch's FORKs, among its other events
	atQuiet      ranges    // what was registered when that began
	holdNext     int       // how many events waited when threads were last to be held
	restsSince   time.Time // nothing is read, so that they wait in their events
	command      string
	reason       string // why it is not evicted
}

func (p *process) has(flag uint32) bool { return p.rec.Flags&flag != 0 }
func (p *process) set(flag uint32)      { p.rec.Flags |= flag }
func (p *process) uffd() int            { return int(p.rec.UffdFD) }
func (p *process) running() bool        { return p.rec.RunCount > 0 }

// unsettled tells the helper whether it may register what the program maps.
func (p *process) unsettled(yes bool) {
	if p.pipe != nil {
		p.pipe.SetUnsettled(yes)
	}
}

// probeAddr is the last page that a program can map. It is never registered (with
// the stack at the top of memory it is part of that), so a ZEROPAGE there never
// does anything, and tells whether the memory lives and whether it is quiet.
const probeAddr = 1<<47 - 2*space.PageSize

// newProcess takes a free record; -1 descriptors, nothing else.
func (e *Engine) newProcess() (*process, error) {
	for i := range e.mem.Procs {
		if e.procs[i] == nil && e.mem.Procs[i].Used == state.ProcFree {
			e.mem.Procs[i] = state.Proc{UffdFD: -1, SockFD: -1, ChannelFD: -1, PagemapFD: -1, MemFD: -1, MapsFD: -1, SmapsFD: -1, Parent: -1}
			return e.track(i), nil
		}
	}
	return nil, fmt.Errorf("more than %d processes", state.MaxProcs)
}

// track makes the private side of record i.
func (e *Engine) track(i int) *process {
	e.nextTag++
	return &process{
		rec: &e.mem.Procs[i], index: i, tag: e.nextTag, runs: e.mem.Runs(i),
		statm: -1, task: -1, kept: map[uint64]struct{}{}, born: e.now,
	}
}

// enter makes a process one of the container's, served from now on.
func (e *Engine) enter(p *process) error {
	e.procs[p.index] = p
	e.live = append(e.live, p)
	p.readable = true
	return e.poller.add(p.uffd(), source{kindUffd, p.tag, int32(p.index)})
}

// identify opens what is looked at from outside, by the pid of the peer. A pid is
// only a number: that it is the memory of this userfaultfd is proved by the mark in
// its anchor page, which only the agent puts there, through the userfaultfd. The file
// that is read from is opened last, so the others are of no later memory: exec leads
// one way.
func (e *Engine) identify(p *process, pid int, mark uint64) error {
	e.closeLooks(p) // of a child that was identified without its helper
	dir, err := unix.Open(fmt.Sprintf("/proc/%d", pid), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open /proc/%d: %w", pid, err)
	}
	defer closeQuiet(dir) // names one process for good, whatever becomes of its pid
	for _, f := range []struct {
		name string
		fd   *int32
	}{{"pagemap", &p.rec.PagemapFD}, {"maps", &p.rec.MapsFD}, {"smaps", &p.rec.SmapsFD}, {"mem", &p.rec.MemFD}} {
		fd, err := unix.Openat(dir, f.name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open /proc/%d/%s: %w", pid, f.name, err)
		}
		*f.fd = int32(fd)
	}
	if !anchored(int(p.rec.MemFD), p.rec.Area, mark) {
		return fmt.Errorf("%w: pid %d is not the process whose userfaultfd it is", handoff.ErrMessage, pid)
	}
	p.rec.Pid, p.rec.Start = int32(pid), target.StartTime(pid)
	p.set(state.FlagIdentified)
	for _, q := range e.live {
		if q != p && q.rec.Pid == p.rec.Pid && q.rec.Start == p.rec.Start {
			e.execed(q) // it is the same process with other memory
		}
	}
	e.look(p)
	return nil
}

// anchored says whether the anchor page of a memory, by a descriptor of /proc/PID/mem,
// has this mark. Reading there never waits for a page.
func anchored(mem int, area, mark uint64) bool {
	var word [8]byte
	n, err := unix.Pread(mem, word[:], int64(area+handoff.AreaAnchor))
	return err == nil && n == len(word) && binary.LittleEndian.Uint64(word[:]) == mark
}

// closeLooks closes what identify has opened.
func (e *Engine) closeLooks(p *process) {
	for _, fd := range []*int32{&p.rec.PagemapFD, &p.rec.MemFD, &p.rec.MapsFD, &p.rec.SmapsFD} {
		e.closeFD(fd, false)
	}
	for _, fd := range []*int{&p.statm, &p.task} {
		if *fd >= 0 {
			closeQuiet(*fd)
			*fd = -1
		}
	}
}

// execed counts that a process has left a memory by exec, once.
func (e *Engine) execed(p *process) {
	if !p.leftByExec {
		p.leftByExec = true
		e.mem.Header.Counters.Execs++
	}
}

// look opens the private descriptors of an identified process.
func (e *Engine) look(p *process) {
	p.command = target.Command(int(p.rec.Pid))
	if fd, err := unix.Open(fmt.Sprintf("/proc/%d/statm", p.rec.Pid), unix.O_RDONLY|unix.O_CLOEXEC, 0); err == nil {
		p.statm = fd
	}
	if fd, err := unix.Open(fmt.Sprintf("/proc/%d/task", p.rec.Pid), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err == nil {
		p.task, p.unkept = fd, true
	}
}

// hangUp notes that the helper is gone. The memory may live on, in a vfork child:
// what the helper had moved and not copied out is read from its staging.
func (e *Engine) hangUp(p *process) {
	if p.has(state.FlagHungUp) {
		return
	}
	p.set(state.FlagHungUp)
	if p.running() {
		e.collect(p)
		if p.pipe.Busy() {
			e.rescue(p)
		}
		e.endCommand(p)
	}
	p.blocked, p.unarmed = false, false
	e.closeFD(&p.rec.SockFD, true)
}

// rescue reads the run that was under way when the helper died out of staging.
// /proc/PID/mem gives EIO for pages that are not there.
func (e *Engine) rescue(p *process) {
	for i := range p.runs[:p.rec.RunCount] {
		r := &p.runs[i]
		if r.Pages == 0 {
			continue
		}
		page := make([]byte, space.PageSize)
		for k := range r.Pages {
			at := int64(p.rec.Area + handoff.AreaStaging + uint64(k)*space.PageSize)
			if n, err := unix.Pread(int(p.rec.MemFD), page, at); err != nil || n != len(page) {
				break
			}
			e.store1(p, r.Addr+uint64(k)*space.PageSize, page)
		}
		return
	}
}

// sweep looks for memory that is no more. Exit and exec raise no event.
func (e *Engine) sweep() {
	for i := 0; i < len(e.live); i++ {
		p := e.live[i]
		if p.has(state.FlagReady) && !p.has(state.FlagHungUp) {
			continue
		}
		if _, gone := uffd.Quiet(p.uffd(), probeAddr); gone {
			e.reap(p)
			i--
			continue
		}
		e.identifyLate(p)
	}
	if e.acceptAgain {
		e.accept()
	}
	for _, c := range e.conns {
		if e.now.Sub(c.since) > handOffMax {
			e.refuse(c, fmt.Errorf("it was not done after %v", handOffMax))
		}
	}
	if len(e.live) == 0 && len(e.conns) == 0 && e.firstGone() {
		e.stop = true
	}
}

// firstGone says whether the container's first process is gone.
func (e *Engine) firstGone() bool {
	return e.cfg.Pid == 0 || target.StartTime(e.cfg.Pid) != e.cfg.Start
}

// reap gives up all that a memory that is no more had.
func (e *Engine) reap(p *process) {
	e.releaseRing(p)
	p.table.Free(e.slots.drop)
	e.procs[p.index] = nil
	for i, q := range e.live {
		if q == p {
			e.live = append(e.live[:i], e.live[i+1:]...)
			break
		}
	}
	for _, q := range e.live {
		if q.parent == p {
			q.parent = nil
		}
	}
	if p.has(state.FlagIdentified) && target.StartTime(int(p.rec.Pid)) == p.rec.Start {
		// The process lives on, with other memory: it has called exec. One that is
		// ending has none.
		if _, err := e.reader.RssAnon(int(p.rec.Pid)); err == nil {
			e.execed(p)
		}
	}
	e.mem.Header.Counters.Exited++
	p.rec.Used = state.ProcFree
	e.closeFD(&p.rec.UffdFD, true)
	e.closeFD(&p.rec.SockFD, true)
	e.closeFD(&p.rec.ChannelFD, false)
	e.closeLooks(p)
	if p.pipe != nil {
		p.pipe.Close()
	}
	e.stuck = false
}

func (e *Engine) closeFD(fd *int32, polled bool) {
	if *fd < 0 {
		return
	}
	n := int(*fd)
	*fd = -1
	if polled {
		e.poller.remove(n)
	}
	_ = unix.Close(n)
}

// closeQuiet closes a descriptor of ours; there is nothing to do about an error.
func closeQuiet(fd int) { _ = unix.Close(fd) }

package engine

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/farpage/farpage/handler/space"
	"github.com/farpage/farpage/handler/state"
	"github.com/farpage/farpage/handler/target"
	"github.com/farpage/farpage/handler/uffd"
	"golang.org/x/sys/unix"
)

// Forked children: a FORK event brings a userfaultfd and nothing else. The child gets a
// copy of its parent's table, is found by the nonce in its anchor page, and has its
// table held against its own mappings before that matters.

// child returns the record of the child that a FORK event brought, made before
// anything else and named in the ring, so that doing it again finds it.
func (e *Engine) child(p *process, ev *state.Event) (*process, error) {
	if ev.Child == 0 {
		c, err := e.newProcess()
		if err != nil {
			return nil, err
		}
		c.rec.UffdFD = int32(ev.Msg.ForkFD())
		c.rec.Area, c.rec.Parent = p.rec.Area, int32(p.index)
		c.rec.Nonce = randomNonce()
		c.rec.Used = state.ProcForked
		ev.Child = uint32(c.index) + 1
		return c, nil
	}
	if c := e.procs[ev.Child-1]; c != nil {
		return c, nil
	}
	return e.track(int(ev.Child - 1)), nil
}

// forked takes in the child that a FORK event brought.
func (e *Engine) forked(p *process, ev *state.Event) error {
	c, err := e.child(p, ev)
	if err != nil {
		return err
	}
	if c.rec.Used == state.ProcForked {
		table, err := p.table.Fork(e.slots.ref, e.slots.drop)
		if err != nil {
			return err
		}
		c.rec.Root = table.Root()
		c.rec.Flags = state.FlagChild
		c.rec.Used = state.ProcLive
		e.mem.Header.Counters.Forks++
	}
	if e.procs[c.index] == nil {
		c.table = space.OpenTable(e.nodes, c.rec.Root)
		if err := e.enter(c); err != nil {
			e.log.Errorf("watch a forked child: %v", err)
		}
	}
	c.parent = p
	c.ranges = append(ranges(nil), p.ranges...)
	c.keepOut = append(ranges(nil), p.keepOut...)
	c.rescan = append(ranges(nil), p.rescan...)
	c.unscanned = len(c.rescan) > 0
	// EEXIST: done before. ESRCH: the child is gone already; sweep sees it.
	if errno := e.mark(c); errno != 0 && errno != syscall.EEXIST && errno != syscall.ESRCH {
		e.warn("nonce", "mark a child of pid %d: %v", p.rec.Pid, errno)
	}
	e.protect(p, c)
	return nil
}

// checkChild holds a child's table against its mappings, once, before it matters:
// before a far page is given to it, before a missing page is called unexplained,
// before it is evicted from. Entries whose mapping the child did not inherit
// (MADV_DONTFORK), has wiped (MADV_WIPEONFORK) or has without its uffd go. false:
// not yet; addr has to wait.
func (e *Engine) checkChild(p *process, addr uint64) bool {
	if !p.has(state.FlagChild) || p.has(state.FlagChecked) {
		return true
	}
	if len(p.batch) > 0 {
		return false // what was read and not applied yet is not in the table
	}
	if !p.has(state.FlagIdentified) {
		return e.inherited(p, addr)
	}
	if quiet, gone := uffd.Quiet(p.uffd(), probeAddr); !quiet || gone {
		return false
	}
	var keep ranges
	err := e.smaps(p, func(v target.VMA, f target.Flags) {
		if f.Registered && !f.WipeOnFork {
			keep.add(v.Start, v.End)
		}
	})
	if err != nil {
		return e.inherited(p, addr)
	}
	if quiet, _ := uffd.Quiet(p.uffd(), probeAddr); !quiet {
		return false
	}
	keep.gaps(0, space.Limit, func(start, end uint64) {
		if err := p.table.Clear(start, end, e.slots.drop); err != nil {
			e.warn("nodes", "clear what a child has not inherited: %v", err)
		}
		p.ranges.remove(start, end)
	})
	p.set(state.FlagChecked)
	return true
}

// inherited says whether a child that is not identified yet has the parent's page at
// addr: all but what the parent has marked as not to be inherited. There, and where the
// parent is gone and cannot tell, only the child's own mappings do.
func (e *Engine) inherited(p *process, addr uint64) bool {
	if addr >= space.Limit {
		return false // eviction waits for the child's helper
	}
	if !p.wipedKnown && p.parent != nil {
		err := e.smaps(p.parent, func(v target.VMA, f target.Flags) {
			if f.WipeOnFork || f.DontCopy {
				p.wiped.add(v.Start, v.End)
			}
		})
		p.wipedKnown = err == nil
	}
	if p.wipedKnown && !p.wiped.overlaps(addr, addr+1) {
		return true
	}
	if e.now.Sub(p.looked) < lookAgain {
		return false
	}
	p.looked = e.now
	if pid, ok := e.find(p, p.parent, p.parent == nil); ok && e.identify(p, pid, p.rec.Nonce) == nil {
		return e.checkChild(p, addr)
	}
	if p.lookingSince.IsZero() {
		p.lookingSince = e.now
	}
	// It is nowhere: what nobody has said to be wiped is the parent's.
	return e.now.Sub(p.lookingSince) >= findMax && !p.wiped.overlaps(addr, addr+1)
}

// lookAgain is how long to wait before a child is looked for again: where its parent is
// gone that is a walk through all processes.
const lookAgain = 2 * time.Millisecond

// findMax is how long a child is looked for. It shows up in /proc only after its event
// was read.
const findMax = time.Second

// helperMax is how long a forked child may take to start its helper, lookLate how
// long it is among its parent's children before it is looked for everywhere.
const (
	helperMax = 100 * time.Millisecond
	lookLate  = time.Second
)

// identifyLate finds out which process a child is that has started no helper to tell.
// Nobody would count what it has resident otherwise, and it would be listed twice.
func (e *Engine) identifyLate(p *process) {
	age := e.now.Sub(p.born)
	if p.has(state.FlagIdentified) || age < helperMax || e.now.Sub(p.looked) < lookLate {
		return
	}
	p.looked = e.now
	if pid, ok := e.find(p, p.parent, p.parent == nil || age > lookLate); ok {
		_ = e.identify(p, pid, p.rec.Nonce) // it may have ended just now
	}
}

// childMaps returns the registered mappings of the child that a FORK brought, as they
// were when it was forked, at the points that matter: none of its events is read before.
// Where one is under way already, the child's smaps tell. nil: it is gone. ok is false
// when it cannot be found (yet): it shows up in /proc only after its event was read.
func (e *Engine) childMaps(p *process, ev *state.Event, points []uint64) (had ranges, ok bool) {
	c, err := e.child(p, ev)
	if err != nil {
		return nil, false
	}
	had, errno := mappedAt(c.uffd(), points)
	if errno == 0 || errno == syscall.ESRCH {
		return had, true
	}
	_ = e.mark(c) // by its nonce it is found; EEXIST when that was done before
	pid, ok := e.find(c, p, !p.lookingSince.IsZero() && e.now.Sub(p.lookingSince) > findMax/2)
	if !ok {
		return nil, false
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps", pid))
	if err != nil {
		return nil, false
	}
	had, err = registered(text)
	return had, err == nil
}

// find finds the process that a child is, by its nonce: among its parent's children, or
// (where it was given another parent) among all.
func (e *Engine) find(c, parent *process, all bool) (pid int, ok bool) {
	known := map[int]bool{}
	for _, q := range e.live {
		known[int(q.rec.Pid)] = true
	}
	among := func(words []string) bool {
		for _, w := range words {
			var err error
			if pid, err = strconv.Atoi(w); err == nil && !known[pid] && isChild(pid, c) {
				return true
			}
		}
		return false
	}
	if parent != nil {
		for _, task := range names(fmt.Sprintf("/proc/%d/task", parent.rec.Pid)) {
			b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/children", parent.rec.Pid, task))
			if err == nil && among(strings.Fields(string(b))) {
				return pid, true
			}
		}
	}
	return pid, all && among(names("/proc"))
}

// names lists a folder, as far as it can be read.
func names(dir string) (list []string) {
	entries, _ := os.ReadDir(dir) // what is gone has no names
	for _, d := range entries {
		list = append(list, d.Name())
	}
	return list
}

// isChild says whether a process has a child's nonce in its anchor page.
func isChild(pid int, c *process) bool {
	fd, err := unix.Open(fmt.Sprintf("/proc/%d/mem", pid), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer closeQuiet(fd)
	return anchored(fd, c.rec.Area, c.rec.Nonce)
}

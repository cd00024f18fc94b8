package engine

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"os"
	"syscall"
	"time"

	"github.com/farpage/farpage/handler/handoff"
	"github.com/farpage/farpage/handler/space"
	"github.com/farpage/farpage/handler/state"
	"github.com/farpage/farpage/handler/target"
	"github.com/farpage/farpage/handler/uffd"
	"golang.org/x/sys/unix"
)

// maxConns bounds the connections whose hand-off is not done.
const maxConns = 1024

// handOffMax is how long a hand-off may take. A helper whose process was stopped
// meanwhile begins again.
const handOffMax = time.Minute

// conn is a helper that is handing its process over.
type conn struct {
	fd    int
	pid   int
	index int32
	hello handoff.Message
	step  uint16 // type of the message that comes next
	since time.Time
	waits bool // for its FORK event to be applied
	proc  *process
}

// accept takes in connections of this container's socket. Who it is says the
// kernel, and identify proves.
func (e *Engine) accept() {
	for {
		fd, _, err := unix.Accept4(e.listener, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
		if errors.Is(err, unix.EINTR) || errors.Is(err, unix.ECONNABORTED) {
			continue
		}
		if err != nil {
			e.acceptAgain = !errors.Is(err, unix.EAGAIN)
			if e.acceptAgain {
				e.warn("accept", "accept a hand-off: %v", os.NewSyscallError("accept4", err))
			}
			return
		}
		pid, err := target.Peer(fd)
		if err != nil || pid <= 0 || len(e.conns) >= maxConns {
			e.mem.Header.Counters.ProtocolErrors++
			e.warn("conns", "a hand-off is refused: peer pid %d, %v, %d others under way", pid, err, len(e.conns))
			_ = unix.Close(fd)
			continue
		}
		e.nextConn++
		c := &conn{fd: fd, pid: pid, index: e.nextConn, step: handoff.Hello, since: e.now}
		e.conns[c.index] = c
		if err := e.poller.add(fd, source{kind: kindConn, index: c.index}); err != nil {
			e.refuse(c, err)
			continue
		}
		e.converse(c.index)
	}
}

// converse goes on with a hand-off as far as its messages are there.
func (e *Engine) converse(index int32) {
	c := e.conns[index]
	for c != nil {
		m, fd, closed, err := handoff.Receive(c.fd)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return
		case closed:
			err = errHungUp
		case err == nil && m.Type != c.step:
			err = fmt.Errorf("%w: type %d where %d was expected", handoff.ErrMessage, m.Type, c.step)
		}
		if err == nil {
			var finished bool
			finished, err = e.step(c, m, fd)
			if err == nil && finished {
				delete(e.conns, index)
				return
			}
		} else if fd >= 0 {
			_ = unix.Close(fd)
		}
		if err != nil {
			e.refuse(c, err)
			return
		}
	}
}

// refuse ends a hand-off that cannot go on. The process runs on, unmanaged, or
// (a forked child, or one whose memory is registered) served but not evicted.
func (e *Engine) refuse(c *conn, err error) {
	delete(e.conns, c.index)
	if !errors.Is(err, errHungUp) && !errors.Is(err, unix.EPIPE) && !errors.Is(err, unix.ECONNRESET) {
		e.mem.Header.Counters.ProtocolErrors++
		e.warn("hand-off", "hand-off of pid %d (%s) failed: %v", c.pid, target.Command(c.pid), err)
	}
	if p := c.proc; p != nil {
		// It may begin again; a new process of which nothing is registered yet
		// does so with another userfaultfd.
		if p.has(state.FlagChild) {
			e.forget(p)
		} else {
			e.reap(p)
		}
		return
	}
	e.poller.remove(c.fd)
	_ = unix.Close(c.fd)
}

var errHungUp = errors.New("it hung up")

// step takes one message of a hand-off. fd is ours now, or -1.
func (e *Engine) step(c *conn, m handoff.Message, fd int) (finished bool, err error) {
	if fd >= 0 && m.Type != handoff.Uffd {
		_ = unix.Close(fd)
		return false, fmt.Errorf("%w: a descriptor beside message %d", handoff.ErrMessage, m.Type)
	}
	switch m.Type {
	case handoff.Hello:
		c.hello = m
		if m.Nonce != 0 {
			return false, e.adoptChild(c)
		}
		c.step = handoff.Uffd
		return false, handoff.Send(c.fd, handoff.Message{Type: handoff.Device}, e.device)
	case handoff.Uffd:
		return false, e.adopt(c, fd)
	case handoff.Ready:
		if m.Error != 0 {
			return false, fmt.Errorf("its set-up failed: %w", unix.Errno(m.Error))
		}
		return true, e.arm(c)
	}
	return false, fmt.Errorf("%w: type %d", handoff.ErrMessage, m.Type)
}

// adopt makes a process of the userfaultfd that a helper has sent.
func (e *Engine) adopt(c *conn, fd int) error {
	if fd < 0 {
		return fmt.Errorf("%w: no descriptor", handoff.ErrMessage)
	}
	if !handoff.IsUserfaultfd(fd) {
		_ = unix.Close(fd)
		return fmt.Errorf("%w: the descriptor is not a userfaultfd", handoff.ErrMessage)
	}
	p, err := e.newProcess()
	if err != nil {
		_ = unix.Close(fd)
		return err
	}
	p.rec.UffdFD = int32(fd)
	p.rec.Area = c.hello.Area
	table, err := space.NewTable(e.nodes)
	if err != nil {
		e.closeFD(&p.rec.UffdFD, false)
		return err
	}
	p.table, p.rec.Root = table, table.Root()
	p.rec.Used = state.ProcLive
	if _, errno := uffd.API(fd, uffd.Wanted); errno != 0 {
		e.undo(p)
		return fmt.Errorf("UFFDIO_API: %w: farpage needs Linux 6.8 with CONFIG_USERFAULTFD and root", errno)
	}
	// Its own ranges before anything else: the helper registers its drop range
	// with another uffd, and nobody must be before it.
	area := c.hello.Area
	for _, r := range [...]span{
		{area + handoff.AreaAnchor, area + handoff.AreaAnchor + space.PageSize},
		{area + handoff.AreaStaging, area + handoff.AreaDrop},
	} {
		if errno := uffd.Register(fd, r.start, r.end-r.start, uffd.ModeMissing); errno != 0 {
			e.undo(p)
			return fmt.Errorf("register the helper's area %#x: %w", r.start, errno)
		}
	}
	p.rec.Nonce = randomNonce()
	if errno := e.mark(p); errno != 0 {
		e.undo(p)
		return fmt.Errorf("mark the helper's area %#x: %w", area, errno)
	}
	if err := e.enter(p); err != nil {
		e.undo(p)
		return err
	}
	return e.open(c, p)
}

// mark puts the process's nonce into its anchor page.
func (e *Engine) mark(p *process) syscall.Errno {
	page := e.buf[:space.PageSize]
	clear(page)
	binary.LittleEndian.PutUint64(page, p.rec.Nonce)
	_, errno := uffd.Copy(p.uffd(), p.rec.Area+handoff.AreaAnchor, page, 0)
	return errno
}

// adoptChild finds the forked child whose nonce the helper has read.
func (e *Engine) adoptChild(c *conn) error {
	for i := range e.forking() {
		if p := &e.mem.Procs[i]; p.Nonce == c.hello.Nonce {
			c.waits = true // its FORK is not applied yet; turn comes back
			return nil
		}
	}
	c.waits = false
	for _, p := range e.live {
		if p.rec.Nonce == c.hello.Nonce && p.has(state.FlagChild) && p.rec.SockFD < 0 && !p.has(state.FlagReady) {
			if c.hello.Area != p.rec.Area {
				return fmt.Errorf("%w: area %#x, its parent's is %#x", handoff.ErrMessage, c.hello.Area, p.rec.Area)
			}
			if err := handoff.Send(c.fd, handoff.Message{Type: handoff.Device}, e.device, p.uffd()); err != nil {
				return err
			}
			return e.open(c, p)
		}
	}
	return fmt.Errorf("%w: no forked child has this nonce", handoff.ErrMessage)
}

// forking yields the records of children whose FORK is in the ring and not applied.
func (e *Engine) forking() iter.Seq[int] {
	return func(yield func(int) bool) {
		for _, p := range e.live {
			for _, i := range p.batch {
				ev := &e.mem.Ring[i]
				if ev.Msg.Event == uffd.EventFork && ev.Child != 0 && !yield(int(ev.Child-1)) {
					return
				}
			}
		}
	}
}

// open identifies the process and gives its helper a channel.
func (e *Engine) open(c *conn, p *process) error {
	c.proc = p
	p.rec.SockFD = int32(c.fd)
	p.rec.HelperTid = c.hello.Tid
	if err := e.identify(p, c.pid, p.rec.Nonce); err != nil {
		return err
	}
	fd, err := handoff.NewChannel()
	if err != nil {
		return err
	}
	p.rec.ChannelFD = int32(fd)
	if p.pipe, err = handoff.OpenPipe(fd); err != nil {
		return err
	}
	c.step = handoff.Ready
	mode := uint64(registerMode)
	if len(e.cfg.Policy.Regions) > 0 {
		mode = 0 // the shim registers everything it maps
	}
	return handoff.Send(c.fd, handoff.Message{Type: handoff.Channel, Mode: mode}, fd)
}

// arm ends a hand-off: the process's memory is registered and its helper takes
// commands.
func (e *Engine) arm(c *conn) error {
	p := c.proc
	e.poller.remove(c.fd)
	if err := e.poller.add(c.fd, source{kindHelper, p.tag, int32(p.index)}); err != nil {
		return err
	}
	p.unarmed = true
	e.armed(p)
	return nil
}

// armed tells a helper that its process is taken in. A child's table is held
// against its mappings before that: once its helper registers what it maps, an
// entry of something that its parent was just unmapping when it forked would pass
// for one of the new mapping.
func (e *Engine) armed(p *process) {
	if !e.checkChild(p, space.Limit) {
		return // attend comes back
	}
	if !p.has(state.FlagChild) {
		e.watchMmaps(p)
	}
	p.unarmed = false
	p.set(state.FlagReady)
	e.register(p)
	if err := handoff.Send(int(p.rec.SockFD), handoff.Message{Type: handoff.Armed}); err != nil {
		p.reason = err.Error()
		e.hangUp(p)
	}
}

// undo gives up a process that never came to be served.
func (e *Engine) undo(p *process) {
	p.rec.Used = state.ProcFree
	p.table.Free(e.slots.drop)
	e.closeFD(&p.rec.UffdFD, true)
}

// hear takes in a helper's notices; they say only that it is time to look.
// Descriptors that come with them are dropped by the kernel.
func (e *Engine) hear(p *process) {
	var notice [handoff.MessageSize + 1]byte
	for p.rec.SockFD >= 0 {
		n, err := syscall.Read(int(p.rec.SockFD), notice[:])
		switch {
		case errors.Is(err, syscall.EAGAIN):
			return
		case errors.Is(err, syscall.EINTR):
			continue
		case err != nil || n == 0:
			e.hangUp(p)
			return
		case n != handoff.MessageSize:
			e.mem.Header.Counters.ProtocolErrors++
			e.warn("notice", "pid %d: a notice of %d bytes", p.rec.Pid, n)
			e.hangUp(p)
			return
		}
	}
}

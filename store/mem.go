package store

import (
	"errors"
	"fmt"
	"runtime"
	"sync"

	"github.com/farpage/farpage/store/internal/slab"
	"github.com/klauspost/compress/s2"
)

// ErrClosed says that a store or a space was used after its Close.
var ErrClosed = errors.New("store: closed")

// maxMemWorkers bounds how many goroutines compress for all containers of a
// store, and so how much of a large host eviction can take. On a small one there is
// one for each CPU: compressing is what an eviction waits for, and the engines, of
// higher priority, wait for none of them.
const maxMemWorkers = 4

// Mem is the store "mem:", compressed RAM. It has no memory of its own: each
// container's pages are in the arena that came with its SpaceConfig. See
// MemArenaBytes for how long that should be.
type Mem struct {
	maxWorkers int

	mu      sync.Mutex
	gets    ring[memJob] // mu; served first: somebody waits for them
	others  ring[memJob] // mu
	work    sync.Cond    // on mu: there is a job, or closing
	idle    int          // mu: workers that wait for work and are not called yet
	workers int          // mu
	closing bool         // mu
	ended   sync.Cond    // on mu: a space has nothing under way
	running sync.WaitGroup
}

// memJob is an Op or, without one, the space's turn to give memory back.
type memJob struct {
	space *MemSpace
	op    *Op
}

// NewMem makes a store without containers. It starts no goroutine before the
// first Put or Get.
func NewMem() *Mem {
	m := &Mem{maxWorkers: min(maxMemWorkers, runtime.NumCPU())}
	m.work.L = &m.mu
	m.ended.L = &m.mu
	return m
}

// MemArenaBytes is the length of arena, in bytes, in which farBytes of any
// content find room. It is more than what is ever used at one time, because
// pages that compress differently do not share a slab.
func MemArenaBytes(farBytes int64) int64 {
	return min(2*min(farBytes, slab.MaxBytes)+2*int64(slab.Classes)*slab.Bytes, slab.MaxBytes)
}

// String is the URL.
func (m *Mem) String() string { return "mem:" }

// Open takes over what cfg.Arena holds under cfg.Live and releases the rest of
// it. The arena must stay mapped until the space is closed.
func (m *Mem) Open(cfg SpaceConfig) (Space, error) {
	if len(cfg.Arena) < PageSize {
		return nil, fmt.Errorf("store mem: container %q: an arena of %d bytes holds no page", cfg.ID, len(cfg.Arena))
	}
	m.mu.Lock()
	closing := m.closing
	m.mu.Unlock()
	if closing {
		return nil, ErrClosed
	}
	return newMemSpace(m, cfg), nil
}

// Recovered has nothing to do: containers have nothing in common here.
func (m *Mem) Recovered() {}

// Close waits for every Op of every space and ends the workers.
func (m *Mem) Close() error {
	m.mu.Lock()
	m.closing = true
	m.idle = 0
	m.work.Broadcast()
	m.mu.Unlock()
	m.running.Wait()
	return nil
}

// submit queues a job. False: the store or the space is closed.
func (m *Mem) submit(job memJob) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closing || job.space.closed {
		return false
	}
	job.space.underWay++
	if job.op != nil && !job.op.Write {
		m.gets.push(job)
	} else {
		m.others.push(job)
	}
	switch {
	case m.idle > 0:
		m.idle--
		m.work.Signal()
	case m.workers < m.maxWorkers:
		m.workers++
		m.running.Go(m.run)
	}
	return true
}

// run is a worker.
func (m *Mem) run() {
	scratch := make([]byte, s2.MaxEncodedLen(PageSize))
	m.mu.Lock()
	for {
		job, ok := m.gets.pop()
		if !ok {
			job, ok = m.others.pop()
		}
		switch {
		case ok:
			m.mu.Unlock()
			job.do(scratch)
			m.mu.Lock()
			if job.space.underWay--; job.space.underWay == 0 {
				m.ended.Broadcast()
			}
		case m.closing:
			m.mu.Unlock()
			return
		default:
			m.idle++
			m.work.Wait()
		}
	}
}

func (j memJob) do(scratch []byte) {
	switch {
	case j.op == nil:
		j.space.trim()
		return
	case j.op.Write:
		j.op.Handle, j.op.Err = j.space.write(j.op.Page, scratch)
	default:
		j.op.Err = j.space.read(j.op.Handle, j.op.Page)
	}
	j.space.done(j.op)
}

// drain waits until nothing of s is under way, and lets nothing new in.
func (m *Mem) drain(s *MemSpace) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s.closed = true
	for s.underWay > 0 {
		m.ended.Wait()
	}
}

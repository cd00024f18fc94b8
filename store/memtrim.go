package store

import "github.com/farpage/farpage/store/internal/slab"

// Memory that no object needs any more is given back late and in part: what
// was just freed is likely to be needed by the next eviction, and each release
// is a system call and a fault later. Above idleBytesMax half of it goes.
const (
	// memIdleFree is the idle memory that is always kept, in bytes.
	memIdleFree = 1 << 20
	// memIdlePart of what is resident may be idle, too.
	memIdlePart = 8
	// memTrimSlabs are released before other jobs get their turn.
	memTrimSlabs = 32
)

// idleBytesMax is how much idle memory is put up with. Preconditions: s.mu.
func (s *MemSpace) idleBytesMax() int64 {
	return max(memIdleFree, s.slabs.ResidentBytes()/memIdlePart)
}

// mayTrim is false for an owner who takes nothing back, or once failed to.
func (s *MemSpace) mayTrim() bool {
	return s.release != nil && s.releaseErrors.Load() == 0
}

// queueTrim is called by who has set trimming.
func (s *MemSpace) queueTrim() {
	if !s.store.submit(memJob{space: s}) {
		s.mu.Lock()
		s.trimming = false
		s.mu.Unlock()
	}
}

// trim releases some idle memory and queues itself again if that was not
// enough. It runs on a worker, once at a time.
func (s *MemSpace) trim() {
	for range memTrimSlabs {
		if !s.trimOne() {
			return
		}
	}
	s.queueTrim()
}

// trimOne releases the idle pages of one slab. False: that is enough. Puts that
// need room meanwhile are served from other slabs, or wait for released.
func (s *MemSpace) trimOne() bool {
	s.mu.Lock()
	enough := !s.mayTrim() || s.slabs.IdleBytes() <= s.idleBytesMax()/2
	batch, ok := slab.Batch{}, false
	if !enough {
		batch, ok = s.slabs.Take()
	}
	s.releasing = ok
	s.trimming = ok
	s.mu.Unlock()
	if !ok {
		return false
	}

	var err error
	for offset, length := range batch.Runs() {
		if err = s.release(offset, length); err != nil {
			s.releaseErrors.Add(1)
			break
		}
	}

	s.mu.Lock()
	s.slabs.Give(batch, err == nil)
	s.resident.Store(s.slabs.ResidentBytes())
	s.releasing = false
	s.released.Broadcast()
	s.mu.Unlock()
	return true
}

package e2e

import (
	"testing"
	"time"
)

// The thread that moves pages out is stopped on its way, as on a machine that has no CPU
// for it. Meanwhile pages of its command become thread blocks and held mutexes, which the
// kernel has to find when the threads end.
func TestPagesThatGetAnOwnerOnTheirWayOutComeBack(t *testing.T) {
	s := startStepping(t, startHost(t), "owners", seedRegions)
	s.at("touched")
	s.evict("mutexes", "stacks")
	s.next("touched again")
	s.expectResident("mutexes", "stacks")
	before := s.stats().EvictedPages
	evicted := make(chan struct{})
	s.withHelperStopped(func() {
		go func() {
			defer close(evicted)
			farpage(t, "evict", s.container.ID(), "--all", "--socket-dir", s.host.SocketDir())
		}()
		time.Sleep(200 * time.Millisecond) // until the helper has its command, which nobody can see
		s.next("owned")
	})
	<-evicted
	if n := s.stats().EvictedPages - before; n < int64(s.parts["mutexes"].pages) {
		t.Errorf("%d pages were evicted: want those of the mutexes among them", n)
	}
	s.await("the mutexes are back", func() bool { return s.resident(s.parts["mutexes"]) == s.parts["mutexes"].pages })
	s.expectRight()
}

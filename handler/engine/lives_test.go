package engine_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/farpage/farpage/handler/engine"
	"github.com/farpage/farpage/handler/target"
	"github.com/farpage/farpage/store"
	"github.com/sirupsen/logrus"
)

func TestProcessThatExecsAgainAndAgainLeavesNothingOfItsFormerMemories(t *testing.T) {
	c := newContainer(t, memory(t))
	stop := c.keepEvicting()
	c.start("exec", "10").wait()
	stop()
	c.within("no process is left", func() bool { return c.stats().Processes.Managed == 0 })
	s := c.stats()
	if s.Execs != 10 || s.Processes.Exited != 11 {
		t.Errorf("%d execs and %d memories given up, want 10 and 11", s.Execs, s.Processes.Exited)
	}
	if s.FarBytes != 0 {
		t.Errorf("%d bytes are far", s.FarBytes)
	}
	if s.EvictedPages == 0 {
		t.Error("nothing was evicted")
	}
}

func TestChildrenThatExecLeaveTheirParentsMemoryAsItWas(t *testing.T) {
	c := newContainer(t, memory(t))
	stop := c.keepEvicting()
	c.start("forkexec", "10").wait()
	stop()
	c.within("no process is left", func() bool { return c.stats().Processes.Managed == 0 })
	s := c.stats()
	if s.Forks != 10 || s.FarBytes != 0 {
		t.Errorf("%d forks, %d bytes far: want 10 and 0", s.Forks, s.FarBytes)
	}
	if s.EvictedPages == 0 {
		t.Error("nothing was evicted")
	}
}

// keepEvicting evicts everything over and over until it is stopped.
func (c *container) keepEvicting() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			if _, err := c.engine.EvictAndWait(ctx, -1); err != nil {
				c.t.Error(err)
				return
			}
		}
	}()
	return func() {
		cancel()
		<-done
	}
}

// openFDs says what this process's descriptors are of.
func openFDs(t *testing.T) []string {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	var files []string
	for _, fd := range fds {
		// The folder's own descriptor is closed by now.
		if file, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil {
			files = append(files, file)
		}
	}
	slices.Sort(files)
	return files
}

func TestFiftyProcessesLeaveNoDescriptorBehind(t *testing.T) {
	c := newContainer(t, memory(t))
	stop := c.keepEvicting()
	defer stop()
	one := func(i int) {
		switch i % 4 {
		case 0:
			c.start("forkexec", "2").wait()
		case 1:
			c.start("exec", "1").wait()
		case 2: // dies in the middle
			g := c.interpreter()
			g.does("map 100")
			g.does("write 0 100 1")
			g.kill()
		case 3:
			g := c.interpreter()
			g.does("map 100")
			g.does("write 0 100 1")
			g.right("fork 0 100 100 100 1 1")
			g.right("vfork 0 100 100 1")
			g.wait()
		}
		c.within("no process is left", func() bool { return c.stats().Processes.Managed == 0 })
	}
	for i := range 4 {
		one(i) // what is opened once stays open
	}
	before := openFDs(t)
	for i := range 50 {
		one(i)
	}
	var after []string
	c.within("as many descriptors as before", func() bool {
		after = openFDs(t)
		return len(after) <= len(before)
	})
	if len(after) > len(before) {
		t.Errorf("descriptors after:\n%q\nbefore:\n%q", after, before)
	}
	if s := c.stats(); s.FarBytes != 0 {
		t.Errorf("%d bytes are far", s.FarBytes)
	}
}

func TestContainerThatHasEndedLeavesNoDescriptorBehind(t *testing.T) {
	st := memory(t)
	once := func() {
		t.Run("container", func(t *testing.T) {
			c := newContainer(t, st)
			g := c.interpreter()
			g.does("map 100")
			g.does("write 0 100 1")
			c.evict(50)
		})
	}
	once()
	before := openFDs(t)
	for range 5 {
		once()
	}
	if after := openFDs(t); len(after) > len(before) {
		t.Errorf("descriptors after:\n%q\nbefore:\n%q", after, before)
	}
}

func TestChildHasOfFarMemoryWhatForkGivesIt(t *testing.T) {
	c := newContainer(t, memory(t), inRegion)
	g := c.interpreter()
	g.does("map 400")
	g.does("write 0 300 1")
	g.does("wipe 100 200")
	g.does("dontfork 200 300")
	for _, far := range []bool{true, false} {
		for generations := range 3 {
			if far {
				c.evict(0)
			}
			g.right("fork 0 100 200 300 1 %d", generations)
			g.right("read 0 300 1")
		}
	}
}

func TestGenerationsOfChildrenWriteTheSameFarPagesEachForItself(t *testing.T) {
	c := newContainer(t, memory(t))
	g := c.interpreter()
	g.does("map 1000")
	g.does("write 0 600 1")
	stop := c.keepEvicting()
	defer stop()
	for range 10 {
		g.right("fork 0 600 600 600 1 2")
		g.right("read 0 600 1")
	}
	if s := c.stats(); s.RestoredPages == 0 || s.Forks < 30 {
		t.Errorf("%d pages came back in %d forks", s.RestoredPages, s.Forks)
	}
}

func TestVforkedChildIsServedFromItsParentsFarMemory(t *testing.T) {
	c := newContainer(t, memory(t), inRegion)
	g := c.interpreter()
	g.does("map 400")
	stop := c.keepEvicting()
	defer stop()
	for seed := range 20 {
		// An even one exits, an odd one execs.
		g.does("write 0 200 %d", seed+2)
		g.right("vfork 0 200 300 %d", seed+2)
		g.right("read 0 200 %d", seed+2)
		g.right("read 200 300 %d", seed+3)
	}
	if s := c.stats(); s.RestoredPages == 0 || s.Forks != 0 {
		t.Errorf("%d pages came back; %d forks, want 0", s.RestoredPages, s.Forks)
	}
}

func TestFreshMemoryWhereFarMemoryWasIsZeros(t *testing.T) {
	c := newContainer(t, memory(t))
	g := c.interpreter()
	g.does("map 64")
	stop := c.keepEvicting()
	defer stop()
	g.right("renew 64 400")
	if s := c.stats(); s.EvictedPages < 500 || s.RestoredPages == 0 {
		t.Errorf("%d pages were evicted and %d came back", s.EvictedPages, s.RestoredPages)
	}
}

// While the agent has events to apply, a new mapping may be where they say that another
// one was moved to: the helper leaves it alone, and the agent finds it afterwards.
func TestNothingIsRegisteredBetweenEventsThatWereReadAndWhatTheyDo(t *testing.T) {
	for _, unsettled := range []bool{true, false} {
		c := newContainer(t, memory(t))
		g := c.interpreter()
		g.does("write 0 0 1") // nothing: what a command needs of the guest's own memory is there
		release := c.engine.Hold(unsettled)
		func() {
			defer release()
			g.does("map 64") // waits for the helper
			if got := g.watched(region); got == unsettled {
				t.Errorf("events wait %v: the new mapping is registered %v", unsettled, got)
			}
		}()
		c.within("the mapping is registered", func() bool { return g.watched(region) })
	}
}

// Also an event that nobody has read yet is one.
func TestNothingIsRegisteredWhileAnEventIsUnderWay(t *testing.T) {
	c := newContainer(t, memory(t))
	g := c.interpreter()
	g.does("map 64")
	g.does("write 0 64 1")
	c.within("the mapping is registered", func() bool { return g.watched(region) })
	release := c.engine.Hold(false)
	if !c.engine.Settled() {
		t.Error("nothing happens, and it is not settled")
	}
	g.send("move 64 1")
	c.waitsIn("userfaultfd_event_wait", g)
	if c.engine.Settled() {
		t.Error("an mremap waits for its event to be read, and it is settled")
	}
	release()
	if s := g.reply(); s != "ok" {
		t.Errorf("the guest says %q", s)
	}
	g.right("read 0 64 1")
}

// waitsIn waits until a thread of a guest sleeps in a function of the kernel.
func (c *container) waitsIn(function string, g *guest) {
	c.t.Helper()
	for deadline := time.Now().Add(patience); !strings.Contains(g.state(), function); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			c.t.Fatalf("no thread of the guest is in %s:\n%s", function, g.state())
		}
	}
}

// watched says whether a userfaultfd watches the mapping at an address.
func (g *guest) watched(addr uint64) (is bool) {
	g.t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps", g.command.Process.Pid))
	if err != nil {
		g.t.Fatal(err)
	}
	err = target.Smaps(text, func(v target.VMA, f target.Flags) {
		is = is || f.Registered && v.Start <= addr && addr < v.End
	})
	if err != nil {
		g.t.Fatal(err)
	}
	return is
}

func TestChildHasThePagesWhereTheyWereWhenItWasForked(t *testing.T) {
	c := newContainer(t, memory(t))
	g := c.interpreter()
	g.does("map 64")
	g.does("write 0 64 1")
	stop := c.keepEvicting()
	defer stop()
	// A pause of 20 microseconds between moves: too short for a quiet moment in which
	// smaps is read, with the batch growing the longer that took.
	g.right("forkmove 64 1 150 20")
	// Without a pause there is no quiet moment at all: the thread is held.
	g.right("forkmove 64 1 150 0")
	c.nobodyIsHeld()
}

func TestThreadThatMovesItsMemoryWithoutAPauseGoesOn(t *testing.T) {
	c := newContainer(t, memory(t))
	g := c.interpreter()
	g.does("map 64")
	g.does("write 0 64 1")
	c.evict(64)
	g.does("move 64 5000")
	g.right("read 0 64 1")
}

// A raw system call runs no atfork handler: such a child is served, not evicted.
func TestChildWithoutAHelperIsServedItsParentsFarMemory(t *testing.T) {
	c := newContainer(t, memory(t), inRegion)
	g := c.interpreter()
	g.does("map 400")
	g.does("write 0 300 1")
	g.does("rawforks")
	for range 3 {
		c.evict(1)
		g.right("fork 0 300 300 300 1 0")
		g.right("read 0 300 1")
	}
}

// Nobody tells which process such a child is, and what it does not inherit only its own
// mappings tell: it is found by its nonce.
func TestChildWithoutAHelperReadsZerosInWhatItsParentHadWiped(t *testing.T) {
	c := newContainer(t, memory(t), inRegion)
	g := c.interpreter()
	g.does("map 400")
	g.does("write 0 300 1")
	g.does("wipe 100 200")
	g.does("rawforks")
	c.evict(1)
	g.right("fork 0 100 200 200 1 0")
	g.right("read 0 300 1")
}

// memfds are this process's mappings of memory files.
func memfds(t *testing.T) int {
	t.Helper()
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(maps), "/memfd:")
}

func TestContainerThatCannotBeMadeLeavesNothingBehind(t *testing.T) {
	closed := store.NewMem()
	if err := closed.Close(); err != nil {
		t.Fatal(err)
	}
	log := logrus.New()
	log.SetOutput(t.Output())
	long := filepath.Join(t.TempDir(), strings.Repeat("long", 40))
	if err := os.Mkdir(long, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		config engine.Config
		store  store.Store
		want   string
	}{
		"a cgroup that does not exist": {
			engine.Config{Dir: t.TempDir(), Cgroup: t.TempDir()},
			memory(t),
			"memory.stat: no such file or directory",
		},
		"a store that does not open":      {engine.Config{Dir: t.TempDir()}, closed, "store: closed"},
		"a folder too long for a socket":  {engine.Config{Dir: long}, memory(t), "longer than 107 bytes"},
		"a folder that is not there":      {engine.Config{Dir: filepath.Join(t.TempDir(), "none")}, memory(t), "no such file"},
		"a configuration that is too big": {engine.Config{Dir: t.TempDir(), Name: strings.Repeat("n", 1<<20)}, memory(t), "configuration"},
	} {
		t.Run(name, func(t *testing.T) {
			fds, maps := openFDs(t), memfds(t)
			for range 3 {
				e, err := engine.New(c.config, c.store, -1, logrus.NewEntry(log))
				if err == nil {
					_ = e.Close()
					t.Fatal("it was made")
				}
				if !strings.Contains(err.Error(), c.want) {
					t.Errorf("%v: want something about %q", err, c.want)
				}
			}
			if after := openFDs(t); len(after) > len(fds) {
				t.Errorf("descriptors after:\n%q\nbefore:\n%q", after, fds)
			}
			if after := memfds(t); after > maps {
				t.Errorf("%d mappings of memory files, before %d", after, maps)
			}
		})
	}
}

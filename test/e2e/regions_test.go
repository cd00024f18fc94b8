package e2e

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/farpage/farpage/api"
	"github.com/farpage/farpage/oci/policy"
	"github.com/farpage/farpage/test/container"
	"golang.org/x/sys/unix"
)

const (
	// The two ranges that the guest "seed" takes for the managed ones.
	seedRegions = "0x600000000000-0x600040000000,0x610000000000-0x610001000000"
	// Where Linux puts the heap of a position independent program.
	heapRegion = "550000000000-570000000000"

	pageBytes = 4096
	// How long something may take that farpage does by itself.
	regionsPatience = 20 * time.Second
)

// The parts of the guest's memory, by where they are.
var (
	seedInside  = []string{"inside", "first", "last"}
	seedOutside = []string{"outside", "before", "behind", "heap", "arena"}
)

// part is a piece of the guest's memory, as the guest tells of it.
type part struct {
	start uint64
	pages int
}

func (p part) end() uint64 { return p.start + uint64(p.pages)*pageBytes }

// seed is the guest of that name in a container, or another that goes from step to step.
type seed struct {
	*contained
	guest string
	told  *os.File
	on    *os.File
	text  []byte // told and not yet taken in
	parts map[string]part
	pid   int // of the process that told the last step, outside the container
}

// startSeed starts the guest with 32 MiB local; what it maps is managed before its
// main begins, or it does not begin.
func startSeed(t *testing.T, h *host, regions string, arguments ...string) *seed {
	t.Helper()
	return startStepping(t, h, "seed", regions, arguments...)
}

func startStepping(t *testing.T, h *host, name, regions string, arguments ...string) *seed {
	t.Helper()
	s := &seed{guest: name, parts: map[string]part{}}
	dir := t.TempDir()
	s.told, s.on = openFifo(t, filepath.Join(dir, "told")), openFifo(t, filepath.Join(dir, "on"))
	s.contained = h.startContained(t, dir, "32Mi", func(cfg *container.Config) {
		cfg.Annotations[policy.KeyRegions] = regions
		cfg.Annotations[policy.KeyOnFailure] = policy.OnFailureClosed
	}, append([]string{guest(t, name)}, arguments...)...)
	return s
}

// openFifo makes a fifo and holds both of its ends open.
func openFifo(t *testing.T, path string) *os.File {
	t.Helper()
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	fifo, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = fifo.Close() })
	return fifo
}

// at waits until the guest is at a step, and takes in where its parts are by then.
func (s *seed) at(step string) {
	s.t.Helper()
	for {
		words := strings.Fields(s.line(step))
		switch {
		case len(words) == 4 && words[0] == "part":
			start, err1 := strconv.ParseUint(words[2], 16, 64)
			pages, err2 := strconv.Atoi(words[3])
			if err := errors.Join(err1, err2); err != nil {
				s.giveUp(err.Error())
			}
			s.parts[words[1]] = part{start, pages}
			continue
		case len(words) > 2 && words[0] == "step" && strings.Join(words[1:len(words)-1], " ") == step:
			s.pid = s.hostPid(words[len(words)-1])
			return
		}
		s.giveUp(fmt.Sprintf("told %q on its way to step %q", words, step))
	}
}

// line is the next that the guest tells.
func (s *seed) line(step string) string {
	s.t.Helper()
	for deadline := time.Now().Add(time.Minute); ; {
		if line, rest, whole := bytes.Cut(s.text, []byte("\n")); whole {
			s.text = rest
			return string(line)
		}
		var more [4096]byte
		if err := s.told.SetReadDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
			s.t.Fatal(err)
		}
		n, err := s.told.Read(more[:])
		s.text = append(s.text, more[:n]...)
		_, ended := os.Stat(filepath.Join(s.dir, statusName))
		switch {
		case n > 0:
		case !errors.Is(err, os.ErrDeadlineExceeded):
			s.giveUp(fmt.Sprintf("told nothing more: %v", err))
		case ended == nil:
			s.giveUp(fmt.Sprintf("ended before step %q", step))
		case time.Now().After(deadline):
			s.giveUp(fmt.Sprintf("did not come to step %q", step))
		}
	}
}

// goOn lets the guest leave the step that it is at.
func (s *seed) goOn() {
	s.t.Helper()
	if _, err := s.on.WriteString("\n"); err != nil {
		s.t.Fatal(err)
	}
}

// next lets the guest go to the next step.
func (s *seed) next(step string) {
	s.t.Helper()
	s.goOn()
	s.at(step)
}

// hostPid is the pid that a process of the container has outside of it.
func (s *seed) hostPid(inside string) int {
	s.t.Helper()
	pids, err := s.container.Pids()
	if err != nil {
		s.giveUp(err.Error())
	}
	for _, pid := range pids {
		status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		for line := range strings.Lines(string(status)) {
			if words := strings.Fields(line); words[0] == "NSpid:" && words[len(words)-1] == inside {
				return pid
			}
		}
	}
	s.giveUp("has no process " + inside)
	return 0
}

// registered says how many of a part's pages are in mappings that a userfaultfd watches:
// VmFlags of /proc/PID/smaps.
func (s *seed) registered(p part) (pages int) {
	s.t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps", s.pid))
	if err != nil {
		s.giveUp(err.Error())
	}
	var start, end uint64
	for line := range bytes.Lines(text) {
		if flags, ok := bytes.CutPrefix(line, []byte("VmFlags:")); ok {
			if slices.Contains(strings.Fields(string(flags)), "um") && start < p.end() && end > p.start {
				pages += int(min(end, p.end())-max(start, p.start)) / pageBytes
			}
			continue
		}
		if from, to, ok := mappingOf(line); ok {
			start, end = from, to
		}
	}
	return pages
}

// mappingOf reads the first line of a mapping in smaps.
func mappingOf(line []byte) (start, end uint64, ok bool) {
	addresses, _, _ := bytes.Cut(line, []byte(" "))
	from, to, found := strings.Cut(string(addresses), "-")
	start, err1 := strconv.ParseUint(from, 16, 64)
	end, err2 := strconv.ParseUint(to, 16, 64)
	return start, end, found && err1 == nil && err2 == nil
}

// resident counts the pages of a part that are there, by /proc/PID/pagemap.
func (s *seed) resident(p part) (pages int) {
	s.t.Helper()
	pagemap, err := os.Open(fmt.Sprintf("/proc/%d/pagemap", s.pid))
	if err != nil {
		s.giveUp(err.Error())
	}
	defer pagemap.Close()
	entries := make([]byte, 8*p.pages)
	if _, err := pagemap.ReadAt(entries, int64(p.start/pageBytes*8)); err != nil {
		s.giveUp(err.Error())
	}
	for ; len(entries) > 0; entries = entries[8:] {
		const present, swapped = 1 << 63, 1 << 62
		if binary.LittleEndian.Uint64(entries)&(present|swapped) != 0 {
			pages++
		}
	}
	return pages
}

// await waits for something that farpage does by itself.
func (s *seed) await(what string, holds func() bool) {
	s.t.Helper()
	for deadline := time.Now().Add(regionsPatience); !holds(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			s.giveUp("is waited for in vain: " + what)
		}
	}
}

// awaitManaged waits until all of these parts are registered.
func (s *seed) awaitManaged(names ...string) {
	s.t.Helper()
	for _, name := range names {
		p := s.parts[name]
		s.await(name+" is registered", func() bool { return s.registered(p) == p.pages })
	}
}

// expectUnmanaged says that nothing of these parts is registered, and all of it there.
func (s *seed) expectUnmanaged(names ...string) {
	s.t.Helper()
	for _, name := range names {
		if p := s.parts[name]; s.registered(p) != 0 || s.resident(p) != p.pages {
			s.t.Errorf("of %d pages of %s %d are registered and %d resident: want none registered and all resident",
				p.pages, name, s.registered(p), s.resident(p))
		}
	}
}

// expectResident says that all of these parts is there.
func (s *seed) expectResident(names ...string) {
	s.t.Helper()
	for _, name := range names {
		if p := s.parts[name]; s.resident(p) != p.pages {
			s.t.Errorf("%d of %d pages of %s are resident, want all", s.resident(p), p.pages, name)
		}
	}
}

// evict evicts all that is managed, until nothing of these parts is there.
func (s *seed) evict(names ...string) {
	s.t.Helper()
	s.awaitManaged(names...)
	for _, name := range names {
		s.await(name+" is far", func() bool {
			if s.resident(s.parts[name]) == 0 {
				return true
			}
			s.host.command(s.t, "evict", s.container.ID(), "--all")
			return false
		})
	}
}

// newAgent has another agent go on with what the last one, that is killed, has left.
func (s *seed) newAgent() {
	s.t.Helper()
	if err := s.host.killAgent(); err != nil {
		s.giveUp(err.Error())
	}
}

// expectRight lets the guest come to its end.
func (s *seed) expectRight() outcome {
	s.t.Helper()
	s.goOn()
	far := s.wait(time.Minute)
	far.log(s.t)
	if far.status != 0 || string(far.stdout) != s.guest+": all is right\n" {
		s.t.Errorf("exit status %d, stdout %q\nstderr:\n%s", far.status, far.stdout, tail(far.stderr))
	}
	far.expectSound(s.t)
	return far
}

// One program goes through what memory inside and outside of the ranges can meet. That
// its bytes are right it says itself; where they are is looked at from outside.
func TestOnlyWhatIsMappedInTheRegionsIsManaged(t *testing.T) {
	s := startSeed(t, startHost(t), seedRegions)
	s.expectRegisteredAndServed()
	s.expectPressureInside()
	s.expectFork()
	s.expectChangesOfMappings()
	s.expectMoves()
	s.expectEvictionByItself()
	s.expectRight().expectFar(t)
}

func (s *seed) expectRegisteredAndServed() {
	s.t.Helper()
	s.at("mapped")
	s.awaitManaged(seedInside...)
	before := s.stats()
	s.next("touched")
	// Each answer gives 64 pages at most.
	pages := 0
	for _, name := range seedInside {
		pages += s.parts[name].pages
	}
	after := s.stats()
	if grown := after.Faults.ServedZero - before.Faults.ServedZero; grown < int64(pages/64) || after.Faults.ServedFar != 0 {
		s.t.Errorf("first touches of %d pages: %d served with zeros, %d with bytes", pages, grown, after.Faults.ServedFar)
	}
	s.next("written")
	s.expectResident(seedInside...)
	s.evict(seedInside...)
	s.expectUnmanaged(seedOutside...)
	s.next("read back")
	s.expectResident(seedInside...)
	s.expectUnmanaged(seedOutside...)
}

// More than the budget inside is held within the budget, and what is outside stays.
func (s *seed) expectPressureInside() {
	s.t.Helper()
	watched := watch(s.t, s.container.Pids)
	s.next("pressed")
	outcome{budget: s.budget, peak: watched()}.expectInBudget(s.t)
	s.awaitManaged("large")
	s.expectUnmanaged(seedOutside...)
	s.next("let go")
}

// A child has the same mappings managed, and what it writes is its own.
func (s *seed) expectFork() {
	s.t.Helper()
	s.evict(seedInside...)
	parent := s.pid
	s.next("child")
	if s.pid == parent {
		s.t.Error("the child is its parent")
	}
	s.evict(seedInside...)
	s.expectUnmanaged(seedOutside...)
	s.next("child has written")
	s.evict(seedInside...)
	s.expectUnmanaged(seedOutside...)
	s.next("childless")
	s.evict(seedInside...)
	s.next("unforked")
}

func (s *seed) expectChangesOfMappings() {
	s.t.Helper()
	s.evict(seedInside...)
	s.next("protected") // far pages are read back through a mapping that is read only
	s.expectUnmanaged(seedOutside...)
	s.next("renewed")
	s.awaitManaged(seedInside...)
	if p := s.parts["behind"]; s.registered(p) != 0 {
		s.t.Errorf("what was mapped anew behind a region is registered: %d pages", s.registered(p))
	}
	s.next("renewed and written")
	s.evict(seedInside...)
	s.expectUnmanaged(seedOutside...)
}

// What is moved or grows out of a region stays managed, and what is moved into one
// becomes so: nothing that was far is lost on the way.
func (s *seed) expectMoves() {
	s.t.Helper()
	s.next("moved out")
	s.evict("inside")
	s.newAgent()
	s.next("written out there")
	s.evict("inside")
	s.next("moved back")
	s.evict("inside")

	s.next("visitor")
	s.expectUnmanaged("visitor")
	s.next("moved in")
	s.evict("visitor")
	s.next("visited")
	s.evict("visitor")

	s.next("small")
	s.awaitManaged("small")
	s.next("small is written")
	s.evict("small")
	s.next("grown")
	s.evict("grown")
	s.next("all is far")
	s.evict(seedInside...)
	s.expectUnmanaged(seedOutside...)
}

// The program moves its pages away from under a mapping while the thread that uses
// them is stopped; farpage evicts before it, between, and after.
func (s *seed) expectEvictionByItself() {
	s.t.Helper()
	s.next("stopped")
	s.evict("inside")
	s.next("moved away")
	if p := s.parts["inside"]; s.resident(p) != 0 || s.registered(p) != p.pages {
		s.t.Errorf("of %d pages of the mapping that was emptied %d are resident, %d registered: want none and all",
			p.pages, s.resident(p), s.registered(p))
	}
	s.evict("buffer")
	s.newAgent()
	s.next("read in the buffer")
	s.evict("buffer")
	s.next("both are there")
	s.evict("inside", "buffer")
	s.next("both are right")
	s.evict("buffer")
	s.next("given back")
	s.evict("inside")
}

func TestHeapInARegionIsManagedAsItGrowsAndShrinks(t *testing.T) {
	s := startSeed(t, startHost(t), heapRegion, "heap")
	s.at("mapped")
	s.awaitManaged("heap")
	s.next("written")
	s.evict("heap")
	s.newAgent() // nothing tells it of what is mapped: it has to look
	for range 3 {
		s.next("grown")
		s.awaitManaged("more")
		s.next("written")
		s.evict("heap", "more")
		s.next("read back")
		s.evict("heap", "more")
	}
	s.expectRight()
}

func TestMemoryOutsideTheRegionsStaysHoweverFarOverTheBudget(t *testing.T) {
	host := startHost(t)
	s := startSeed(t, host, seedRegions, "over")
	s.at("mapped")
	s.awaitManaged("inside")
	s.next("written")
	// Nobody asks for it: the budget does.
	s.await("all inside is far", func() bool { return s.resident(s.parts["inside"]) == 0 })
	s.expectUnmanaged("outside")
	// The kernel takes its time to sum up a cgroup's memory.
	s.await("what is outside counts as resident and as unevictable", func() bool {
		var stats api.Container
		decode(t, host.command(t, "stat", s.container.ID(), "--json"), &stats)
		outside := int64(s.parts["outside"].pages) * pageBytes
		return stats.ResidentBytes >= outside && stats.UnevictableBytes >= outside
	})
	const said = "the budget is 32 MiB, and nothing more can be evicted"
	s.await("the agent's log says that the budget cannot be kept", func() bool { return strings.Contains(host.Log(), said) })
	s.next("read back")
	s.expectUnmanaged("outside")
	s.expectRight()
}

// Nobody has the time to look at it before it is full: the kernel tells of it, and that
// must not be lost beside the event of what went before it.
func TestMappingInThePlaceOfOneThatHasJustGoneIsRegisteredAtOnce(t *testing.T) {
	s := startSeed(t, startHost(t), seedRegions, "anew")
	s.at("begun")
	s.next("done")
	s.expectPeakInBudget()
	s.expectRight().expectFar(t)
}

// On a busy machine the thread that moves pages out may wait for a CPU for long: the
// program waits for room meanwhile. Here it is stopped instead.
func TestBudgetHoldsWhileTheHelperGetsNoTurn(t *testing.T) {
	const stops, pause = 4, 300 * time.Millisecond
	s := startSeed(t, startHost(t), seedRegions, "anew")
	s.at("begun")
	s.goOn()
	for range stops {
		time.Sleep(pause / 3)
		s.withHelperStopped(func() { time.Sleep(pause) })
	}
	s.at("done")
	s.expectPeakInBudget()
	s.expectRight().expectFar(t)
}

// withHelperStopped calls f while the helper, and no other thread, is kept from running.
func (s *seed) withHelperStopped(f func()) {
	s.t.Helper()
	helper := 0
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", s.pid))
	for _, task := range tasks {
		if name, _ := os.ReadFile(filepath.Join(task, "comm")); string(name) == "farpage\n" {
			helper, _ = strconv.Atoi(filepath.Base(task))
		}
	}
	if helper == 0 {
		s.giveUp("has no helper")
	}
	// Whom a thread traces is its own.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.PtraceSeize(helper); err != nil {
		s.t.Fatal(os.NewSyscallError("ptrace", err))
	}
	defer func() {
		if err := unix.PtraceDetach(helper); err != nil {
			s.t.Error(os.NewSyscallError("ptrace", err))
		}
	}()
	var status unix.WaitStatus
	if err := unix.PtraceInterrupt(helper); err != nil {
		s.t.Fatal(os.NewSyscallError("ptrace", err))
	}
	if _, err := unix.Wait4(helper, &status, unix.WALL, nil); err != nil || !status.Stopped() {
		s.t.Fatalf("wait for the helper to stop: %v, %#x", err, status)
	}
	f()
}

// expectPeakInBudget says that never more was resident than may be.
func (s *seed) expectPeakInBudget() {
	s.t.Helper()
	if most, peak := mostResidentBytes(s.budget), s.peakBytes(); peak > most {
		s.t.Errorf("%.1f MiB were resident at once: want at most %.1f", float64(peak)/(1<<20), float64(most)/(1<<20))
	}
}

// peakBytes is the most that was ever resident, as the kernel has counted.
func (s *seed) peakBytes() int64 {
	s.t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.pid))
	if err != nil {
		s.giveUp(err.Error())
	}
	_, rest, _ := strings.Cut(string(status), "VmHWM:")
	words := strings.Fields(rest)
	kib, err := strconv.ParseInt(words[0], 10, 64)
	if err != nil {
		s.giveUp(err.Error())
	}
	return kib << 10
}

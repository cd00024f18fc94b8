package target

import (
	"errors"
	"os"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

func TestMapsTellsWhatThisProcessHasMapped(t *testing.T) {
	mem, err := unix.Mmap(-1, 0, 5*pageSize, unix.PROT_READ, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Munmap(mem) }()
	f, err := os.Open("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var r Reader
	text, err := r.All(int(f.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	stack, file := false, false
	if err := Maps(text, func(v VMA) {
		stack = stack || string(v.Name) == "[stack]" && v.Writable && !v.File
		file = file || v.File && v.Executable && !v.Shared
	}); err != nil {
		t.Fatal(err)
	}
	if !stack || !file {
		t.Errorf("stack %v, program file %v: want both", stack, file)
	}
}

func TestMalformedMapsAreRefused(t *testing.T) {
	for _, s := range []string{"x", "1000-2000", "2000-1000 rw-p 0 0:0 0", "1000-2000 rw-p 0", "11111111111111111-2 rw-p 0 0:0 0 "} {
		if err := Maps([]byte(s), func(VMA) {}); err == nil {
			t.Errorf("%q was taken", s)
		}
	}
}

func TestSmapsTellsFlags(t *testing.T) {
	const text = "7f0000000000-7f0000001000 rw-p 00000000 00:00 0 \nSize: 4 kB\nVmFlags: rd wr mr mw me ac um wf \n" +
		"7f0000001000-7f0000002000 rw-p 00000000 00:00 0 [anon: x y]\nVmFlags: rd dc \n"
	var got []Flags
	if err := Smaps([]byte(text), func(v VMA, f Flags) { got = append(got, f) }); err != nil {
		t.Fatal(err)
	}
	if len(got) != 2 || !got[0].Registered || !got[0].WipeOnFork || got[0].DontCopy || !got[1].DontCopy || got[1].Registered {
		t.Errorf("%+v", got)
	}
}

func TestTasksAndResidentMemoryOfThisProcess(t *testing.T) {
	d, err := os.Open("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	var tids [256]int32
	n, _, err := Tasks(int(d.Fd()), tids[:])
	if err != nil || n == 0 {
		t.Fatalf("%d tasks, %v", n, err)
	}
	found := false
	for _, tid := range tids[:n] {
		found = found || int(tid) == os.Getpid()
	}
	if !found {
		t.Errorf("pid %d is not among %v", os.Getpid(), tids[:n])
	}
	var r Reader
	rss, err := r.RssAnon(os.Getpid())
	if err != nil || rss < 100<<10 {
		t.Errorf("RssAnon %d, %v", rss, err)
	}
	pss, err := r.PssAnon(os.Getpid())
	if err != nil || pss < 100<<10 {
		t.Errorf("Pss_Anon %d, %v", pss, err)
	}
	if Command(os.Getpid()) == "" || StartTime(os.Getpid()) == 0 {
		t.Error("no command or start time")
	}
	if _, err := r.RssAnon(1 << 22); !errors.Is(err, ErrGone) {
		t.Errorf("a pid that is not there: %v", err)
	}
}

func TestScanFindsTheTouchedPages(t *testing.T) {
	mem, err := unix.Mmap(-1, 0, 64*pageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Munmap(mem) }()
	mem[3*pageSize], mem[4*pageSize], mem[40*pageSize] = 1, 1, 1
	pm, err := os.Open("/proc/" + strconv.Itoa(os.Getpid()) + "/pagemap")
	if err != nil {
		t.Fatal(err)
	}
	defer pm.Close()
	base := address(mem)
	var s Scanner
	var got []uint64
	err = s.Populated(int(pm.Fd()), base, base+64*pageSize, func(a, b uint64) {
		for ; a < b; a += pageSize {
			got = append(got, (a-base)/pageSize)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 3 || got[0] != 3 || got[1] != 4 || got[2] != 40 {
		t.Errorf("populated pages %v, want 3 4 40", got)
	}
}

func FuzzMapsAndSmapsNeverPanic(f *testing.F) {
	f.Add([]byte("7f0000000000-7f0000001000 rw-p 00000000 00:00 0 \nVmFlags: um\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		_ = Maps(b, func(v VMA) {
			if v.Start >= v.End {
				t.Errorf("range %#x-%#x", v.Start, v.End)
			}
		})
		_ = Smaps(b, func(VMA, Flags) {})
	})
}

// 32 MiB of 256 are kept and moved on and on while others sum up what is resident.
func TestWhatMovesWhileItIsSummedUpCountsOnce(t *testing.T) {
	const size, step, kept, slack = 256 << 20, 256 << 10, 32 << 20, 12 << 20
	memory, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Munmap(memory); err != nil {
			t.Error(err)
		}
	}()
	fill := func(at int) {
		for i := at; i < at+step; i += 4096 {
			memory[i] = 1
		}
	}
	for at := 0; at < kept; at += step {
		fill(at)
	}
	var r Reader
	least, err := r.RssAnon(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	const readers = 8 // they interrupt each other
	most := make(chan int64, readers)
	for range readers {
		go func() {
			var r Reader
			peak := int64(0)
			for range 300 {
				share, err := r.PssAnon(os.Getpid())
				if err != nil {
					t.Error(err)
				}
				peak = max(peak, share)
			}
			most <- peak
		}()
	}
	for at, ended := kept, 0; ended < readers; at = (at + step) % size {
		fill(at)
		behind := (at - kept + size) % size
		if err := unix.Madvise(memory[behind:behind+step], unix.MADV_DONTNEED); err != nil {
			t.Fatal(err)
		}
		select {
		case peak := <-most:
			ended++
			if peak < kept || peak > least+slack {
				t.Errorf("at most %d MiB were resident, of which %d are expected", peak>>20, least>>20)
			}
		default:
		}
	}
}

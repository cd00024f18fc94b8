package e2e

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/farpage/farpage/api"
	"github.com/farpage/farpage/shim/lib"
)

// Ten thousand programs in all: what is opened once stays open, so the first of them
// are not looked at.
const (
	shortPrograms = 1000 // in a stage
	shortStages   = 10
)

func TestTenThousandShortProgramsLeaveNothingInTheAgent(t *testing.T) {
	dir := t.TempDir()
	r := startFar(t, dir, guest(t, "shortprograms"), fmt.Sprint(shortPrograms), fmt.Sprint(shortStages), makeFifo(t, dir), "/bin/true")
	agent := r.awaitAgent()
	var before usage
	for stage := 1; stage <= shortStages; stage++ {
		awaitFile(t, filepath.Join(dir, fmt.Sprintf("stage.%d", stage)))
		if stage == 1 || stage == shortStages {
			r.expectOnlyTheFirst(agent, stage)
		}
		if stage == 1 {
			before = r.usage(agent)
		}
		if stage == shortStages {
			r.expectNoMoreThan(agent, before)
		}
		letGo(t, dir)
	}
	far := r.wait(time.Minute)
	far.log(t)
	if want := fmt.Sprintf("shortprograms: %d programs right\n", shortStages*shortPrograms); far.status != 0 || string(far.stdout) != want {
		t.Errorf("exit status %d, stdout %q\nstderr:\n%s", far.status, far.stdout, far.stderr)
	}
	far.expectSound(t)
}

// expectOnlyTheFirst says that after a stage the first program is all that is left.
func (r *running) expectOnlyTheFirst(agent privateAgent, stage int) {
	r.t.Helper()
	// Every other program was forked first: that memory has come and gone too. On a
	// busy host some programs come and go before they are taken in.
	programs := int64(stage * shortPrograms)
	forks := programs / 2
	var c api.Container
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		c = r.ps(agent)
		if len(c.ProcessList) == 1 {
			break
		}
		if time.Now().After(deadline) {
			r.giveUp(fmt.Sprintf("has ended %d programs and is listed as %+v", programs, c))
		}
	}
	if p := c.ProcessList[0]; p.Command != "shortprograms" || p.State != "managed" || p.Reason != "" {
		r.t.Errorf("stage %d: what is left is %+v", stage, p)
	}
	if n := c.Processes; n.Managed != 1 || n.Unmanaged != 0 || n.Exited > forks+programs || n.Exited < forks+programs/2 {
		r.t.Errorf("stage %d: %+v: want %d exited, or a few less", stage, n, forks+programs)
	}
	if c.Forks != forks || c.Execs > forks || c.Execs < forks/2 || c.FarBytes != 0 {
		r.t.Errorf("stage %d: %d forks, %d execs, %d bytes far: want %d forks and, or a few less, execs", stage, c.Forks, c.Execs, c.FarBytes, forks)
	}
}

// usage is what a private agent uses.
type usage struct {
	descriptors []string
	threads     int
	mappings    int
	resident    int64 // bytes
	sockets     int
	files       []string
}

func (r *running) usage(agent privateAgent) usage {
	r.t.Helper()
	proc := fmt.Sprintf("/proc/%d/", agent.pid)
	var u usage
	for _, fd := range entries(r.t, proc+"fd") {
		file, err := os.Readlink(proc + "fd/" + fd)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		kind, _, _ := strings.Cut(file, "[") // socket:[number]
		u.descriptors = append(u.descriptors, kind)
	}
	slices.Sort(u.descriptors)
	u.threads = len(entries(r.t, proc+"task"))
	u.mappings = strings.Count(readAll(r.t, proc+"maps"), "\n")
	u.resident = residentOf(r.t, proc+"status")
	u.sockets = strings.Count(readAll(r.t, "/proc/net/unix"), agent.dir)
	err := filepath.WalkDir(agent.dir, func(path string, _ fs.DirEntry, err error) error {
		u.files = append(u.files, path)
		return err
	})
	if err != nil {
		r.t.Error(err)
	}
	return u
}

func entries(t *testing.T, dir string) []string {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	names := make([]string, 0, len(list))
	for _, entry := range list {
		names = append(names, entry.Name())
	}
	return names
}

func readAll(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// residentOf is VmRSS of a /proc/PID/status.
func residentOf(t *testing.T, path string) int64 {
	t.Helper()
	_, rest, _ := strings.Cut(readAll(t, path), "\nVmRSS:")
	kib, err := strconv.ParseInt(strings.Fields(rest + " none")[0], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return kib << 10
}

// expectNoMoreThan gives the connections of the last commands a moment to end.
func (r *running) expectNoMoreThan(agent privateAgent, before usage) {
	r.t.Helper()
	now := r.usage(agent)
	for deadline := time.Now().Add(5 * time.Second); len(now.excess(before)) > 0 && time.Now().Before(deadline); now = r.usage(agent) {
		time.Sleep(50 * time.Millisecond)
	}
	r.t.Logf("%d descriptors, %d threads, %d mappings, %d KiB, %d sockets; before %d, %d, %d, %d, %d",
		len(now.descriptors), now.threads, now.mappings, now.resident>>10, now.sockets,
		len(before.descriptors), before.threads, before.mappings, before.resident>>10, before.sockets)
	for _, what := range now.excess(before) {
		r.t.Error(what)
	}
}

// excess says what is more than before. A few threads, with their stacks, and memory
// that is not collected yet may come at any time.
func (u usage) excess(before usage) (list []string) {
	say := func(more bool, format string, args ...any) {
		if more {
			list = append(list, fmt.Sprintf(format, args...))
		}
	}
	say(len(u.descriptors) > len(before.descriptors), "descriptors %q, before %q", u.descriptors, before.descriptors)
	say(u.threads > before.threads+4, "%d threads, before %d", u.threads, before.threads)
	say(u.mappings > before.mappings+40, "%d mappings, before %d", u.mappings, before.mappings)
	say(u.resident > before.resident+8<<20, "%d KiB resident, before %d", u.resident>>10, before.resident>>10)
	say(u.sockets > before.sockets, "%d sockets, before %d", u.sockets, before.sockets)
	say(!slices.Equal(u.files, before.files), "files %q, before %q", u.files, before.files)
	return list
}

// With the bell silent, the library and one page of the bell are all that a program
// has more: each of ten thousand sees that for itself.
func TestTenThousandProgramsWithTheBellSilentSeeNothingOfFarpage(t *testing.T) {
	dir, library := t.TempDir(), silentBell(t)
	seen := guest(t, "seen")
	if native := startNative(t, dir, seen, "write", "without").wait(time.Minute); native.status != 0 {
		t.Fatalf("exit status %d\n%s", native.status, native.stderr)
	}
	t.Setenv("LD_PRELOAD", library)
	if silent := startNative(t, dir, seen, "write", "with").wait(time.Minute); silent.status != 0 {
		t.Fatalf("exit status %d\n%s", silent.status, silent.stderr)
	}
	var ours []string
	rest := slices.DeleteFunc(seenLines(t, filepath.Join(dir, "with")), func(line string) bool {
		fields := strings.Fields(line)
		if folder := filepath.Dir(library); filepath.Dir(fields[len(fields)-1]) == folder {
			ours = append(ours, strings.ReplaceAll(line, folder, ""))
			return true
		}
		return false
	})
	if native := seenLines(t, filepath.Join(dir, "without")); !slices.Equal(rest, native) {
		t.Errorf("beside the library a program sees %q, without it %q", rest, native)
	}
	if bell := "mapping r--s 4096 /bell"; len(ours) < 2 || ours[0] != bell {
		t.Errorf("of ours it sees %q: want %q and the library", ours, bell)
	}
	r := startNative(t, dir, guest(t, "shortprograms"), fmt.Sprint(shortPrograms*shortStages), "1", makeFifo(t, dir), seen, "same", "with")
	letGo(t, dir)
	if all := r.wait(2 * time.Minute); all.status != 0 {
		t.Errorf("exit status %d\n%s", all.status, tail(all.stderr))
	}
	if left := entries(t, filepath.Dir(library)); !slices.Equal(left, []string{"bell", filepath.Base(library)}) {
		t.Errorf("in the library's folder are now %q", left)
	}
}

// silentBell makes a folder as a container has it, but for the socket, whose bell
// nobody rings, and returns the library in it.
func silentBell(t *testing.T) string {
	t.Helper()
	dir := shortTempDir(t)
	content, err := lib.Library(dir)
	if err != nil {
		t.Fatal(err)
	}
	library := filepath.Join(dir, "libfarpage.so")
	err = errors.Join(
		os.WriteFile(library, content, 0o755),
		os.WriteFile(filepath.Join(dir, "bell"), make([]byte, 4096), 0o644))
	if err != nil {
		t.Fatal(err)
	}
	return library
}

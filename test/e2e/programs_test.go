package e2e

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// program is something that runs to its end by itself, the same each time.
type program struct {
	name string
	// prepare writes what the program reads into its working folder.
	prepare func(t *testing.T, dir string)
	argv    func(t *testing.T) []string
	// unbounded says why the program may pass its budget; empty: it must not.
	unbounded string
	// artifact is a file that it writes, to be the same with and without farpage.
	artifact string
}

func guestProgram(name string, arguments ...string) program {
	return program{name: name, argv: func(t *testing.T) []string {
		t.Helper()
		return append([]string{guest(t, name)}, arguments...)
	}}
}

func (p program) named(name string) program {
	p.name = name
	return p
}

func pythonProgram(mib string) program {
	return program{name: "python", argv: func(t *testing.T) []string {
		t.Helper()
		return append(pythonGuest(t, "pyguest.py"), mib)
	}}
}

func gccProgram(functions int) program {
	return program{
		name: "gcc", artifact: "large.o",
		prepare: func(t *testing.T, dir string) { t.Helper(); writeLargeC(t, filepath.Join(dir, "large.c"), functions) },
		argv: func(t *testing.T) []string {
			t.Helper()
			requireProgram(t, "gcc")
			return []string{"gcc", "-O2", "-c", "large.c", "-o", "large.o"}
		},
	}
}

func xzProgram(blocks int) program {
	return program{
		name: "xz", artifact: "data.xz",
		prepare: func(t *testing.T, dir string) { t.Helper(); writeMixedData(t, filepath.Join(dir, "data"), blocks) },
		argv: func(t *testing.T) []string {
			t.Helper()
			xz := requireProgram(t, "xz")
			return []string{"sh", "-ec", xz + ` -T2 -3 --block-size=4MiB --keep data; ` + xz + ` -T2 --test data.xz; ` + xz + ` -T2 -dc data.xz | cmp - data; echo the same`}
		},
	}
}

var programs = []program{
	guestProgram("threads8", "256"),
	guestProgram("forktree", "64"),
	guestProgram("daemonise", "64", "64", "512"),
	guestProgram("shortforks", "64", "400", "64"),
	guestProgram("holes", "128"),
	guestProgram("threadexit", "64", "20"),
	guestProgram("threadexit", "64", "20", "private").named("threadexit-private"),
	{
		name: "vforkdeath", unbounded: "memory is served but not evicted once the process that its helper belonged to was killed",
		argv: func(t *testing.T) []string {
			t.Helper()
			return []string{guest(t, "vforkdeath"), "64", "4"}
		},
	},
	{
		name: "locked", unbounded: "more memory is locked than the budget has room for",
		argv: func(t *testing.T) []string {
			t.Helper()
			return []string{guest(t, "locked"), "40", "8"}
		},
	},
	guestProgram("musl-threads8", "128"),
	guestProgram("musl-forktree", "64"),
	guestProgram("musl-threadexit", "64", "20"),
	pythonProgram("100"),
	gccProgram(250),
	xzProgram(24),
}

func TestProgramDoesTheSameWithThirtyTwoMebibytesLocal(t *testing.T) {
	requireFarpage(t)
	for _, program := range programs {
		t.Run(program.name, func(t *testing.T) {
			native := program.runNative(t)
			far := program.run(t, func(dir string) job { return startFar(t, dir, program.argv(t)...) })
			far.log(t)
			program.expectRight(t, far, native)
		})
	}
}

// expectRight says that the program did the same, with its memory far.
func (p program) expectRight(t *testing.T, far, native programOutcome) {
	t.Helper()
	far.expectSame(t, native.outcome)
	if !bytes.Equal(far.artifact, native.artifact) {
		t.Errorf("%s differs from the one written without farpage", p.artifact)
	}
	far.expectSound(t)
	far.expectFar(t)
	if p.unbounded == "" {
		far.expectInBudget(t)
	}
}

type programOutcome struct {
	outcome
	artifact []byte
}

func (p program) runNative(t *testing.T) programOutcome {
	t.Helper()
	native := p.run(t, func(dir string) job { return startNative(t, dir, p.argv(t)...) })
	if native.status != 0 {
		t.Fatalf("exit status %d without farpage\n%s", native.status, native.stderr)
	}
	return native
}

// run runs the program in a folder of its own.
func (p program) run(t *testing.T, start func(dir string) job) programOutcome {
	t.Helper()
	dir := t.TempDir()
	if p.prepare != nil {
		p.prepare(t, dir)
	}
	result := programOutcome{outcome: start(dir).wait(5 * time.Minute)}
	if p.artifact != "" {
		var err error
		if result.artifact, err = os.ReadFile(filepath.Join(dir, p.artifact)); err != nil {
			t.Fatalf("%v\nstderr:\n%s", err, result.stderr)
		}
	}
	return result
}

// readFirst reads all of its memory before it writes it, three times the budget: what is
// mapped for a reader must not become the process's own unseen.
const readFirst = `
import ctypes, mmap, threading
size = 96 << 20
m = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
zeros = sum(m[i] for i in range(0, size, 4096))
at = ctypes.addressof(ctypes.c_char.from_buffer(m))
for value in 1, 2, 3:
    halves = [threading.Thread(target=ctypes.memset, args=(at + k * size // 2, value, size // 2)) for k in range(2)]
    [h.start() for h in halves]
    [h.join() for h in halves]
print(zeros, sum(m[i] for i in range(0, size, 4096)))
`

func TestMemoryThatIsReadFirstStaysInTheBudget(t *testing.T) {
	requireFarpage(t)
	far := startFar(t, t.TempDir(), requireProgram(t, "python3"), "-c", readFirst).wait(5 * time.Minute)
	far.log(t)
	if want := fmt.Sprintln(0, 3*24576); far.status != 0 || string(far.stdout) != want {
		t.Errorf("exit status %d, stdout %q, want %q\n%s", far.status, far.stdout, want, far.stderr)
	}
	far.expectInBudget(t)
	far.expectSound(t)
}

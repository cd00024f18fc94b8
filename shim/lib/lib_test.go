package lib_test

import (
	"bytes"
	"context"
	"debug/elf"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/farpage/farpage/internal/need"
	"github.com/farpage/farpage/shim/lib"
)

// maxBytes is how large the library may get: it is mapped into every program.
const maxBytes = 24 << 10

// dirField is where the folder's path stands: FP_DIR_MARK and 120 bytes in all
// (state.h).
const (
	dirMark  = "FARPAGE-DIR="
	dirField = 120
)

func library(t *testing.T, dir string) []byte {
	t.Helper()
	b, err := lib.Library(dir)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func parsed(t *testing.T) *elf.File {
	t.Helper()
	f, err := elf.NewFile(bytes.NewReader(library(t, "/dev/farpage")))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestLibraryNeedsNothingButThreeWeakSymbols(t *testing.T) {
	f := parsed(t)
	symbols, err := f.DynamicSymbols()
	if err != nil {
		t.Fatal(err)
	}
	var needed, offered []string
	for _, s := range symbols {
		if s.Section != elf.SHN_UNDEF {
			offered = append(offered, s.Name)
			continue
		}
		needed = append(needed, s.Name)
		if elf.ST_BIND(s.Info) != elf.STB_WEAK {
			t.Errorf("undefined symbol %s is %v: want weak, there are programs without it", s.Name, elf.ST_BIND(s.Info))
		}
	}
	slices.Sort(needed)
	slices.Sort(offered)
	if want := []string{"__errno_location", "__register_atfork", "pthread_atfork"}; !slices.Equal(needed, want) {
		t.Errorf("undefined symbols %q, want %q", needed, want)
	}
	// Everything that it offers shadows a symbol of some program.
	if want := []string{"mmap", "mmap64"}; !slices.Equal(offered, want) {
		t.Errorf("exported symbols %q, want %q", offered, want)
	}
	if libraries, err := f.ImportedLibraries(); err != nil || len(libraries) > 0 {
		t.Errorf("it needs the libraries %q (%v), want none: glibc's and musl's have different names", libraries, err)
	}
}

func TestLibraryHasNoMemoryThatCouldBeFar(t *testing.T) {
	const page = 4096
	stack := false
	for _, p := range parsed(t).Progs {
		switch p.Type {
		case elf.PT_TLS:
			t.Errorf("it has thread-local storage: %d bytes", p.Memsz)
		case elf.PT_GNU_STACK:
			stack = true
			if p.Flags&elf.PF_X != 0 {
				t.Error("it asks for an executable stack")
			}
		case elf.PT_LOAD:
			if file, all := (p.Vaddr+p.Filesz+page-1)&^(page-1), p.Vaddr+p.Memsz; all > file {
				t.Errorf("segment at %#x: %d bytes beyond the pages of the file: they are anonymous, and can be evicted", p.Vaddr, all-file)
			}
			if p.Flags&elf.PF_W != 0 && p.Flags&elf.PF_X != 0 {
				t.Errorf("segment at %#x is writable and executable", p.Vaddr)
			}
		}
	}
	if !stack {
		t.Error("it does not say that its stack is not executable: the kernel then takes it to be")
	}
	if n := len(library(t, "/dev/farpage")); n > maxBytes {
		t.Errorf("it has %d bytes, more than %d", n, maxBytes)
	}
}

func TestLibraryCarriesItsFoldersPath(t *testing.T) {
	plain := library(t, "/dev/farpage")
	for _, dir := range []string{"/x", "/run/farpage/c/0123456789abcdef", "/" + strings.Repeat("d", 99)} {
		got := library(t, dir)
		at := bytes.Index(got, []byte(dirMark))
		if at < 0 || bytes.Contains(got[at+1:], []byte(dirMark)) {
			t.Fatalf("%q: the mark is not there exactly once", dir)
		}
		field := got[at : at+dirField]
		if want := dirMark + dir + strings.Repeat("\x00", dirField-len(dirMark)-len(dir)); string(field) != want {
			t.Errorf("the field is %q, want %q", field, want)
		}
		if len(got) != len(plain) || !bytes.Equal(got[:at], plain[:at]) || !bytes.Equal(got[at+dirField:], plain[at+dirField:]) {
			t.Errorf("%q: something beside the field has changed", dir)
		}
	}
	one, other := library(t, "/one"), library(t, "/other")
	if !bytes.Contains(one, []byte(dirMark+"/one\x00")) || !bytes.Contains(other, []byte(dirMark+"/other\x00")) {
		t.Error("two folders share one library")
	}
}

func TestFolderThatIsTooLongForASocketIsRefused(t *testing.T) {
	dir := "/" + strings.Repeat("d", 100)
	_, err := lib.Library(dir)
	if err == nil {
		t.Fatal("it was taken")
	}
	for _, part := range []string{dir, "100", "--socket-dir"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("error %q does not name %q", err, part)
		}
	}
}

func run(t *testing.T, env []string, name string, args ...string) (stdout, stderr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	c := exec.CommandContext(ctx, name, args...)
	var out, err bytes.Buffer
	c.Stdout, c.Stderr, c.Env = &out, &err, env
	if e := c.Run(); e != nil {
		t.Fatalf("%s: %v\n%s", name, e, &err)
	}
	return out.String(), err.String()
}

func TestProgramRunsAsUsualWithTheLibraryWhereNobodyRings(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "libfarpage.so")
	if err := os.WriteFile(path, library(t, dir), 0o755); err != nil {
		t.Fatal(err)
	}
	env := []string{"LD_PRELOAD=" + path}
	if out, complaint := run(t, env, "/bin/true"); out+complaint != "" {
		t.Errorf("true printed %q and %q", out, complaint)
	}
	// It was there, and it has made no mapping of its own: no bell, no area.
	maps, complaint := run(t, env, "/bin/cat", "/proc/self/maps")
	if complaint != "" || !strings.Contains(maps, path) {
		t.Errorf("cat printed %q; the library is not among its mappings:\n%s", complaint, maps)
	}
	task, _ := run(t, env, "/bin/ls", "/proc/self/task")
	if n := len(strings.Fields(task)); n != 1 {
		t.Errorf("%d threads, want 1", n)
	}
}

func TestOneFileServesMuslToo(t *testing.T) {
	compiler := need.Program(t, "musl-gcc")
	dir := t.TempDir()
	path := filepath.Join(dir, "libfarpage.so")
	source, program := filepath.Join(dir, "maps.c"), filepath.Join(dir, "maps")
	const text = `#include <stdio.h>
int main(void)
{
	FILE *f = fopen("/proc/self/maps", "r");
	int c;
	while ((c = getc(f)) != EOF)
		putchar(c);
	return 0;
}
`
	if err := os.WriteFile(path, library(t, dir), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(source, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	run(t, os.Environ(), compiler, "-O1", "-o", program, source)
	maps, complaint := run(t, []string{"LD_PRELOAD=" + path}, program)
	if complaint != "" || !strings.Contains(maps, path) || !strings.Contains(maps, "musl") {
		t.Errorf("it printed %q; mappings:\n%s", complaint, maps)
	}
}

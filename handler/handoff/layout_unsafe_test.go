package handoff

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/farpage/farpage/internal/need"
)

const header = "../../shim/protocol.h"

// mirrors are the header's constants as this package has them.
var mirrors = map[string]uint64{
	"FP_PAGE": PageSize, "FP_MAGIC": Magic, "FP_VERSION": Version,
	"FP_HELLO": Hello, "FP_DEVICE": Device, "FP_UFFD": Uffd, "FP_CHANNEL": Channel,
	"FP_READY": Ready, "FP_ARMED": Armed, "FP_NOTICE": Notice,
	"FP_STAGING_PAGES": StagingPages, "FP_STACK_PAGES": StackPages, "FP_BATCH_PAGES": BatchPages,
	"FP_AREA_ANCHOR": AreaAnchor, "FP_AREA_STAGING": AreaStaging, "FP_AREA_DROP": AreaDrop,
	"FP_AREA_CHANNEL": AreaChannel, "FP_CHANNEL_BYTES": ChannelBytes, "FP_AREA_BYTES": AreaBytes,
	"FP_BELL_SILENT": BellSilent, "FP_BELL_RUNG": BellRung, "FP_BELL_RUNG_WAIT": BellRungWait,
	"FP_PENDING": Pending, "FP_DONE": Done, "FP_STALE": Stale, "FP_PARTIAL": Partial,
	"FP_RUNS_MAX": RunsMax, "FP_STOP": stopFlag,
}

// shimOnly are constants that the agent has no use for.
var shimOnly = []string{"FP_AREA_STATE", "FP_AREA_STACK"}

// elsewhere are constants that another package mirrors and tests.
var elsewhere = []string{"FP_PROBE"} // handler/engine

// field is where a field lies in its struct.
type field struct{ at, bytes uintptr }

// layouts are the structs that lie in memory which both sides map, and the
// message, whose fields Append and Parse know.
func layouts() map[string]map[string]field {
	var c channel
	var r run
	return map[string]map[string]field{
		"fp_channel": {
			"":              {0, unsafe.Sizeof(c)},
			"wake":          {unsafe.Offsetof(c.Wake), unsafe.Sizeof(c.Wake)},
			"command":       {unsafe.Offsetof(c.Command), unsafe.Sizeof(c.Command)},
			"done":          {unsafe.Offsetof(c.Done), unsafe.Sizeof(c.Done)},
			"epoch":         {unsafe.Offsetof(c.Epoch), unsafe.Sizeof(c.Epoch)},
			"in_ioctl":      {unsafe.Offsetof(c.InIoctl), unsafe.Sizeof(c.InIoctl)},
			"want":          {unsafe.Offsetof(c.Want), unsafe.Sizeof(c.Want)},
			"command_epoch": {unsafe.Offsetof(c.CommandEpoch), unsafe.Sizeof(c.CommandEpoch)},
			"run_count":     {unsafe.Offsetof(c.RunCount), unsafe.Sizeof(c.RunCount)},
			"unsettled":     {unsafe.Offsetof(c.Unsettled), unsafe.Sizeof(c.Unsettled)},
			"stop":          {unsafe.Offsetof(c.Stop), unsafe.Sizeof(c.Stop)},
			"runs":          {unsafe.Offsetof(c.Runs), unsafe.Sizeof(c.Runs)},
		},
		"fp_run": {
			"":       {0, unsafe.Sizeof(r)},
			"addr":   {unsafe.Offsetof(r.Addr), unsafe.Sizeof(r.Addr)},
			"pages":  {unsafe.Offsetof(r.Pages), unsafe.Sizeof(r.Pages)},
			"first":  {unsafe.Offsetof(r.First), unsafe.Sizeof(r.First)},
			"result": {unsafe.Offsetof(r.Result), unsafe.Sizeof(r.Result)},
			"moved":  {unsafe.Offsetof(r.Moved), unsafe.Sizeof(r.Moved)},
			"error":  {unsafe.Offsetof(r.Error), unsafe.Sizeof(r.Error)},
		},
		"fp_message": {
			"":      {0, MessageSize},
			"magic": {0, 4}, "version": {4, 2}, "type": {6, 2}, "nonce": {8, 8}, "area": {16, 8},
			"tid": {24, 4}, "error": {28, 4}, "mode": {32, 8},
		},
	}
}

// constantsOf finds the names that the header defines.
func constantsOf(text string) []string {
	var names []string
	for _, m := range regexp.MustCompile(`(?m)^#define (FP_\w+) `).FindAllStringSubmatch(text, -1) {
		names = append(names, m[1])
	}
	for _, m := range regexp.MustCompile(`(?m)^\t(FP_\w+) = \d+,`).FindAllStringSubmatch(text, -1) {
		names = append(names, m[1])
	}
	return slices.DeleteFunc(names, func(n string) bool { return n == "FP_ASSERT" })
}

// fieldsOf finds the fields of a struct of the header; reserved ones have none here.
func fieldsOf(text, name string) []string {
	_, body, _ := strings.Cut(text, "struct "+name+" {")
	body, _, _ = strings.Cut(body, "\n};")
	var names []string
	for _, m := range regexp.MustCompile(`(?m)^\t(?:u?int\d+_t|struct \w+) (\w+)`).FindAllStringSubmatch(body, -1) {
		if m[1] != "spare" {
			names = append(names, m[1])
		}
	}
	return names
}

// askC compiles the header and runs statements that print "name value" lines.
func askC(t *testing.T, statements string) string {
	t.Helper()
	compiler := need.Program(t, "gcc")
	path, err := filepath.Abs(header)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	source, program := filepath.Join(dir, "ask.c"), filepath.Join(dir, "ask")
	text := fmt.Sprintf("#include <stdio.h>\n#include %q\nint main(void)\n{\n%s\treturn 0;\n}\n", path, statements)
	if err := os.WriteFile(source, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if out, err := exec.CommandContext(ctx, compiler, "-Wall", "-Werror", "-o", program, source).CombinedOutput(); err != nil {
		t.Fatalf("gcc: %v\n%s", err, out)
	}
	out, err := exec.CommandContext(ctx, program).Output()
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

func headerText(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile(header)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestShimAndAgentHaveTheSameConstants(t *testing.T) {
	names := constantsOf(headerText(t))
	known := slices.Concat(slices.Collect(maps.Keys(mirrors)), shimOnly, elsewhere)
	for _, n := range names {
		if !slices.Contains(known, n) {
			t.Errorf("%s is in the header and nowhere here", n)
		}
	}
	var statements strings.Builder
	for n := range mirrors {
		if !slices.Contains(names, n) {
			t.Errorf("%s is here and not in the header", n)
			continue
		}
		fmt.Fprintf(&statements, "\tprintf(\"%s %%llu\\n\", (unsigned long long)%s);\n", n, n)
	}
	lines := 0
	for line := range strings.Lines(askC(t, statements.String())) {
		name, text, _ := strings.Cut(strings.TrimSpace(line), " ")
		value, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		if value != mirrors[name] {
			t.Errorf("%s is %#x in C and %#x in Go", name, value, mirrors[name])
		}
		lines++
	}
	if lines == 0 || lines > len(mirrors) {
		t.Errorf("C told %d constants", lines)
	}
}

func TestShimAndAgentLayOutTheirStructsAlike(t *testing.T) {
	text := headerText(t)
	var statements strings.Builder
	for name, fields := range layouts() {
		for _, f := range fieldsOf(text, name) {
			if _, ok := fields[f]; !ok {
				t.Errorf("field %s of %s is in the header and nowhere here", f, name)
			}
		}
		for f := range fields {
			if f == "" {
				fmt.Fprintf(&statements, "\tprintf(\"%s  0 %%zu\\n\", sizeof(struct %s));\n", name, name)
				continue
			}
			fmt.Fprintf(&statements, "\tprintf(\"%[1]s %[2]s %%zu %%zu\\n\", offsetof(struct %[1]s, %[2]s), sizeof(((struct %[1]s *)0)->%[2]s));\n", name, f)
		}
	}
	told := 0
	for line := range strings.Lines(askC(t, statements.String())) {
		part := strings.Split(strings.TrimSpace(line), " ")
		at, err := strconv.ParseUint(part[2], 10, 64)
		size, serr := strconv.ParseUint(part[3], 10, 64)
		if err != nil || serr != nil {
			t.Fatalf("%q: %v %v", line, err, serr)
		}
		if want := layouts()[part[0]][part[1]]; want != (field{uintptr(at), uintptr(size)}) {
			t.Errorf("%s.%s: at %d with %d bytes in C, at %d with %d in Go", part[0], part[1], at, size, want.at, want.bytes)
		}
		told++
	}
	if told < 20 {
		t.Errorf("C told %d fields", told)
	}
}

func TestMessageHasTheBytesThatTheShimSends(t *testing.T) {
	m := Message{Type: Hello, Nonce: 0x0102030405060708, Area: 0x7f0011223000, Tid: 0xa1a2a3a4, Error: -17, Mode: 0x3132333435363738}
	statements := fmt.Sprintf("\tstruct fp_message m = {.magic = FP_MAGIC, .version = FP_VERSION, .type = FP_HELLO, .nonce = %#xu,"+
		" .area = %#xu, .tid = %#xu, .error = %d, .mode = %#xu};\n", m.Nonce, m.Area, m.Tid, m.Error, m.Mode) +
		"\tfor (size_t i = 0; i < sizeof m; i++)\n\t\tprintf(\"%02x\", ((unsigned char *)&m)[i]);\n"
	want, err := hex.DecodeString(askC(t, statements))
	if err != nil {
		t.Fatal(err)
	}
	if got := m.Append(nil); !bytes.Equal(got, want) {
		t.Errorf("Append gives\n%x, C has\n%x", got, want)
	}
	if got, err := Parse(want); err != nil || got != m {
		t.Errorf("Parse gives %+v, %v: want %+v", got, err, m)
	}
}

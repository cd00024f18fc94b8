package e2e

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"
)

func seeded(name string) *rand.Rand {
	var seed [32]byte
	copy(seed[:], name)
	return rand.New(rand.NewChaCha8(seed))
}

func writeFile(t *testing.T, path string, write func(*bufio.Writer)) {
	t.Helper()
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	buffered := bufio.NewWriter(file)
	write(buffered)
	if err := buffered.Flush(); err != nil {
		t.Fatal(err)
	}
}

// writeLargeC writes functions that call each other and give an optimiser much to
// keep in mind: cc1 -O2 needs about 100 MiB for 500 of them.
func writeLargeC(t *testing.T, path string, functions int) {
	t.Helper()
	random := seeded("large.c")
	writeFile(t, path, func(w *bufio.Writer) {
		fmt.Fprintf(w, "typedef unsigned long word;\n")
		for f := range functions {
			fmt.Fprintf(w, "static const word keys%d[8] = {", f)
			for range 8 {
				fmt.Fprintf(w, " %dUL,", random.Uint64())
			}
			fmt.Fprintf(w, " };\nword round%d(word *at, unsigned int count, word key)\n{\n", f)
			fmt.Fprintf(w, "\tfor (unsigned int n = 0; n < count; n++) {\n")
			fmt.Fprintf(w, "\t\tkey ^= at[n] * %dUL + keys%d[key >> %d & 7];\n", random.Uint32(), f, random.IntN(60))
			fmt.Fprintf(w, "\t\tif (key %% %d > %d)\n\t\t\tat[n] = key - n;\n\t}\n", 3+random.IntN(90), random.IntN(60))
			fmt.Fprintf(w, "\tswitch (key %% 11) {\n")
			for c := range 6 {
				if f == 0 {
					break
				}
				fmt.Fprintf(w, "\tcase %d:\n\t\tkey += round%d(at, count / %d, key);\n\t\tbreak;\n", c, max(0, f-1-random.IntN(12)), 2+c)
			}
			fmt.Fprintf(w, "\t}\n\treturn key << %d;\n}\n", random.IntN(8))
		}
	})
}

// writeMixedData writes blocks of 256 KiB that cannot be compressed among ones that can.
func writeMixedData(t *testing.T, path string, blocks int) {
	t.Helper()
	const blockBytes = 256 << 10
	random := seeded("data")
	writeFile(t, path, func(w *bufio.Writer) {
		for block := range blocks {
			for written := 0; written < blockBytes; written += 8 {
				value := random.Uint64()
				if block%2 == 0 {
					value = uint64(block)<<32 | uint64(written/64)
				}
				for shift := 0; shift < 64; shift += 8 {
					w.WriteByte(byte(value >> shift)) // bufio keeps the error for Flush
				}
			}
		}
	})
}

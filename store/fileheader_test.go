package store_test

import (
	"bytes"
	"testing"

	"github.com/farpage/farpage/store"
)

func FuzzFileHeader(f *testing.F) {
	whole := store.FileHeader(7, 1, 2, false, false)
	f.Add(whole)
	f.Add(whole[:100])
	f.Add(make([]byte, store.PageSize))
	f.Fuzz(func(t *testing.T, page []byte) {
		again, err := store.ReencodeHeader(page)
		if err == nil && !bytes.Equal(again[:72], page[:72]) {
			t.Errorf("%x becomes %x", page[:72], again[:72])
		}
	})
}

func FuzzStat(f *testing.F) {
	f.Add([]byte("1 (a) b) c) R 0 1 1 0 -1 4194560 1 1 1 1 1 1 1 1 20 0 1 0 77 1 1 1"))
	f.Fuzz(func(_ *testing.T, text []byte) { _, _, _ = store.ParseStat(text) })
}

func TestAProcessHasEndedWhenItsLastThreadHas(t *testing.T) {
	for text, want := range map[string]struct {
		start uint64
		ended bool
	}{
		"9 (x) R 0 1 1 0 -1 0 1 1 1 1 1 1 1 1 20 0 5 0 77 1":   {77, false},
		"9 (x) Z 0 1 1 0 -1 0 1 1 1 1 1 1 1 1 20 0 5 0 77 1":   {77, false}, // a thread still writes
		"9 (x) Z 0 1 1 0 -1 0 1 1 1 1 1 1 1 1 20 0 1 0 77 1":   {77, true},
		"9 () Z () S 0 1 1 0 -1 0 1 1 1 1 1 1 1 1 20 0 1 0 77": {77, false},
	} {
		start, ended, err := store.ParseStat([]byte(text))
		if err != nil || start != want.start || ended != want.ended {
			t.Errorf("%s: %d, %v, %v", text, start, ended, err)
		}
	}
	for _, text := range []string{"", "9 (x) R 1", "9 (x) R 0 1 1 0 -1 0 1 1 1 1 1 1 1 1 20 0 5 0 never"} {
		if _, _, err := store.ParseStat([]byte(text)); err == nil {
			t.Errorf("%q is taken", text)
		}
	}
}

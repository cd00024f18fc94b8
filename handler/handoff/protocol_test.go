package handoff

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strings"
	"testing"
)

// changed is a good HELLO with one thing wrong.
func changed(change func(b []byte) []byte) []byte {
	return change(Message{Type: Hello, Area: 1 << 40}.Append(nil))
}

func TestWhatIsNoMessageIsRefusedWithTheReason(t *testing.T) {
	area := func(a uint64) []byte {
		return changed(func(b []byte) []byte { binary.LittleEndian.PutUint64(b[16:], a); return b })
	}
	for _, c := range []struct {
		name  string
		bytes []byte
		says  string
	}{
		{"nothing", nil, "0 bytes"},
		{"a byte short", changed(func(b []byte) []byte { return b[:39] }), "39 bytes"},
		{"a byte long", changed(func(b []byte) []byte { return append(b, 0) }), "41 bytes"},
		{"another magic", changed(func(b []byte) []byte { b[0]++; return b }), "magic 0x46504732"},
		{"another version", changed(func(b []byte) []byte { b[4]++; return b }), "version 2"},
		{"type 0", changed(func(b []byte) []byte { b[6] = 0; return b }), "type 0"},
		{"a type that there is not", changed(func(b []byte) []byte { b[6] = 8; return b }), "type 8"},
		{"a large type", changed(func(b []byte) []byte { b[7] = 1; return b }), "type 257"},
		{"no area", area(0), "area 0x0"},
		{"an area inside a page", area(1<<40 + 8), "area 0x10000000008"},
		{"an area at the bottom", area(0xf000), "area 0xf000"},
		{"an area that ends beyond user memory", area(1<<47 - AreaBytes + PageSize), "area"},
		{"an area in the kernel", area(0xffff800000000000), "area"},
	} {
		_, err := Parse(c.bytes)
		if !errors.Is(err, ErrMessage) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want %q", c.name, err, c.says)
		}
	}
	for _, a := range []uint64{1 << 16, 1<<47 - AreaBytes} {
		if _, err := Parse(area(a)); err != nil {
			t.Errorf("area %#x: %v", a, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(Message{Type: Hello, Nonce: 1, Area: 1 << 40, Tid: 7}.Append(nil))
	f.Add(Message{Type: Ready, Error: -12}.Append(nil))
	f.Add(Message{Type: Channel, Mode: 3}.Append(nil))
	f.Add([]byte("GPF"))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := Parse(b)
		if err != nil {
			if m != (Message{}) || !errors.Is(err, ErrMessage) {
				t.Errorf("refused with %+v, %v", m, err)
			}
			return
		}
		if again := m.Append(nil); !bytes.Equal(again, b) {
			t.Errorf("%x was taken and comes back as %x", b, again)
		}
	})
}

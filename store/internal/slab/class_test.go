package slab

import "testing"

func TestEachLengthGetsTheSmallestClassThatHoldsIt(t *testing.T) {
	for length := 0; length <= PageBytes; length++ {
		class := classOf[(length+Grain-1)/Grain]
		if classBytes[class] < int64(length) {
			t.Fatalf("%d bytes in a class of %d", length, classBytes[class])
		}
		if class > 0 && classBytes[class-1] >= int64(length) {
			t.Fatalf("%d bytes would fit into class %d, not only %d", length, class-1, class)
		}
	}
}

func TestClassesGrowAndWasteLittleOfASlab(t *testing.T) {
	for c, slots := range slotsPerSlab {
		if c > 0 && classBytes[c] <= classBytes[c-1] {
			t.Errorf("class %d: %d bytes after %d", c, classBytes[c], classBytes[c-1])
		}
		if classBytes[c]%Grain != 0 {
			t.Errorf("class %d: %d bytes are no multiple of %d", c, classBytes[c], Grain)
		}
		if used := classBytes[c] * int64(slots); used > Bytes || used < Bytes*96/100 {
			t.Errorf("class %d uses %d of %d bytes", c, used, Bytes)
		}
	}
	if last := classBytes[Classes-1]; last != PageBytes {
		t.Errorf("the last class has %d bytes", last)
	}
}

func TestFitsRefusesWhatCannotBeAnObject(t *testing.T) {
	const arena = 3 * Bytes
	page, small := uint8(Classes-1), uint8(0)
	for _, c := range []struct {
		name   string
		ref    Ref
		length int
		want   bool
	}{
		{"first page", Ref{page, 0}, PageBytes, true},
		{"last page", Ref{page, arena - PageBytes}, PageBytes, true},
		{"behind the end", Ref{page, arena}, PageBytes, false},
		{"far behind the end", Ref{page, 1 << 47}, PageBytes, false},
		{"negative", Ref{page, -PageBytes}, PageBytes, false},
		{"between objects", Ref{page, 16}, PageBytes, false},
		{"between small objects", Ref{small, 48}, 1, false},
		{"longer than its class", Ref{small, 64}, 65, false},
		{"no such class", Ref{uint8(Classes), 0}, 1, false},
		{"across a slab's end", Ref{Class: 2, Offset: Bytes - classBytes[2]}, 1, false},
	} {
		if got := c.ref.Fits(c.length, arena); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}

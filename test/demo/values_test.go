package main

import (
	"bytes"
	"compress/flate"
	"testing"
)

func TestDatasetHasTheSizeAskedFor(t *testing.T) {
	d := newDataset(8 * mib)
	sum := 0
	for i := range d.len() {
		size := len(d.value(i, 0))
		if i < d.len()-1 && (size < 1<<10 || size > 16<<10) {
			t.Errorf("value %d has %d bytes", i, size)
		}
		sum += size
	}
	if sum != 8*mib || d.len() <= hotValues/2 {
		t.Errorf("%d values of %d bytes", d.len(), sum)
	}
}

func TestValuesComeOutTheSameAgain(t *testing.T) {
	a, b := newDataset(mib), newDataset(mib)
	for i := range a.len() {
		if !bytes.Equal(a.value(i, 3), b.value(i, 3)) {
			t.Errorf("value %d differs", i)
		}
		if bytes.Equal(a.value(i, 3), a.value(i, 4)) {
			t.Errorf("value %d is the same in two versions", i)
		}
	}
}

func TestHalfOfTheValuesCompress(t *testing.T) {
	d := newDataset(mib)
	for i := range 20 {
		value := d.value(i, 0)
		var out bytes.Buffer
		w, _ := flate.NewWriter(&out, flate.BestSpeed)
		_, _ = w.Write(value)
		_ = w.Close()
		if small := out.Len() < len(value)/2; small != (i%2 == 1) {
			t.Errorf("value %d: %d bytes became %d", i, len(value), out.Len())
		}
	}
}

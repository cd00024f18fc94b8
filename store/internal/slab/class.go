package slab

// PageBytes is the unit in which memory is touched and given back, and the
// largest object.
const PageBytes = 4096

// Bytes is the length of a slab. Slabs lie at multiples of it.
const Bytes = pagesPerSlab * PageBytes

// Grain divides the offset and the length of every object, in bytes.
const Grain = 16

const (
	pagesPerSlab = 16
	// maxSlots is how many objects of the smallest class a slab holds.
	maxSlots = 1024
)

// slotsPerSlab are the size classes, smallest object first, by how many objects
// share a slab. Steps of 5 to 10 % among the large ones: what compresses to
// more than half a page is common, and there a step costs the most bytes.
var slotsPerSlab = [...]int{
	maxSlots, 512, 341, 256, 204, 170, 144, 128, 104, 92, 80, 72, 64, 56, 52,
	48, 44, 40, 37, 34, 32, 30, 28, 26, 24, 22, 21, 20, 19, 18, pagesPerSlab,
}

// Classes is the number of size classes; the last one is whole pages.
const Classes = len(slotsPerSlab)

// classBytes is the length of an object of each class.
var classBytes = func() (bytes [Classes]int64) {
	for c, slots := range slotsPerSlab {
		bytes[c] = Bytes / int64(slots) / Grain * Grain
	}
	return bytes
}()

// classOf maps a length, in grains rounded up, to the smallest class that holds it.
var classOf = func() (classes [PageBytes/Grain + 1]uint8) {
	c := uint8(0)
	for grains := range classes {
		for classBytes[c] < int64(grains)*Grain {
			c++
		}
		classes[grains] = c
	}
	return classes
}()

// LargestBelowPage is the length in bytes of the largest class that saves
// something over a whole page.
func LargestBelowPage() int { return int(classBytes[Classes-2]) }

// Ref names one object: its class and its offset in the arena, in bytes.
type Ref struct {
	Class  uint8
	Offset int64
}

// Fits says whether r can name an object of an arena of arenaBytes that holds
// lengthBytes. It looks at the numbers only, so anything may be asked.
func (r Ref) Fits(lengthBytes int, arenaBytes int64) bool {
	if int(r.Class) >= Classes || r.Offset < 0 || lengthBytes < 0 {
		return false
	}
	length := classBytes[r.Class]
	return int64(lengthBytes) <= length &&
		r.Offset <= arenaBytes-length &&
		r.Offset%Bytes%length == 0 &&
		r.Offset%Bytes+length <= Bytes
}

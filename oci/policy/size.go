package policy

import (
	"fmt"
	"math"
	"strconv"
)

// SizeForms says in an error message which sizes are allowed.
const SizeForms = "a whole number of bytes, or one with K, M, G, T (powers of 1000) or Ki, Mi, Gi, Ti (powers of 1024), such as 256Mi"

// ShareForm goes on where a share of the memory limit is allowed too.
const ShareForm = ", or a share of the memory limit such as 50%"

// sizeUnits are the suffixes of a Kubernetes quantity that make sense for memory
// (k8s.io/apimachinery, pkg/api/resource/suffix.go). Kubernetes writes kilo with a
// lower-case k only; K is what everybody else writes. There is no m: it is milli there.
var sizeUnits = map[string]int64{
	"":   1,
	"k":  1e3,
	"K":  1e3,
	"M":  1e6,
	"G":  1e9,
	"T":  1e12,
	"Ki": 1 << 10,
	"Mi": 1 << 20,
	"Gi": 1 << 30,
	"Ti": 1 << 40,
}

// ParseSize reads a size such as 256Mi, 1G or 4096 and returns it in bytes. It takes
// neither signs nor fractions nor spaces. The error names the text and what is allowed.
func ParseSize(text string) (int64, error) {
	bytes, problem := readSize(text)
	if problem != "" {
		return 0, fmt.Errorf("%s: %s; allowed: %s", shown(text), problem, SizeForms)
	}
	return bytes, nil
}

// readSize is ParseSize with only what is wrong, empty when nothing is.
func readSize(text string) (bytes int64, problem string) {
	digits := leadingDigits(text)
	unit, known := sizeUnits[text[len(digits):]]
	if digits == "" || !known {
		return 0, "not a size"
	}
	number, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || number > math.MaxInt64/unit {
		return 0, tooLarge
	}
	return number * unit, ""
}

// tooLarge is what is wrong with a size that no int64 holds.
var tooLarge = fmt.Sprintf("more than %d bytes", int64(math.MaxInt64))

// leadingDigits returns the decimal digits that text begins with.
func leadingDigits(text string) string {
	for i := range len(text) {
		if text[i] < '0' || text[i] > '9' {
			return text[:i]
		}
	}
	return text
}

// percentOf returns percent % of bytes, rounded down, and whether it fits an int64.
// Neither may be negative.
func percentOf(bytes, percent int64) (int64, bool) {
	whole, rest := bytes/100, bytes%100
	if percent != 0 && (whole > math.MaxInt64/percent || rest > math.MaxInt64/percent) {
		return 0, false
	}
	whole *= percent
	rest = rest * percent / 100
	if whole > math.MaxInt64-rest {
		return 0, false
	}
	return whole + rest, true
}

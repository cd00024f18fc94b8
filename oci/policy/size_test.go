package policy

import (
	"math/big"
	"strings"
	"testing"
)

func TestSizesAreRead(t *testing.T) {
	for text, want := range map[string]int64{
		"0": 0, "1": 1, "007": 7, "4096": 4096, "1k": 1000, "1K": 1000, "2M": 2e6, "3G": 3e9, "4T": 4e12,
		"1Ki": ki, "256Mi": 256 * mi, "5Gi": 5 * gi, "6Ti": 6 << 40, "9223372036854775807": 1<<63 - 1, "8388607Ti": 8388607 << 40,
	} {
		if got, err := ParseSize(text); err != nil || got != want {
			t.Errorf("%s: %d, %v", text, got, err)
		}
	}
}

func TestWhatIsNoSizeIsRefusedWithWhatIsAllowed(t *testing.T) {
	for text, want := range map[string]string{
		"":                    `"": not a size; allowed: ` + SizeForms,
		"Mi":                  `"Mi": not a size; allowed: ` + SizeForms,
		"1mi":                 `"1mi": not a size; allowed: ` + SizeForms,
		"1ki":                 `"1ki": not a size; allowed: ` + SizeForms,
		"1MiB":                `"1MiB": not a size; allowed: ` + SizeForms,
		"1 Mi":                `"1 Mi": not a size; allowed: ` + SizeForms,
		"+1":                  `"+1": not a size; allowed: ` + SizeForms,
		"0x10":                `"0x10": not a size; allowed: ` + SizeForms,
		"1_000":               `"1_000": not a size; allowed: ` + SizeForms,
		"1e6":                 `"1e6": not a size; allowed: ` + SizeForms,
		"50%":                 `"50%": not a size; allowed: ` + SizeForms,
		"9223372036854775808": `"9223372036854775808": more than 9223372036854775807 bytes; allowed: ` + SizeForms,
		"9007199254740992Ki":  `"9007199254740992Ki": more than 9223372036854775807 bytes; allowed: ` + SizeForms,
	} {
		if _, err := ParseSize(text); err == nil || err.Error() != want {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func FuzzParseSize(f *testing.F) {
	for _, text := range []string{"256Mi", "1k", "9223372036854775807", "99999999999999999999T", "", "-1", "1\x00"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		bytes, err := ParseSize(text)
		if err != nil {
			return
		}
		digits := strings.TrimRight(text, "kKMGTi")
		want, ok := new(big.Int).SetString(digits, 10)
		if !ok || bytes < 0 {
			t.Fatalf("%q is %d", text, bytes)
		}
		want.Mul(want, big.NewInt(sizeUnits[text[len(digits):]]))
		if want.Cmp(big.NewInt(bytes)) != 0 {
			t.Fatalf("%q is %d, not %d", text, bytes, want)
		}
	})
}

// FuzzPercentOf compares with arithmetic that cannot overflow.
func FuzzPercentOf(f *testing.F) {
	f.Add(int64(1<<30), int64(90))
	f.Add(int64(1<<62), int64(199))
	f.Add(int64(99), int64(1<<62))
	f.Fuzz(func(t *testing.T, bytes, percent int64) {
		if bytes < 0 || percent < 0 {
			return
		}
		want := new(big.Int).Mul(big.NewInt(bytes), big.NewInt(percent))
		want.Div(want, big.NewInt(100))
		got, fits := percentOf(bytes, percent)
		if fits && want.Cmp(big.NewInt(got)) != 0 {
			t.Fatalf("%d %% of %d is %d, not %d", percent, bytes, got, want)
		}
		if !fits && want.IsInt64() && percent < 1<<32 {
			t.Fatalf("%d %% of %d is %d, and was refused", percent, bytes, want)
		}
	})
}

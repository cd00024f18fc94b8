package store_test

import (
	"math"
	"strings"
	"testing"

	"github.com/farpage/farpage/store"
)

const sizes = "allowed: a whole number of bytes, or one with K, M, G, T (powers of 1000) or Ki, Mi, Gi, Ti (powers of 1024), such as 16Gi"

func TestFileURLsAreRead(t *testing.T) {
	for url, want := range map[string]struct {
		path      string
		maxBlocks int64
	}{
		"file:///a":                         {"/a", 0},
		"file:///a/b?":                      {"/a/b", 0},
		"file:///a//b/../c":                 {"/a/c", 0},
		"file:///a%20b%23%3f?max=4096":      {"/a b#?", 1},
		"file:///a?max=16Gi":                {"/a", 16 << 18},
		"file:///a?max=8191":                {"/a", 1},
		"file:///a?max=1T":                  {"/a", 1e12 / 4096},
		"file:///a?max=9223372036854775807": {"/a", math.MaxInt64 / 4096},
	} {
		path, maxBlocks, err := store.FileURL(url)
		if err != nil || path != want.path || maxBlocks != want.maxBlocks {
			t.Errorf("%s: %q, %d, %v", url, path, maxBlocks, err)
		}
	}
}

func TestWrongFileURLsSayWhatIsAllowed(t *testing.T) {
	const form = "; write file:///path or file:///path?max=SIZE"
	for url, want := range map[string]string{
		"file:":                   `no path` + form,
		"file://":                 `no path` + form,
		"file:slots":              `the path "slots" is relative` + form,
		"file:./slots":            `the path "./slots" is relative` + form,
		"file:/slots":             `no path` + form,
		"file://var/slots":        `"var" stands where a host would: a path begins with a third slash` + form,
		"file:///var/":            `/var/ names a folder: give the path of a file, such as file:///var/slots`,
		"file:///":                `/ names a folder: give the path of a file, such as file:///slots`,
		"file:///a%00b":           `the path contains a zero byte`,
		"file:///a#b":             `# begins a fragment, which a store has not: write %23 for a # in the path`,
		"file:///a%zz":            `invalid URL escape "%zz"` + form,
		"file:///a?size=1G":       `unknown key "size"; allowed is max`,
		"file:///a?max=1G&max=2G": `max is given 2 times`,
		"file:///a?max":           `max=: not a size; ` + sizes,
		"file:///a?max=-1":        `max=-1: not a size; ` + sizes,
		"file:///a?max=1.5G":      `max=1.5G: not a size; ` + sizes,
		"file:///a?max=10%25":     `max=10%: not a size; ` + sizes,
		"file:///a?max=4095":      `max=4095: less than a page of 4096 bytes; ` + sizes,
		"file:///a?max=9999999Ti": `max=9999999Ti: more than 9223372036854775807 bytes; ` + sizes,
		"file:///a?max=1;b":       `invalid semicolon separator in query` + form,
	} {
		st, err := store.OpenURL(url)
		if err == nil || st != nil {
			t.Errorf("%s: it was opened", url)
			continue
		}
		if full := `store "` + url + `": ` + want; err.Error() != full {
			t.Errorf("%s\n says  %s\n want  %s", url, err, full)
		}
	}
}

func FuzzFileURL(f *testing.F) {
	f.Add("file:///var/lib/farpage/slots?max=16Gi")
	f.Add("file:///max=")
	f.Add("file://a@b:1/%2f?max=1&max=")
	f.Fuzz(func(t *testing.T, url string) {
		path, maxBlocks, err := store.FileURL(url)
		switch {
		case err != nil:
		case !strings.HasPrefix(path, "/") || strings.HasSuffix(path, "/") || strings.ContainsRune(path, 0):
			t.Errorf("%q has the path %q", url, path)
		case maxBlocks < 0 || maxBlocks == 0 && strings.Contains(url, "?max="):
			t.Errorf("%q has room for %d blocks", url, maxBlocks)
		}
	})
}

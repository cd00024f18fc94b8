package hook

import (
	"bytes"
	"strings"
	"testing"
)

func TestThePreloadFileKeepsWhatTheImageLoads(t *testing.T) {
	const ours = "/dev/farpage/libfarpage.so"
	cases := map[string]struct {
		image, want string
		added       bool
	}{
		"no content":               {"", ours + "\n", true},
		"one library":              {"/usr/lib/libeatmydata.so\n", "/usr/lib/libeatmydata.so\n" + ours + "\n", true},
		"no line end":              {"/a.so /b.so", "/a.so /b.so\n" + ours + "\n", true},
		"only a comment names it":  {"# " + ours + "\n", "# " + ours + "\n" + ours + "\n", true},
		"another folder's library": {"/opt" + ours + "\n", "/opt" + ours + "\n" + ours + "\n", true},
		"ours alone":               {ours, ours, false},
		"ours between colons":      {"/a.so:" + ours + ":/b.so\n", "/a.so:" + ours + ":/b.so\n", false},
		"ours before a comment":    {ours + "# far memory\n", ours + "# far memory\n", false},
	}
	for name, c := range cases {
		if got, added := mergePreload([]byte(c.image)); string(got) != c.want || added != c.added {
			t.Errorf("%s: %q, %v", name, got, added)
		}
	}
}

func FuzzMergedPreloadLoadsTheSameAndOurs(f *testing.F) {
	for _, image := range []string{"", "/a.so", "/a.so:/b.so # c\n/d.so\n", "#", "/dev/farpage/libfarpage.so#"} {
		f.Add([]byte(image))
	}
	f.Fuzz(func(t *testing.T, image []byte) {
		before := preloads(image)
		merged, added := mergePreload(image)
		after := preloads(merged)
		if !bytes.HasPrefix(merged, image) {
			t.Fatalf("%q became %q", image, merged)
		}
		if added {
			before = append(before, libraryPath)
		}
		if strings.Join(before, " ") != strings.Join(after, " ") {
			t.Fatalf("%q loads %q, %q loads %q", image, before, merged, after)
		}
		if again, added := mergePreload(merged); added || !bytes.Equal(again, merged) {
			t.Fatalf("merging twice gives %q", again)
		}
	})
}

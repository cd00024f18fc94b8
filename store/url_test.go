package store_test

import (
	"strings"
	"testing"

	"github.com/farpage/farpage/store"
)

func TestOpenURLOpensMem(t *testing.T) {
	st, err := store.OpenURL("mem:")
	if err != nil {
		t.Fatal(err)
	}
	if st.String() != "mem:" {
		t.Errorf("its name is %q", st)
	}
	if err := st.Close(); err != nil {
		t.Error(err)
	}
}

func TestOpenURLSaysWhatIsAllowed(t *testing.T) {
	for url, want := range map[string][]string{
		"":             {`""`, "no scheme", "mem:", "file:///path"},
		"mem":          {`"mem"`, "no scheme", "mem:", "file:///path"},
		"redis://host": {`"redis"`, "unknown scheme", "mem:", "file:///path"},
		"MEM:":         {`"MEM"`, "unknown scheme", "mem:", "file:///path"},
		"mem:4G":       {`"mem:4G"`, "nothing behind the colon"},
	} {
		st, err := store.OpenURL(url)
		if err == nil || st != nil {
			t.Errorf("%q: %v, %v", url, st, err)
			continue
		}
		for _, part := range want {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("%q: error %q does not say %s", url, err, part)
			}
		}
	}
}

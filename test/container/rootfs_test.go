package container

import (
	"os"
	"path/filepath"
	"reflect"
	"testing"
)

func TestParseListReadsBothLoaders(t *testing.T) {
	for _, c := range []struct {
		name, text string
		want       []string
		ok         bool
	}{
		{
			"glibc", "\tlinux-vdso.so.1 (0x7ffc)\n\tlibc.so.6 => /lib/libc.so.6 (0x7f1)\n\t/lib64/ld-linux-x86-64.so.2 (0x7f2)\n",
			[]string{"/lib/libc.so.6", "/lib64/ld-linux-x86-64.so.2"},
			true,
		},
		{
			"musl", "\t/lib/ld-musl-x86_64.so.1 (0x7f1)\n\tlibc.so => /lib/ld-musl-x86_64.so.1 (0x7f1)\n",
			[]string{"/lib/ld-musl-x86_64.so.1", "/lib/ld-musl-x86_64.so.1"},
			true,
		},
		{"static", "\tstatically linked\n", nil, true},
		{"missing", "\tlibx.so.1 => not found\n", nil, false},
	} {
		got, err := parseList([]byte(c.text))
		if !reflect.DeepEqual(got, c.want) || (err == nil) != c.ok {
			t.Errorf("%s: %v, %v", c.name, got, err)
		}
	}
}

func TestScriptsNeedNoLibraries(t *testing.T) {
	for name, text := range map[string]string{"script": "#!/bin/sh\nexit 0\n", "empty": ""} {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
		if libs, err := libraries(path); err != nil || libs != nil {
			t.Errorf("%s: %v, %v", name, libs, err)
		}
	}
}

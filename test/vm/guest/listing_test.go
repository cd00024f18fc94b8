package main

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/farpage/farpage/test/vm/steps"
)

func TestEveryStepHasItsName(t *testing.T) {
	if done := len(beforeReboot) + 1 + len(afterReboot); done != len(steps.Names) {
		t.Errorf("%d steps are done, %d have names", done, len(steps.Names))
	}
}

func TestListingFindsWhatIsAnother(t *testing.T) {
	root := t.TempDir()
	path := func(name string) string { return filepath.Join(root, name) }
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(path(name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"same", "content", "mode", "gone", "out"} {
		write(name, name)
	}
	if err := os.Symlink("same", path("link")); err != nil {
		t.Fatal(err)
	}
	see := func() listing {
		t.Helper()
		l, err := list(root, map[string]string{path("out"): "for the test"})
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	before := see()
	if found := see().differences(before); len(found) > 0 {
		t.Errorf("nothing was done: %q", found)
	}
	write("same", "same") // other times only
	write("content", "Content")
	write("new", "")
	write("out", "another")
	for _, err := range []error{
		os.Chmod(path("mode"), 0o644), os.Remove(path("gone")), os.Remove(path("link")), os.Symlink("mode", path("link")), os.Mkdir(path("folder"), 0o755),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	var got []string
	for _, f := range see().differences(before) {
		got = append(got, filepath.Base(f[:len(root)+1+slices.Index([]byte(f[len(root)+1:]), ' ')]))
	}
	if want := []string{"content", "folder", "gone", "link", "mode", "new"}; !slices.Equal(got, want) {
		t.Errorf("found %q, want %q", got, want)
	}
}

// Package install puts farpage into the configuration of container engines and of
// systemd, and takes it out again. It edits as little as it can: where an engine reads
// drop-ins a file of farpage's own, else the smallest change to the engine's file, whose
// comments and order stay. It restarts nothing; it says what has to be.
package install

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/aymanbagabas/go-udiff"
	"github.com/farpage/farpage/oci/internal/replace"
)

// Host is the system that is changed.
type Host struct {
	Root      string // folder that it is in; empty: /
	Bin       string // where its farpage programs are: /usr/bin
	SocketDir string // the agent's; empty: the default one
}

// path is where a file of the host is.
func (h Host) path(name string) string { return filepath.Join("/", h.Root, name) }

// Plan is what an installation, or its end, changes.
type Plan struct {
	Changes []Change
	Then    string // what the user has to do for it to hold; empty: nothing
	Command []string
	Pending bool     // what Then says is to be done, though no file changes
	Notes   []string // what the user should know
}

// Change is a file before and after; nil: no such file.
type Change struct {
	Path     string // on the host
	at       string
	Old, New []byte
}

// change plans the content of a file; nil removes it.
func (p *Plan) change(h Host, path string, old, content []byte) {
	if (old == nil) == (content == nil) && bytes.Equal(old, content) {
		return
	}
	p.Changes = append(p.Changes, Change{Path: path, at: h.path(path), Old: old, New: content})
}

// read reads a file of the host; nil: there is none.
func (h Host) read(path string) ([]byte, error) {
	text, err := os.ReadFile(h.path(path))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if text == nil {
		text = []byte{}
	}
	return text, nil
}

// Diff shows the plan as a unified diff.
func (p Plan) Diff() string {
	var out bytes.Buffer
	for _, c := range p.Changes {
		from, to := c.Path, c.Path
		if c.Old == nil {
			from = "/dev/null"
		}
		if c.New == nil {
			to = "/dev/null"
		}
		out.WriteString(udiff.Unified(from, to, string(c.Old), string(c.New)))
	}
	return out.String()
}

// Apply makes the changes. Each file is replaced as a whole; where one cannot be, those
// before it stay changed and the error says which it was. Applying a plan for what is
// there already does nothing.
func (p Plan) Apply() error {
	for _, c := range p.Changes {
		if err := c.apply(); err != nil {
			return fmt.Errorf("%s: %w", c.Path, err)
		}
	}
	return nil
}

func (c Change) apply() error {
	// Another one may have written to it since the plan was made.
	now, err := os.ReadFile(c.at)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if c.Old != nil {
			return errors.New("it has gone meanwhile: try again")
		}
	case err != nil:
		return err
	case c.Old == nil || !bytes.Equal(now, c.Old):
		return errors.New("it was changed meanwhile: try again")
	}
	if c.New == nil {
		if err := os.Remove(c.at); err != nil {
			return err
		}
		c.removeFolders()
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(c.at), 0o755); err != nil {
		return err
	}
	return replace.File(c.at, c.New)
}

// removeFolders removes the folders that were made for a drop-in, if nothing else is in
// them. Folders that engines or their packages have stay.
func (c Change) removeFolders() {
	dir, at := filepath.Dir(c.Path), filepath.Dir(c.at)
	for slices.Contains(madeFolders, dir) && os.Remove(at) == nil {
		dir, at = filepath.Dir(dir), filepath.Dir(at)
	}
}

// madeFolders are those that no engine's package leaves empty.
var madeFolders = []string{hooksDir, filepath.Dir(hooksDir), filepath.Dir(filepath.Dir(hooksDir)), filepath.Dir(cdiFile)}

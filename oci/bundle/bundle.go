// Package bundle edits the configuration of an OCI bundle (config.json) and of a
// process that is started in a running container (runtime-spec, config.md "Process").
// What it does not know of it keeps as it is.
package bundle

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/farpage/farpage/oci/internal/replace"
)

// MaxBytes bounds what is read. The largest configurations seen have 1 MiB.
const MaxBytes = 16 << 20

// Document is a JSON object. Numbers keep the text that they were written as.
type Document map[string]any

// Read reads a file that holds one JSON object.
func Read(path string) (Document, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, MaxBytes+1))
	if err != nil {
		return nil, err
	}
	return Parse(path, text)
}

// Parse reads one JSON object; name is what errors call the text.
func Parse(name string, text []byte) (Document, error) {
	if len(text) > MaxBytes {
		return nil, fmt.Errorf("%s is larger than %d bytes", name, MaxBytes)
	}
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.UseNumber()
	var d Document
	if err := decoder.Decode(&d); err != nil {
		return nil, fmt.Errorf("reading %s: %w", name, err)
	}
	if d == nil {
		return nil, fmt.Errorf("reading %s: it holds no object", name)
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("reading %s: there is something behind its object", name)
	}
	return d, nil
}

// Encode returns the document as JSON.
func (d Document) Encode() ([]byte, error) {
	var text bytes.Buffer
	encoder := json.NewEncoder(&text)
	encoder.SetEscapeHTML(false)
	err := encoder.Encode(d)
	return text.Bytes(), err
}

// Write puts a document in place of the file at path.
func (d Document) Write(path string) error {
	text, err := d.Encode()
	if err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	return replace.File(path, text)
}

// Annotations returns those of the configuration that are text, as all are.
func (d Document) Annotations() map[string]string {
	annotations := map[string]string{}
	object, _ := d["annotations"].(map[string]any)
	for key, value := range object {
		if text, ok := value.(string); ok {
			annotations[key] = text
		}
	}
	return annotations
}

// Annotate adds annotations that are not there. It says whether there were any.
func (d Document) Annotate(defaults map[string]string) (changed bool) {
	if d["annotations"] == nil && len(defaults) > 0 {
		d["annotations"] = map[string]any{}
	}
	object, ok := d["annotations"].(map[string]any)
	for key, value := range defaults {
		if _, there := object[key]; ok && !there {
			object[key] = value
			changed = true
		}
	}
	return changed
}

// Process is the configuration of the container's first process; nil when there is none.
func (d Document) Process() Document {
	process, _ := d["process"].(map[string]any)
	return process
}

// Environment returns a process's environment, NAME=VALUE each.
func (d Document) Environment() []string {
	var environment []string
	list, _ := d["env"].([]any)
	for _, entry := range list {
		if text, ok := entry.(string); ok {
			environment = append(environment, text)
		}
	}
	return environment
}

// Preload has a process preload a library, after those that it preloads already. It says
// whether anything was to be done.
func (d Document) Preload(library string) bool {
	environment, changed := Preload(d.Environment(), library)
	if changed {
		list := make([]any, len(environment))
		for i, variable := range environment {
			list[i] = variable
		}
		d["env"] = list
	}
	return changed
}

// Preload adds a library to those that an environment (NAME=VALUE) preloads: ld.so reads
// LD_PRELOAD from the left, names separated by colons or spaces (ld.so(8)). Of several
// LD_PRELOAD the last one counts for a C library, so that one is changed.
func Preload(environment []string, library string) (preloading []string, changed bool) {
	const name = "LD_PRELOAD="
	for i, variable := range slices.Backward(environment) {
		value, found := strings.CutPrefix(variable, name)
		if !found {
			continue
		}
		names := strings.FieldsFunc(value, func(r rune) bool { return r == ':' || r == ' ' })
		if slices.Contains(names, library) {
			return environment, false
		}
		preloading = slices.Clone(environment)
		preloading[i] = name + strings.Join(append(names, library), ":")
		return preloading, true
	}
	return append(slices.Clone(environment), name+library), true
}

// Root returns the absolute path of the root file system of a bundle in dir.
func (d Document) Root(dir string) (string, error) {
	root, _ := d["root"].(map[string]any)
	path, _ := root["path"].(string)
	if path == "" {
		return "", errors.New("config.json names no root file system (root.path)")
	}
	if !filepath.IsAbs(path) {
		path = filepath.Join(dir, path)
	}
	return filepath.Clean(path), nil
}

// Hook is a command that a runtime runs while it creates a container (runtime-spec,
// config.md "POSIX-platform Hooks").
type Hook struct {
	Path string
	Args []string // with the name that it is called by
}

// AddHook adds a hook to those of a stage ("prestart", "createRuntime"), as the last one.
// Where one of that path is there already, at that stage or another, nothing is done.
func (d Document) AddHook(stage string, hook Hook) (added bool, err error) {
	hooks, ok := d["hooks"].(map[string]any)
	if !ok {
		if d["hooks"] != nil {
			return false, errors.New("config.json: hooks is no object")
		}
		hooks = map[string]any{}
	}
	for _, list := range hooks {
		entries, _ := list.([]any)
		for _, entry := range entries {
			if h, _ := entry.(map[string]any); h != nil && samePath(h["path"], hook.Path) {
				return false, nil
			}
		}
	}
	args := make([]any, len(hook.Args))
	for i, a := range hook.Args {
		args[i] = a
	}
	list, ok := hooks[stage].([]any)
	if !ok && hooks[stage] != nil {
		return false, fmt.Errorf("config.json: hooks.%s is no list", stage)
	}
	hooks[stage] = append(list, map[string]any{"path": hook.Path, "args": args})
	d["hooks"] = hooks
	return true, nil
}

// samePath says whether a hook is the same program: packages and engines may know it by
// different folders.
func samePath(path any, other string) bool {
	text, _ := path.(string)
	return text == other || filepath.Base(text) == filepath.Base(other)
}

package hook

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// maxJSONBytes bounds what is read of a state or a configuration. Kubernetes allows
// 256 KiB of annotations; the largest configurations seen have 1 MiB.
const maxJSONBytes = 16 << 20

// state is what a runtime writes to a hook's standard input (runtime-spec,
// runtime.md, "State"). Only what is needed is decoded: what a newer specification
// adds or changes elsewhere must not stop a container.
type state struct {
	ID          string            `json:"id"`
	Pid         int               `json:"pid"` // in the runtime's pid namespace
	Bundle      string            `json:"bundle"`
	Annotations map[string]string `json:"annotations"`
}

// config is what is needed of a bundle's config.json (runtime-spec, config.md).
type config struct {
	Root *struct {
		Path string `json:"path"` // absolute, or relative to the bundle
	} `json:"root"`
	Annotations map[string]string `json:"annotations"`
	Process     *struct {
		Env []string `json:"env"`
	} `json:"process"`
	Linux *struct {
		Resources *struct {
			Memory *struct {
				Limit *int64 `json:"limit"` // bytes; -1: none
			} `json:"memory"`
		} `json:"resources"`
	} `json:"linux"`
}

// readState decodes the state on standard input.
func readState(stdin io.Reader) (state, error) {
	var s state
	if err := decodeJSON(stdin, &s); err != nil {
		return state{}, fmt.Errorf("reading the container's state from standard input: %w", err)
	}
	return s, nil
}

// readConfig decodes the config.json of a bundle.
func readConfig(bundle string) (config, error) {
	if bundle == "" {
		return config{}, errors.New("the runtime names no bundle")
	}
	f, err := os.Open(filepath.Join(bundle, "config.json"))
	if err != nil {
		return config{}, err
	}
	defer f.Close()
	var c config
	if err := decodeJSON(f, &c); err != nil {
		return config{}, fmt.Errorf("reading %s: %w", f.Name(), err)
	}
	return c, nil
}

// decodeJSON decodes one JSON value of at most maxJSONBytes.
func decodeJSON(r io.Reader, into any) error {
	text, err := io.ReadAll(io.LimitReader(r, maxJSONBytes+1))
	if err != nil {
		return err
	}
	if len(text) > maxJSONBytes {
		return fmt.Errorf("more than %d bytes", maxJSONBytes)
	}
	return json.Unmarshal(text, into)
}

// memoryLimit returns the container's memory limit in bytes, 0 for none.
func (c config) memoryLimit() int64 {
	if c.Linux == nil || c.Linux.Resources == nil || c.Linux.Resources.Memory == nil || c.Linux.Resources.Memory.Limit == nil {
		return 0
	}
	return max(*c.Linux.Resources.Memory.Limit, 0)
}

// environment returns the environment of the container's first process.
func (c config) environment() []string {
	if c.Process == nil {
		return nil
	}
	return c.Process.Env
}

// rootPath returns the absolute path of the root file system on the host.
func (c config) rootPath(bundle string) (string, error) {
	if c.Root == nil || c.Root.Path == "" {
		return "", errors.New("config.json names no root file system (root.path)")
	}
	if filepath.IsAbs(c.Root.Path) {
		return filepath.Clean(c.Root.Path), nil
	}
	path := filepath.Join(bundle, c.Root.Path)
	if !filepath.IsAbs(path) {
		return "", fmt.Errorf("the runtime gave a bundle that is not an absolute path: %q", bundle)
	}
	return path, nil
}

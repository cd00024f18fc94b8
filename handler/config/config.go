// Package config is the agent's configuration: a TOML file, read strictly, whose
// options are all flags of `farpage agent` too.
package config

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/farpage/farpage/api"
	"github.com/farpage/farpage/oci/policy"
	"github.com/pelletier/go-toml/v2"
)

// DefaultPath is where the agent looks when it is told nothing else. It need not
// exist.
const DefaultPath = "/etc/farpage/config.toml"

// Config is what an operator can set. Field names are those of the file.
type Config struct {
	SocketDir string `toml:"socket_dir" comment:"Folder of the agent's sockets."`
	StateDir  string `toml:"state_dir" comment:"Folder that tells the next agent what this one served. Lost at a reboot, as containers are."`
	LogLevel  string `toml:"log_level" comment:"error, warn, info or debug."`
	LogFormat string `toml:"log_format" comment:"text or json."`
	// Environment: FARPAGE_LOCAL and the like in a container's environment count
	// as annotations. Off by default, because images can set environment.
	Environment bool              `toml:"environment" comment:"Take FARPAGE_LOCAL, FARPAGE_FAR, ... of a container's environment as annotations. Images can set environment."`
	Stores      map[string]string `toml:"stores" comment:"Where far pages live, by the name that io.farpage.store gives."`
	Bounds      Bounds            `toml:"bounds" comment:"What annotations may ask for at most."`
}

// Bounds limit what containers may ask for. Sizes as in annotations; empty: none.
type Bounds struct {
	MaxLocal string   `toml:"max_local" comment:"Largest io.farpage.local, for example 64Gi. Empty: none."`
	MaxFar   string   `toml:"max_far" comment:"Largest io.farpage.far; unlimited becomes this. Empty: none."`
	Stores   []string `toml:"stores" comment:"Names of stores that containers may use. Empty: all."`
}

// Default is the configuration of an agent that is told nothing.
func Default() Config {
	return Config{
		SocketDir: api.DefaultSocketDir, StateDir: api.DefaultSocketDir + "/state",
		LogLevel: "info", LogFormat: "text",
		Stores: map[string]string{policy.DefaultStore: "mem:"},
	}
}

// Load reads a file over the defaults. A missing file at DefaultPath is no error,
// one that was asked for is.
func Load(path string, asked bool) (Config, error) {
	c := Default()
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) && !asked {
		return c, nil
	}
	if err != nil {
		return c, fmt.Errorf("read the configuration: %w", err)
	}
	d := toml.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&c); err != nil {
		return c, describe(path, err)
	}
	if err := c.Check(); err != nil {
		return c, fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
}

// describe makes an error of the decoder one line per problem, with its place.
func describe(path string, err error) error {
	var strict *toml.StrictMissingError
	if errors.As(err, &strict) {
		var all []error
		for i := range strict.Errors {
			row, column := strict.Errors[i].Position()
			all = append(all, fmt.Errorf("%s:%d:%d: unknown option %q: `farpage agent --print-config` shows all there are",
				path, row, column, strings.Join(strict.Errors[i].Key(), ".")))
		}
		return errors.Join(all...)
	}
	var decode *toml.DecodeError
	if errors.As(err, &decode) {
		row, column := decode.Position()
		return fmt.Errorf("%s:%d:%d: %s", path, row, column, inWords(strings.TrimPrefix(decode.Error(), "toml: ")))
	}
	return fmt.Errorf("%s: %w", path, err)
}

// wrongType is what the decoder says of a value of another type than the option's.
var wrongType = regexp.MustCompile(`^cannot decode TOML (\S+) into (?:struct field \S+ of type )?(\S+)$`)

// words are for types of TOML and of Go.
var words = map[string]string{
	"integer": "a number", "float": "a number", "boolean": "true or false", "string": "a text", "array": "a list",
	"bool": "true or false", "[]string": `a list of texts, ["LIKE", "THIS"],`, "map[string]string": "a table of texts",
}

// inWords puts a message about types into words for who has written the file.
func inWords(message string) string {
	types := wrongType.FindStringSubmatch(message)
	if types == nil || words[types[1]] == "" || words[types[2]] == "" {
		return message
	}
	return fmt.Sprintf("this is %s, and %s is wanted: `farpage agent --print-config` shows how it is written", words[types[1]], words[types[2]])
}

// Check says what is wrong with a configuration.
func (c *Config) Check() error {
	if c.SocketDir == "" || c.SocketDir[0] != '/' {
		return fmt.Errorf("socket_dir %q is not an absolute path", c.SocketDir)
	}
	if path := filepath.Join(c.SocketDir, api.SocketName); len(path) > api.MaxSocketPathBytes {
		return fmt.Errorf("socket_dir %q is too long: the socket %s in it would have a path of %d bytes, unix sockets allow %d: choose a shorter one",
			c.SocketDir, api.SocketName, len(path), api.MaxSocketPathBytes)
	}
	if c.StateDir == "" || c.StateDir[0] != '/' {
		return fmt.Errorf("state_dir %q is not an absolute path", c.StateDir)
	}
	if levels := []string{"error", "warn", "info", "debug"}; !slices.Contains(levels, c.LogLevel) {
		return fmt.Errorf("log_level %q: allowed are %s", c.LogLevel, strings.Join(levels, ", "))
	}
	if formats := []string{"text", "json"}; !slices.Contains(formats, c.LogFormat) {
		return fmt.Errorf("log_format %q: allowed are %s", c.LogFormat, strings.Join(formats, ", "))
	}
	if c.Stores[policy.DefaultStore] == "" {
		return fmt.Errorf("stores has no %q: containers that name no store use it", policy.DefaultStore)
	}
	for _, name := range c.Bounds.Stores {
		if c.Stores[name] == "" {
			return fmt.Errorf("bounds.stores names %q, which stores does not have: name it there too, or leave it out here", name)
		}
	}
	for _, b := range []struct{ name, size string }{{"max_local", c.Bounds.MaxLocal}, {"max_far", c.Bounds.MaxFar}} {
		if b.size == "" {
			continue
		}
		if _, err := policy.ParseSize(b.size); err != nil {
			return fmt.Errorf("bounds.%s: %w", b.name, err)
		}
	}
	return nil
}

// Apply holds a policy against the bounds: an error names the key, or the policy
// comes back with what was unlimited limited.
func (c *Config) Apply(p policy.Policy) (policy.Policy, error) {
	if p.Store == "" {
		p.Store = policy.DefaultStore
	}
	if c.Stores[p.Store] == "" {
		return p, fmt.Errorf("%s: this agent has no store %q; it has %s", policy.KeyStore, p.Store, names(c.Stores))
	}
	if len(c.Bounds.Stores) > 0 && !slices.Contains(c.Bounds.Stores, p.Store) {
		return p, fmt.Errorf("%s: the operator does not let containers use store %q; allowed: %s", policy.KeyStore, p.Store, strings.Join(c.Bounds.Stores, ", "))
	}
	if limit, ok := bound(c.Bounds.MaxLocal); ok && p.LocalBytes > limit {
		return p, fmt.Errorf("%s: %d bytes are more than the operator allows; allowed: up to %s", policy.KeyLocal, p.LocalBytes, c.Bounds.MaxLocal)
	}
	if limit, ok := bound(c.Bounds.MaxFar); ok {
		if p.FarBytes == policy.Unlimited {
			p.FarBytes = limit
		}
		if p.FarBytes > limit {
			return p, fmt.Errorf("%s: %d bytes are more than the operator allows; allowed: up to %s", policy.KeyFar, p.FarBytes, c.Bounds.MaxFar)
		}
	}
	return p, nil
}

func bound(size string) (int64, bool) {
	if size == "" {
		return 0, false
	}
	n, err := policy.ParseSize(size)
	return n, err == nil
}

func names(stores map[string]string) string {
	var all []string
	for n := range stores {
		all = append(all, n)
	}
	slices.Sort(all)
	return strings.Join(all, ", ")
}

// Text is the configuration as a file.
func (c Config) Text() (string, error) {
	b, err := toml.Marshal(c)
	if err != nil {
		return "", err
	}
	return string(b), nil
}

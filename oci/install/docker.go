package install

import (
	"bytes"
	"encoding/json"
	"fmt"
	"path/filepath"
)

// daemonJSON is dockerd's configuration (its --config-file).
const daemonJSON = "/etc/docker/daemon.json"

// runtimeName is what the runtime is called in every engine.
const runtimeName = "farpage"

// DockerOptions are what can be chosen for Docker.
type DockerOptions struct {
	Default bool // make it the runtime of containers that name none
}

// Docker adds the runtime `farpage` to daemon.json.
func Docker(h Host, o DockerOptions) (Plan, error) {
	plan := dockerPlan()
	old, err := h.read(daemonJSON)
	if err != nil {
		return plan, err
	}
	text := old
	if len(bytes.TrimSpace(text)) == 0 {
		text = []byte("{\n}\n")
	}
	runtime := fmt.Sprintf("{\n%s\"path\": %s", unit, quote(filepath.Join(h.Bin, "farpage-runtime")))
	if h.SocketDir != "" {
		runtime += fmt.Sprintf(",\n%s\"runtimeArgs\": [%s, %s]", unit, quote("--farpage-socket-dir"), quote(h.SocketDir))
	}
	runtime += "\n}"
	text, err = setIn(text, "runtimes", runtimeName, runtime)
	if err == nil && o.Default {
		text, err = setDefault(text)
	}
	if err != nil {
		return plan, fmt.Errorf("%s: %w", daemonJSON, err)
	}
	plan.change(h, daemonJSON, old, text)
	return plan, nil
}

// RemoveDocker takes it out again.
func RemoveDocker(h Host) (Plan, error) {
	plan := dockerPlan()
	old, err := h.read(daemonJSON)
	if err != nil || len(bytes.TrimSpace(old)) == 0 {
		return plan, err
	}
	text, err := removeIn(old, "runtimes", runtimeName)
	if err == nil {
		text, err = dropDefault(text)
	}
	if err != nil {
		return plan, fmt.Errorf("%s: %w", daemonJSON, err)
	}
	if bytes.Equal(text, []byte("{\n}\n")) && !bytes.Equal(old, text) {
		text = nil // it was made for this
	}
	plan.change(h, daemonJSON, old, text)
	return plan, nil
}

func dockerPlan() Plan {
	return Plan{
		Then:    "dockerd reads its runtimes anew when it is reloaded (running containers stay): systemctl reload docker",
		Command: []string{"systemctl", "reload", "docker"},
	}
}

// setIn makes outer.key of a JSON text the value, outer an object that may be missing.
func setIn(text []byte, outer, key, value string) ([]byte, error) {
	top, err := topOf(text)
	if err != nil {
		return nil, err
	}
	m, there := top.find(outer)
	if !there {
		inner := "{\n" + unit + quote(key) + ": " + reindent(value) + "\n}"
		return put(text, top, outer, inner, 1), nil
	}
	in, err := objectAt(text, m.value)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", outer, err)
	}
	if had, there := in.find(key); there {
		if sameJSON(text[had.value:had.end], []byte(value)) {
			return text, nil
		}
		return splice(text, had.value, had.end, value), nil
	}
	return put(text, in, key, value, 2), nil
}

// reindent moves all lines of a value but the first one step to the right.
func reindent(value string) string {
	return string(bytes.ReplaceAll([]byte(value), []byte("\n"), []byte("\n"+unit)))
}

// removeIn takes outer.key out of a JSON text, and outer with the last one in it.
func removeIn(text []byte, outer, key string) ([]byte, error) {
	top, err := topOf(text)
	if err != nil {
		return nil, err
	}
	m, there := top.find(outer)
	if !there {
		return text, nil
	}
	in, err := objectAt(text, m.value)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", outer, err)
	}
	if _, there := in.find(key); !there {
		return text, nil
	}
	if len(in.members) > 1 {
		return cut(text, in, key), nil
	}
	return cutTop(text, top, outer), nil
}

// cutTop takes a member out of the whole; the braces of an empty one stand in two lines.
func cutTop(text []byte, top object, key string) []byte {
	text = cut(text, top, key)
	if len(top.members) == 1 {
		return splice(text, top.open+1, top.open+1, "\n")
	}
	return text
}

const defaultRuntime = "default-runtime"

// setDefault makes farpage's runtime the default, unless another one is.
func setDefault(text []byte) ([]byte, error) {
	top, err := topOf(text)
	if err != nil {
		return nil, err
	}
	m, there := top.find(defaultRuntime)
	if !there {
		return put(text, top, defaultRuntime, quote(runtimeName), 1), nil
	}
	if had := string(text[m.value:m.end]); had != quote(runtimeName) {
		return nil, fmt.Errorf("%s is %s already: name farpage where you want it, by docker run --runtime farpage", defaultRuntime, had)
	}
	return text, nil
}

// dropDefault takes the default out if it is farpage's.
func dropDefault(text []byte) ([]byte, error) {
	top, err := topOf(text)
	if err != nil {
		return nil, err
	}
	if m, there := top.find(defaultRuntime); !there || string(text[m.value:m.end]) != quote(runtimeName) {
		return text, nil
	}
	return cutTop(text, top, defaultRuntime), nil
}

// topOf reads the object that a whole text is.
func topOf(text []byte) (object, error) {
	if err := valid(text); err != nil {
		return object{}, err
	}
	return objectAt(text, 0)
}

// valid refuses what is no JSON, with the line of the first error.
func valid(text []byte) error {
	var top map[string]json.RawMessage
	err := json.Unmarshal(text, &top)
	if syntax, ok := err.(*json.SyntaxError); ok { //nolint:errorlint // Unmarshal returns it as it is
		line := 1 + bytes.Count(text[:syntax.Offset], []byte("\n"))
		return fmt.Errorf("line %d: %w: mend it first", line, err)
	}
	return err
}

func sameJSON(a, b []byte) bool {
	var x, y any
	return json.Unmarshal(a, &x) == nil && json.Unmarshal(b, &y) == nil && fmt.Sprint(x) == fmt.Sprint(y)
}

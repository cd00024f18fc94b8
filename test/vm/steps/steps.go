// Package steps is what the two sides of the test in a VM have in common: which steps
// there are, and the lines by which the side inside tells how they went.
package steps

import (
	"encoding/json"
	"fmt"
)

// Names of the steps, in their order. The side inside must report every one of them.
var Names = []string{
	"a Debian 13 with systemd, cgroup v2 and its engines",
	"the file system is listed",
	"the package is installed",
	"the agent is a service of systemd",
	"a client's call starts the agent",
	"farpage is installed in the engines",
	"farpage check knows this host",
	"docker: without annotation nothing differs",
	"docker run",
	"docker exec",
	"podman run",
	"podman exec",
	"ctr run",
	"the commands of the pages do what they say",
	"redis holds three times its budget",
	"the agent is restarted under it",
	"the agent is killed under it",
	"the agent is stopped and called under it",
	"the package is upgraded under it",
	"the host is rebooted",
	"the agent is up after the boot",
	"a container that came back is managed",
	"a removal is refused while it runs",
	"everything is uninstalled",
	"nothing is left",
}

// State is how it stands with a step.
type State string

// A step begins, has notes and reasons why it failed, and has passed or failed.
const (
	Began  State = "began"
	Note   State = "note"
	Wrong  State = "wrong"
	Passed State = "passed"
	Failed State = "failed"
)

// Line is one line of the side inside.
type Line struct {
	Step  string `json:"step"`
	State State  `json:"state"`
	Text  string `json:"text,omitempty"`
}

// Encode is the line as it is sent, with its end.
func (l Line) Encode() []byte {
	text, err := json.Marshal(l)
	if err != nil {
		panic(err) // strings only
	}
	return append(text, '\n')
}

// Decode reads a line.
func Decode(text []byte) (l Line, err error) {
	if err := json.Unmarshal(text, &l); err != nil {
		return l, fmt.Errorf("%q is no line of the side inside: %w", text, err)
	}
	return l, nil
}

package install

import (
	"encoding/json"
	"fmt"
	"path/filepath"

	"github.com/farpage/farpage/oci/policy"
)

// cdiFile is where engines look for CDI specifications (cdi, SPEC.md).
const cdiFile = "/etc/cdi/farpage.json"

// cdiSizes are the budgets that there are devices of, in MiB: a device is a name, not a
// number.
func cdiSizes() []string {
	var names []string
	for size := 16; size < 1024; size *= 2 {
		names = append(names, fmt.Sprintf("%dMi", size))
	}
	for size := 1; size <= 1024; size *= 2 {
		names = append(names, fmt.Sprintf("%dGi", size))
	}
	return names
}

// CDI adds devices, farpage.io/local=SIZE, for engines that take them: `docker run
// --device` since Docker 25 with the feature cdi, and podman's.
func CDI(h Host) (Plan, error) {
	content, err := cdiSpec(h)
	if err != nil {
		return Plan{}, err
	}
	return dropIns(h, Plan{Then: "engines read CDI specifications whenever they create a container: nothing is to be restarted"}, map[string][]byte{cdiFile: content})
}

// RemoveCDI takes them away.
func RemoveCDI(h Host) (Plan, error) {
	return removeDropIns(h, Plan{}, map[string][]byte{cdiFile: nil})
}

// cdiSpec is a CDI specification, of a version that all engines with CDI know.
func cdiSpec(h Host) ([]byte, error) {
	type hook struct {
		HookName string   `json:"hookName"`
		Path     string   `json:"path"`
		Args     []string `json:"args"`
	}
	type edits struct {
		Hooks []hook `json:"hooks"`
	}
	type device struct {
		Name           string `json:"name"`
		ContainerEdits edits  `json:"containerEdits"`
	}
	spec := struct {
		Version string   `json:"cdiVersion"`
		Kind    string   `json:"kind"`
		Devices []device `json:"devices"`
	}{Version: "0.5.0", Kind: "farpage.io/local"}
	for _, size := range cdiSizes() {
		args := []string{"farpage-hook"}
		if h.SocketDir != "" {
			args = append(args, "--socket-dir", h.SocketDir)
		}
		args = append(args, "--annotation", policy.KeyLocal+"="+size, "createRuntime")
		spec.Devices = append(spec.Devices, device{size, edits{[]hook{{"createRuntime", filepath.Join(h.Bin, "farpage-hook"), args}}}})
	}
	text, err := json.MarshalIndent(spec, "", unit)
	return append(text, '\n'), err
}

package install

import (
	"encoding/json"
	"maps"
	"path/filepath"
	"slices"
)

// hooksDir is where podman, Buildah and CRI-O look for hooks unless they are told
// otherwise (oci-hooks(5); podman 4 reads no other folder by default).
const hooksDir = "/usr/share/containers/oci/hooks.d"

// Podman puts farpage's hook where podman and Buildah look for hooks. One of the stage
// precreate, which could change the environment of programs in musl images, must not be
// there: Buildah and CRI-O know no such stage and then refuse to run anything at all
// (containers/common, pkg/hooks, extensionStages).
func Podman(h Host) (Plan, error) {
	return dropIns(h, Plan{
		Then:  "podman reads its hooks whenever it creates a container: nothing is to be restarted",
		Notes: []string{"hooks change no environment: for musl images use podman --runtime " + filepath.Join(h.Bin, "farpage-runtime")},
	}, podmanFiles(h))
}

// RemovePodman takes them away.
func RemovePodman(h Host) (Plan, error) { return removeDropIns(h, Plan{}, podmanFiles(h)) }

func podmanFiles(h Host) map[string][]byte {
	return map[string][]byte{filepath.Join(hooksDir, "farpage.json"): hooksFile(h)}
}

// CRIO puts farpage's hook where CRI-O looks for hooks. Where podman has it there too it
// is run twice, and does its work once.
func CRIO(h Host) (Plan, error) {
	return dropIns(h, Plan{
		Then:  "CRI-O notices a new hook by itself: nothing is to be restarted",
		Notes: []string{"CRI-O's hooks change no environment: on musl images set LD_PRELOAD=/dev/farpage/libfarpage.so in the pod"},
	}, crioFiles(h))
}

// RemoveCRIO takes it away.
func RemoveCRIO(h Host) (Plan, error) { return removeDropIns(h, Plan{}, crioFiles(h)) }

func crioFiles(h Host) map[string][]byte {
	return map[string][]byte{filepath.Join(hooksDir, "farpage-crio.json"): hooksFile(h)}
}

// hooksFile is a file of hooks.d (oci-hooks(5), version 1.0.0): what is run at a stage,
// for containers with an annotation of farpage's.
func hooksFile(h Host) []byte {
	const stage = "createRuntime"
	type hook struct {
		Path string   `json:"path"`
		Args []string `json:"args"`
	}
	type when struct {
		Annotations map[string]string `json:"annotations"`
	}
	args := []string{"farpage-hook", stage}
	if h.SocketDir != "" {
		args = []string{"farpage-hook", "--socket-dir", h.SocketDir, stage}
	}
	text, err := json.MarshalIndent(struct {
		Version string   `json:"version"`
		Hook    hook     `json:"hook"`
		When    when     `json:"when"`
		Stages  []string `json:"stages"`
	}{
		"1.0.0",
		hook{filepath.Join(h.Bin, "farpage-hook"), args},
		when{map[string]string{`^io\.farpage\.`: ".*"}},
		[]string{stage},
	}, "", unit)
	if err != nil {
		return nil // plain text and lists always have a form
	}
	return append(text, '\n')
}

// dropIns plans files of farpage's own.
func dropIns(h Host, plan Plan, files map[string][]byte) (Plan, error) {
	for _, path := range slices.Sorted(maps.Keys(files)) {
		old, err := h.read(path)
		if err != nil {
			return plan, err
		}
		plan.change(h, path, old, files[path])
	}
	return plan, nil
}

// removeDropIns plans their end.
func removeDropIns(h Host, plan Plan, files map[string][]byte) (Plan, error) {
	for _, path := range slices.Sorted(maps.Keys(files)) {
		old, err := h.read(path)
		if err != nil {
			return plan, err
		}
		plan.change(h, path, old, nil)
	}
	return plan, nil
}

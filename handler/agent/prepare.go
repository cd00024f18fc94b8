package agent

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/farpage/farpage/api"
	"github.com/farpage/farpage/handler/handoff"
	"github.com/farpage/farpage/oci/policy"
	"github.com/farpage/farpage/shim/lib"
)

// makeDir fills a container's folder: the shim and the bell. A folder that is there may be
// mounted already: it stays the same, and what is in it goes.
func (a *Agent) makeDir(dir string, p policy.Policy) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make the container's folder: %w", err)
	}
	old, err := os.ReadDir(dir)
	for _, entry := range old {
		err = errors.Join(err, os.RemoveAll(filepath.Join(dir, entry.Name())))
	}
	if err != nil {
		return fmt.Errorf("empty the container's folder: %w", err)
	}
	inside := policy.MountPoint
	if a.opts.Private {
		inside = dir
	}
	library, err := lib.Library(inside)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "libfarpage.so"), library, 0o755); err != nil {
		return fmt.Errorf("write the shim: %w", err)
	}
	bell := make([]byte, 4096)
	bell[0] = handoff.BellRung
	if p.OnFailure == policy.OnFailureClosed {
		bell[0] = handoff.BellRungWait
	}
	if err := os.WriteFile(filepath.Join(dir, "bell"), bell, 0o644); err != nil {
		return fmt.Errorf("write the bell: %w", err)
	}
	return nil
}

// preparedName is a file in a folder whose container was not added yet.
const preparedName = "prepared"

// Prepare makes the folder of a container that has no process yet, for engines whose
// plugins have it mounted by the engine. Nobody remembers it but the file system: an agent
// that starts meanwhile finds it there.
func (a *Agent) Prepare(id string, req api.PrepareRequest) (api.AddReply, error) {
	if err := checkID(id); err != nil {
		return api.AddReply{}, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if old := a.containers[id]; old != nil && old.engine != nil {
		return api.AddReply{}, fmt.Errorf("container %s: %w", id, errExists)
	}
	a.sweep()
	p, _, _, err := a.allow(req.Policy)
	if err != nil {
		return api.AddReply{}, err
	}
	dir := a.containerDir(id)
	err = a.makeDir(dir, p)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, preparedName), nil, 0o600)
	}
	if err != nil {
		return api.AddReply{}, errors.Join(err, os.RemoveAll(dir))
	}
	return api.AddReply{Dir: dir}, nil
}

// GiveUp removes the folder of a container that was prepared and not added.
func (a *Agent) GiveUp(id string) error {
	if err := checkID(id); err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if c := a.containers[id]; c != nil && c.engine != nil {
		return nil
	}
	return os.RemoveAll(a.containerDir(id))
}

// sweep removes folders of containers that never came. Preconditions: a.mu is held.
func (a *Agent) sweep() {
	folders, err := os.ReadDir(a.containerDir(""))
	if err != nil {
		return // the next one
	}
	for _, folder := range folders {
		dir := a.containerDir(folder.Name())
		mark, err := os.Lstat(filepath.Join(dir, preparedName))
		if err == nil && a.containers[folder.Name()] == nil && time.Since(mark.ModTime()) > api.PreparedMax {
			if err := os.RemoveAll(dir); err != nil {
				a.log.Warnf("remove a folder whose container never came: %v", err)
			}
		}
	}
}

// Package wrapper is farpage-runtime: an OCI runtime for engines that know no hooks of
// their own. It adds farpage's hook to the bundle of a container that is opted in, and
// LD_PRELOAD where the image has musl, whose loader reads no /etc/ld.so.preload; then it
// becomes the runtime that does the work.
//
// Its own trouble stops no container: the runtime is called with what the engine gave,
// and what went wrong is said, in the host's log and to the agent too. Only
// on-failure=closed has it otherwise.
package wrapper

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/farpage/farpage/internal/syslog"
	"github.com/farpage/farpage/oci/bundle"
	"github.com/farpage/farpage/oci/policy"
	"golang.org/x/sys/unix"
)

// Options are what an operator can set, before the runtime's own arguments.
type Options struct {
	Runtime   string // the runtime that does the work: a path, or a name in PATH
	Hook      string // farpage-hook
	SocketDir string // the agent's, for the hook; empty: the hook's default

	// Annotations are those of containers that do not have them themselves.
	Annotations map[string]string
}

// call is one call of a runtime.
type call struct {
	Options
	args    []string // of the runtime
	command string
	log     string // where the engine looks for the reason of a failure; empty: nowhere
	stderr  io.Writer
}

// Run edits what has to be and becomes the runtime. It returns only if it did not, with
// the exit status.
func Run(o Options, args []string, stderr io.Writer) int {
	c := call{Options: o, args: args, stderr: stderr}
	c.command, c.log = commandOf(args), valueOf(args, "--log")
	var err error
	switch c.command {
	case "create", "run":
		err = c.container()
	case "exec":
		err = c.process()
	}
	if errors.Is(err, errClosed) {
		c.fail(err)
		return statusFailed
	}
	if err != nil {
		c.say("%v; the runtime is called as the engine called it", err)
	}
	path, failed := runtimePath(o.Runtime)
	switch {
	case failed != nil:
	case err != nil && c.command == "create":
		return c.createUnmanaged(path, err)
	default:
		failed = fmt.Errorf("exec %s: %w", path, unix.Exec(path, append([]string{path}, args...), os.Environ()))
	}
	c.fail(failed)
	return statusFailed
}

// usualFolders are where a runtime is looked for last: podman calls it without a PATH where
// it pauses or kills a container.
var usualFolders = []string{"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"}

// runtimePath finds the runtime.
func runtimePath(name string) (string, error) {
	path, err := exec.LookPath(name)
	for _, folder := range usualFolders {
		if err == nil || strings.Contains(name, "/") {
			break
		}
		if there, errThere := exec.LookPath(filepath.Join(folder, name)); errThere == nil {
			path, err = there, nil
		}
	}
	if err != nil {
		return "", fmt.Errorf("the runtime that does the work, %s, is not to be found (%w): install it or name another one by --farpage-runtime", name, err)
	}
	self, errSelf := os.Stat("/proc/self/exe")
	if other, err := os.Stat(path); err == nil && errSelf == nil && os.SameFile(self, other) {
		return "", fmt.Errorf("the runtime that does the work, %s, is this program itself: name runc or crun by --farpage-runtime", path)
	}
	return path, nil
}

// errClosed says that a container must not start, because it asked for that.
var errClosed = errors.New(policy.KeyOnFailure + " is " + policy.OnFailureClosed)

// container adds to the configuration of a container that is created.
func (c *call) container() error {
	dir := valueOf(c.args, "--bundle", "-b")
	if dir == "" {
		dir = "." // the runtimes' default
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	path := filepath.Join(dir, "config.json")
	config, err := bundle.Read(path)
	if err != nil {
		return err // the runtime will say so too
	}
	annotated := config.Annotate(c.Annotations)
	if !concerned(config) {
		return nil
	}
	if err := c.edit(config, dir, path, annotated); err != nil {
		if closed(config) {
			return fmt.Errorf("the container does not start, because it cannot be set up and %w: %w", errClosed, err)
		}
		return fmt.Errorf("the container starts unmanaged: %w", err)
	}
	return nil
}

// edit adds the hook and, for musl, the preload.
func (c *call) edit(config bundle.Document, dir, path string, annotated bool) error {
	if _, err := os.Stat(c.Hook); err != nil {
		return fmt.Errorf("farpage's hook is not there (%w): install it, or name it by --farpage-hook", err)
	}
	args := []string{"farpage-hook"}
	if c.SocketDir != "" {
		args = append(args, "--socket-dir", c.SocketDir)
	}
	changed, err := config.AddHook("createRuntime", bundle.Hook{Path: c.Hook, Args: append(args, "createRuntime")})
	if err != nil {
		return err
	}
	root, err := config.Root(dir)
	if err != nil {
		return err
	}
	if process := config.Process(); process != nil && bundle.HasMusl(root) {
		changed = process.Preload(policy.Library) || changed
	}
	if !changed && !annotated {
		return nil
	}
	return config.Write(path)
}

// concerned says whether a container has to do with farpage: every annotation of its
// counts, one that is misspelled too, which the hook refuses. Of the environment only the
// agent knows whether it counts.
func concerned(config bundle.Document) bool {
	annotations := config.Annotations()
	if policy.PodOf(annotations).Sandbox {
		return false
	}
	for key := range annotations {
		if strings.HasPrefix(key, policy.Prefix) {
			return true
		}
	}
	return policy.FromEnvironment(config.Process().Environment())[policy.KeyLocal] != ""
}

// closed says whether a container that cannot be set up must not start.
func closed(config bundle.Document) bool {
	annotations := config.Annotations()
	return policy.PodOf(annotations).AnnotationsFor(annotations)[policy.KeyOnFailure] == policy.OnFailureClosed
}

// process adds to the configuration of a process that is started in a running container,
// which engines make from their own: it has what its container's first process has.
func (c *call) process() error {
	path := valueOf(c.args, "--process", "-p")
	if path == "" {
		return nil // the runtime takes the container's own configuration
	}
	config, err := c.configOf(c.args[len(c.args)-1])
	if err != nil {
		return err
	}
	if _, without := bundle.Preload(config.Process().Environment(), policy.Library); without {
		return nil
	}
	process, err := bundle.Read(path)
	if err != nil {
		return err
	}
	if !process.Preload(policy.Library) {
		return nil
	}
	return process.Write(path)
}

// configOf reads the configuration of a running container: its runtime knows where that
// is.
func (c *call) configOf(id string) (bundle.Document, error) {
	about, err := c.state(id)
	if err != nil {
		return nil, err
	}
	return bundle.Read(filepath.Join(about.Bundle, "config.json"))
}

// say says something to whoever called, and to the host's log.
func (c *call) say(format string, args ...any) {
	message := fmt.Sprintf(format, args...)
	fmt.Fprintf(c.stderr, "farpage-runtime: %s\n", message)
	syslog.Warn(syslog.Socket, "farpage-runtime", message)
}

// fail tells the engine why nothing was started: it reads the last entry of the log that
// it named, as runc and crun write it.
func (c *call) fail(reason error) {
	c.say("%v", reason)
	if c.log == "" {
		return
	}
	entry, err := json.Marshal(map[string]string{
		"level": "error", "msg": "farpage-runtime: " + reason.Error(), "time": time.Now().UTC().Format(time.RFC3339),
	})
	if err != nil {
		return
	}
	f, err := os.OpenFile(c.log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return
	}
	_, err = f.Write(append(entry, '\n'))
	if err := errors.Join(err, f.Close()); err != nil {
		c.say("the engine's log: %v", err)
	}
}

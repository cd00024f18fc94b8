package container

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Config says what a container is made of and runs.
type Config struct {
	Args []string // the command; Args[0] is a path inside
	Env  []string // besides PATH and HOME
	Cwd  string   // "": /

	Programs []string          // host programs, by name or path: they keep their path inside
	Files    map[string]string // path inside -> host file, with its libraries
	Trees    []string          // host folders that keep their path inside
	Python   bool              // the host's python3, at PythonPath, with its standard library
	Binds    []Bind

	Annotations      map[string]string
	Prestart         []string // command of the prestart hook; none: no hook
	MemoryLimitBytes int64    // 0: none
	ReadOnly         bool     // the root file system

	Stdout, Stderr io.Writer // nil: the end is kept, for Output

	Dir     string // where the container's folder is made; "": /var/tmp
	Runtime string // "": runc
}

// Bind mounts a host folder or file into the container.
type Bind struct {
	Host, Inside string
	ReadOnly     bool
}

// Hook is farpage's prestart hook: the program in a bin folder, announcing to the
// agent whose sockets are in socketDir.
func Hook(bin, socketDir string) []string {
	return []string{filepath.Join(bin, "farpage-hook"), "--socket-dir", socketDir, "prestart"}
}

// Missing says what keeps containers from running here, in words that tell what to
// do; nil when nothing does.
func Missing(programs ...string) error {
	if os.Geteuid() != 0 {
		return errors.New("containers need root: run this with sudo")
	}
	for _, program := range append([]string{"runc"}, programs...) {
		if _, err := exec.LookPath(program); err != nil {
			return fmt.Errorf("%s is not installed: apt-get install %[1]s", program)
		}
	}
	return nil
}

// Container is a container that Start has started.
type Container struct {
	id      string
	runtime string
	base    string // everything of ours on disk
	pid     int
	cgroup  *cgroup
	run     *exec.Cmd     // `runc run`, which stays until the container ends
	ended   chan struct{} // closed when run has been waited for
	output  tail

	closeOnce sync.Once
	closeErr  error
}

// Start makes the root file system and the bundle and runs the container; it
// returns when the program has been started. Cancelling ctx while it starts undoes
// everything; afterwards ctx has no part in it. The caller ends it with Close.
func Start(ctx context.Context, cfg Config) (*Container, error) {
	c, err := prepare(cfg)
	if err == nil {
		err = c.start(ctx, cfg)
	}
	if err != nil {
		return nil, fmt.Errorf("start container: %w", errors.Join(err, c.Close()))
	}
	return c, nil
}

// prepare makes all that is on disk. What it returns is to be closed also when
// there is an error.
func prepare(cfg Config) (*Container, error) {
	var random [6]byte
	_, _ = rand.Read(random[:]) // never fails
	c := &Container{
		id:      "farpage-container-" + hex.EncodeToString(random[:]),
		runtime: cfg.Runtime,
		ended:   make(chan struct{}),
	}
	if c.runtime == "" {
		c.runtime = "runc"
	}
	parent := cfg.Dir
	if parent == "" {
		parent = "/var/tmp"
	}
	var err error
	if c.cgroup, err = findCgroup("/" + c.id); err != nil {
		return c, err
	}
	base := filepath.Join(parent, c.id)
	if err := os.Mkdir(base, 0o755); err != nil {
		return c, fmt.Errorf("make the container's folder: %w", err)
	}
	c.base = base
	if err := WriteRootfs(filepath.Join(base, "rootfs"), cfg); err != nil {
		return c, err
	}
	return c, writeBundle(base, "/"+c.id, cfg)
}

// WriteRootfs lays out in dir, which must not exist yet, the root file system that a
// container of this configuration has.
func WriteRootfs(dir string, cfg Config) error {
	root, err := newRootfs(dir)
	if err != nil {
		return err
	}
	for _, program := range cfg.Programs {
		path, err := exec.LookPath(program)
		if err != nil {
			return fmt.Errorf("look for a program to copy: %w", err)
		}
		if err := root.put(path, path); err != nil {
			return err
		}
	}
	for inside, host := range cfg.Files {
		if err := root.put(host, inside); err != nil {
			return err
		}
	}
	for _, tree := range cfg.Trees {
		if err := root.putTree(tree); err != nil {
			return err
		}
	}
	if cfg.Python {
		if err := root.putPython(); err != nil {
			return err
		}
	}
	return nil
}

// start runs the bundle and waits until its program has been started.
func (c *Container) start(ctx context.Context, cfg Config) error {
	pidFile := filepath.Join(c.base, "pid")
	c.run = c.command(context.Background(), "run", "--bundle", c.base, "--pid-file", pidFile, c.id)
	c.run.Stdout, c.run.Stderr = c.tee(cfg.Stdout), c.tee(cfg.Stderr)
	if err := c.run.Start(); err != nil {
		c.run = nil
		return fmt.Errorf("start %s: %w", c.runtime, err)
	}
	go func() {
		defer close(c.ended)
		_ = c.run.Wait() // Wait reads the status from ProcessState
	}()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-c.ended:
			// A program that has come and gone already did start.
			if c.readPid(pidFile) {
				return nil
			}
			return fmt.Errorf("%s run: %s: %s", c.runtime, c.run.ProcessState, c.Output())
		case <-tick.C:
			if c.readPid(pidFile) {
				return nil
			}
		}
	}
}

// tee keeps the end of what goes to a writer of the caller's.
func (c *Container) tee(out io.Writer) io.Writer {
	if out == nil {
		return &c.output
	}
	return io.MultiWriter(out, &c.output)
}

func (c *Container) readPid(file string) bool {
	text, err := os.ReadFile(file)
	if err != nil {
		return false
	}
	c.pid, err = strconv.Atoi(strings.TrimSpace(string(text)))
	return err == nil
}

// command is a call of the runtime, in a process group of its own: an interrupt
// from the terminal is for us, who then end things in order.
func (c *Container) command(ctx context.Context, args ...string) *exec.Cmd {
	args = append([]string{"--root", filepath.Join(c.base, "state")}, args...)
	cmd := exec.CommandContext(ctx, c.runtime, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// ID is the container's id, by which the agent knows it too.
func (c *Container) ID() string { return c.id }

// Pid is the container's first process, in our pid namespace.
func (c *Container) Pid() int { return c.pid }

// Pids lists the container's processes, in our pid namespace; none once it has
// ended.
func (c *Container) Pids() ([]int, error) { return c.cgroup.pids() }

// CgroupDir is the container's cgroup folder that accounts memory.
func (c *Container) CgroupDir() string { return c.cgroup.dir() }

// Rootfs is the host's path of the container's root file system.
func (c *Container) Rootfs() string { return filepath.Join(c.base, "rootfs") }

// Output is the end of what the runtime and the program wrote, to tell why they
// failed.
func (c *Container) Output() string { return c.output.String() }

// Kill sends a signal to the container's first process.
func (c *Container) Kill(sig syscall.Signal) error {
	out, err := c.command(context.Background(), "kill", c.id, strconv.Itoa(int(sig))).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s kill: %w: %s", c.runtime, err, bytes.TrimSpace(out))
	}
	return nil
}

// Exec runs one more program in the container, as its user, and returns what it
// wrote, standard error included.
func (c *Container) Exec(ctx context.Context, args ...string) ([]byte, error) {
	return c.exec(ctx, append([]string{c.id}, args...)...)
}

func (c *Container) exec(ctx context.Context, args ...string) ([]byte, error) {
	out, err := c.command(ctx, append([]string{"exec"}, args...)...).CombinedOutput()
	if err != nil {
		return out, fmt.Errorf("%s exec %q: %w: %s", c.runtime, args, err, bytes.TrimSpace(out))
	}
	return out, nil
}

// ExecProcess is Exec as engines do it: the process is described by a file, with an
// environment that says nothing of farpage.
func (c *Container) ExecProcess(ctx context.Context, args ...string) ([]byte, error) {
	text, err := json.Marshal(spec("", Config{Args: args}).Process)
	if err != nil {
		return nil, err
	}
	file := filepath.Join(c.base, "process.json")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		return nil, err
	}
	return c.exec(ctx, "--process", file, c.id)
}

// Ended is closed when the container has ended.
func (c *Container) Ended() <-chan struct{} { return c.ended }

// Wait returns the exit status of the container's first process when it has
// ended; 128+n for a signal.
func (c *Container) Wait(ctx context.Context) (int, error) {
	select {
	case <-ctx.Done():
		return 0, fmt.Errorf("wait for container: %w", ctx.Err())
	case <-c.ended:
		return c.run.ProcessState.ExitCode(), nil
	}
}

// Close kills what still runs and removes the container, its cgroup, mounts and
// folders. What it could not remove is in the error. It may be called again.
func (c *Container) Close() error {
	c.closeOnce.Do(func() {
		if err := c.remove(); err != nil {
			c.closeErr = fmt.Errorf("remove container %s: %w", c.id, err)
		}
	})
	return c.closeErr
}

func (c *Container) remove() error {
	const patience = 10 * time.Second
	var errs []error
	if c.run != nil {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		// Interrupted while it starts: the runtime would go on with its setup, and a
		// hook with its work.
		if c.pid == 0 {
			c.killRuntime()
		}
		if out, err := c.command(ctx, "delete", "--force", c.id).CombinedOutput(); err != nil {
			errs = append(errs, fmt.Errorf("%s delete: %w: %s", c.runtime, err, bytes.TrimSpace(out)))
		}
	}
	if c.cgroup != nil {
		errs = append(errs, c.cgroup.kill(patience))
	}
	if c.run != nil {
		select {
		case <-c.ended:
		case <-time.After(patience):
			c.killRuntime()
		}
	}
	if c.cgroup != nil {
		errs = append(errs, c.cgroup.remove(patience))
	}
	if c.base != "" {
		errs = append(errs, RemoveTree(c.base))
	}
	return errors.Join(errs...)
}

// killRuntime ends `runc run` and the hooks that it waits for.
func (c *Container) killRuntime() {
	select {
	case <-c.ended: // its pid may be another's by now
	default:
		_ = syscall.Kill(-c.run.Process.Pid, syscall.SIGKILL)
	}
	<-c.ended
}

// tail keeps the end of what is written to it.
type tail struct {
	mu   sync.Mutex
	text []byte // guarded by mu
}

func (t *tail) Write(p []byte) (int, error) {
	const keepBytes = 8 << 10
	t.mu.Lock()
	defer t.mu.Unlock()
	t.text = append(t.text, p...)
	if len(t.text) > 2*keepBytes {
		t.text = append(t.text[:0], t.text[len(t.text)-keepBytes:]...)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimSpace(string(t.text))
}

package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/farpage/farpage/api"
	"github.com/farpage/farpage/handler/keeper"
	"github.com/farpage/farpage/oci/policy"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// Exit statuses as docker run's.
const (
	statusFailed        = 125
	statusNotExecutable = 126
	statusNotFound      = 127
	statusSignal        = 128
)

type runOptions struct {
	local, far, store, stats string
}

func runCommand() *cobra.Command {
	var o runOptions
	c := &cobra.Command{
		Use:   "run --local SIZE [flags] -- CMD ARG...",
		Short: "Run a command within a local-memory budget, without a container",
		Long: `Run a command within a local-memory budget, without a container.

A private agent serves the command and what it starts. Exit status: the command's
own; 128+n when signal n ended it; 125 when farpage itself failed, 126 when the
command cannot be executed, 127 when it is not found.`,
		Example: `  sudo farpage run --local 256Mi -- python3 job.py
  sudo farpage run --local 64Mi --stats run.json -- redis-server`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			status, err := o.run(args)
			if err != nil {
				fmt.Fprintf(os.Stderr, "farpage: %v\n", err)
			}
			return exitStatus(status)
		},
	}
	c.Flags().SetInterspersed(false)
	c.Flags().StringVar(&o.local, "local", "", "how much memory may be resident, for example 256Mi (required)")
	c.Flags().StringVar(&o.far, "far", "", "how much may be far (default unlimited)")
	c.Flags().StringVar(&o.store, "store", "mem:", "where far pages live: mem: (compressed RAM) or file:///PATH?max=SIZE")
	c.Flags().StringVar(&o.stats, "stats", "", "write statistics (JSON) to this file at the end")
	return c
}

// policy makes the run's policy of its flags.
func (o runOptions) policy() (policy.Policy, error) {
	if o.local == "" {
		return policy.Policy{}, errors.New("--local SIZE is missing: how much memory may be resident, for example --local 256Mi")
	}
	a := map[string]string{policy.KeyLocal: o.local, policy.KeyFar: "unlimited"}
	if o.far != "" {
		a[policy.KeyFar] = o.far
	}
	p, _, err := policy.Parse(a, 0)
	var wrong *policy.AnnotationError
	if errors.As(err, &wrong) { // the user has typed a flag, and a command has no memory limit
		problem, allowed := wrong.Problem, strings.Replace(wrong.Allowed, policy.ShareForm, "", 1)
		if strings.HasSuffix(wrong.Value, "%") {
			problem = "a command has no memory limit that this could be a share of"
		}
		return p, fmt.Errorf("%s %s: %s; allowed: %s", strings.Replace(wrong.Key, policy.Prefix, "--", 1), wrong.Value, problem, allowed)
	}
	return p, err
}

// checkStats says why statistics could not be written to a file: at the end, when the
// command has done its work, it is too late to choose another.
func checkStats(file string) error {
	if file == "" {
		return nil
	}
	what := file
	info, err := os.Stat(file)
	switch {
	case err == nil && info.IsDir():
		return fmt.Errorf("--stats %s: that is a folder: give the path of a file, such as %s", file, filepath.Join(file, "stats.json"))
	case errors.Is(err, fs.ErrNotExist):
		what = filepath.Dir(file)
		_, err = os.Stat(what)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("--stats %s: there is no folder %s: make it or choose another path", file, what)
	case err == nil:
		err = unix.Access(what, unix.W_OK)
	}
	if err != nil {
		return fmt.Errorf("--stats %s: it cannot be written: %w: choose another path", file, err)
	}
	return nil
}

func (o runOptions) run(args []string) (int, error) {
	p, err := o.policy()
	if err != nil {
		return statusFailed, err
	}
	if os.Geteuid() != 0 {
		return statusFailed, errors.New("run needs root: type sudo farpage run")
	}
	if err := checkStats(o.stats); err != nil {
		return statusFailed, err
	}
	path, status, err := lookUp(args[0])
	if err != nil {
		return status, err
	}
	if reason := unmanageable(path); reason != "" {
		fmt.Fprintf(os.Stderr, "farpage: %s runs unmanaged: %s\n", args[0], reason)
	}
	private, err := startPrivate(o.store)
	if err != nil {
		return statusFailed, withLimits(err)
	}
	reply, err := private.client.Add(context.Background(), api.AddRequest{
		ID: private.id, Name: filepath.Base(path), Pid: os.Getpid(), Policy: p,
	})
	if err != nil {
		private.end()
		return statusFailed, withLimits(err)
	}
	status, err = command(path, args, filepath.Join(reply.Dir, "libfarpage.so"))
	if o.stats != "" {
		if serr := private.writeStats(o.stats); serr != nil && err == nil {
			err = serr
		}
	}
	return status, err
}

// lookUp finds the command as a shell does.
func lookUp(name string) (path string, status int, err error) {
	path, err = exec.LookPath(name)
	if err == nil || errors.Is(err, exec.ErrDot) {
		return path, 0, nil
	}
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, unix.EISDIR) {
		return "", statusNotExecutable, fmt.Errorf("%s cannot be executed: %w", name, errors.Unwrap(err))
	}
	return "", statusNotFound, fmt.Errorf("%s: command not found", name)
}

// command runs the command with our library behind those that are preloaded
// already, and returns its exit status.
func command(path string, args []string, library string) (int, error) {
	env := os.Environ()
	preload := "LD_PRELOAD=" + library
	for i, v := range env {
		if old, ok := strings.CutPrefix(v, "LD_PRELOAD="); ok {
			if old != "" {
				preload = v + ":" + library
			}
			env = append(env[:i], env[i+1:]...)
			break
		}
	}
	// Go passes on what has no close-on-exec flag: descriptors from 3 on are the
	// command's as they are ours.
	signals := make(chan os.Signal, 64)
	for _, s := range forwarded {
		if !signal.Ignored(s) {
			signal.Notify(signals, s)
		}
	}
	process, err := start(path, args, &os.ProcAttr{
		Env: append(env, preload), Files: []*os.File{os.Stdin, os.Stdout, os.Stderr},
	})
	if err != nil {
		return startFailed(path, err)
	}
	go func() {
		for s := range signals {
			if !fromTerminal(s) {
				_ = process.Signal(s) // by pidfd; it may have ended just now
			}
		}
	}()
	ended, err := process.Wait()
	if err != nil {
		return statusFailed, err
	}
	if ws, ok := ended.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return statusSignal + int(ws.Signal()), nil
	}
	return ended.ExitCode(), nil
}

// forwarded are the signals that are passed on to the command.
var forwarded = []os.Signal{
	unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGUSR1, unix.SIGUSR2, unix.SIGALRM, unix.SIGVTALRM,
	unix.SIGWINCH, unix.SIGCONT, unix.SIGIO, unix.SIGPWR,
}

// fromTerminal says whether a signal came from a key: then the terminal has sent
// it to the command too.
func fromTerminal(s os.Signal) bool {
	if s != unix.SIGINT && s != unix.SIGQUIT && s != unix.SIGWINCH {
		return false
	}
	tty, err := unix.Open("/dev/tty", unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	if err != nil {
		return false
	}
	defer unix.Close(tty)
	foreground, err := unix.IoctlGetInt(tty, unix.TIOCGPGRP)
	return err == nil && foreground == unix.Getpgrp()
}

// privateAgent is the agent of one run.
type privateAgent struct {
	id, dir string
	client  *api.Client
	start   func() (*exec.Cmd, error)
	process atomic.Pointer[os.Process]
	up      atomic.Bool // it has answered once
	ending  atomic.Bool // its end is wanted
}

// startPrivate starts an agent of our own and waits until it answers.
func startPrivate(storeURL string) (*privateAgent, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	base, err := runFolder()
	if err != nil {
		return nil, err
	}
	// The id is the short, public part of the name.
	p := &privateAgent{id: filepath.Base(base)[:len("run-")+8], dir: base, client: api.NewClientIn(base)}
	p.start = func() (*exec.Cmd, error) { return p.spawn(self, storeURL) }
	c, err := p.start()
	if err != nil {
		p.removeFolder()
		return nil, err
	}
	ended := make(chan struct{})
	go func() {
		_ = c.Wait()
		close(ended)
		p.supervise()
	}()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for {
		if _, err := p.client.List(ctx); err == nil {
			p.up.Store(true)
			return p, nil
		}
		select {
		case <-ended:
			b, _ := os.ReadFile(p.logPath())
			p.removeFolder()
			return nil, fmt.Errorf("the private agent did not start: %s", strings.TrimPrefix(strings.TrimSpace(string(b)), "farpage: "))
		case <-ctx.Done():
			return nil, fmt.Errorf("the private agent (pid %d) does not answer; its log is %s", c.Process.Pid, p.logPath())
		case <-time.After(2 * time.Millisecond):
		}
	}
}

func (p *privateAgent) logPath() string { return filepath.Join(p.dir, "agent.log") }

// spawn starts the agent's process.
func (p *privateAgent) spawn(self, storeURL string) (*exec.Cmd, error) {
	log, err := os.OpenFile(p.logPath(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	c := &exec.Cmd{
		Path: self, Args: []string{"farpage", "agent", "--private", "--store", storeURL},
		Dir: "/", Stdin: null, Stdout: log, Stderr: log,
		// Everybody can read a command line, only root this environment.
		Env:         []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", privateDirVariable + "=" + p.dir},
		SysProcAttr: &syscall.SysProcAttr{Setsid: true},
	}
	if err := closeOnExec(c.Start); err != nil {
		return nil, fmt.Errorf("start the private agent: %w", err)
	}
	p.process.Store(c.Process)
	return c, nil
}

// supervise starts the agent again when it has died: the next one goes on where it
// stopped.
func (p *privateAgent) supervise() {
	said := false
	for p.up.Load() && !p.ending.Load() {
		if _, err := os.Stat(filepath.Join(p.dir, "state")); err != nil {
			return // it has ended by itself, with nothing to serve
		}
		begun := time.Now()
		c, err := p.start()
		if err != nil {
			fmt.Fprintf(os.Stderr, "farpage: the private agent has died and cannot be started again: %v; the command waits for its memory\n", err)
			return
		}
		_ = c.Wait()
		if c.ProcessState.ExitCode() > 0 && !said {
			said = true
			fmt.Fprintf(os.Stderr, "farpage: the private agent has died and does not start again (%s says why): the command waits for its memory, and it is tried again\n", p.logPath())
		}
		if time.Since(begun) < time.Second {
			time.Sleep(100 * time.Millisecond)
		}
	}
}

// privateDirVariable tells a private agent its folder.
const privateDirVariable = "FARPAGE_PRIVATE_DIR"

// runFolder makes a folder that a library can be mapped from (/run is mounted noexec
// on some hosts) and that nobody can guess: programs of the run reach it as whatever
// user they become, others on the host must not.
func runFolder() (string, error) {
	var errs error
	for _, parent := range []string{api.DefaultSocketDir, "/var/lib/farpage"} {
		// Not to be listed: the name of a run's folder is its key.
		if err := errors.Join(os.MkdirAll(parent, 0o711), os.Chmod(parent, 0o711)); err != nil {
			errs = errors.Join(errs, err)
			continue
		}
		var st unix.Statfs_t
		if err := unix.Statfs(parent, &st); err != nil || st.Flags&unix.ST_NOEXEC != 0 {
			errs = errors.Join(errs, err, fmt.Errorf("%s is mounted noexec", parent))
			continue
		}
		var key [16]byte
		if _, err := rand.Read(key[:]); err != nil {
			return "", err
		}
		dir := filepath.Join(parent, "run-"+hex.EncodeToString(key[:]))
		if err := os.Mkdir(dir, 0o711); err != nil {
			errs = errors.Join(errs, err)
			continue
		}
		return dir, os.Chmod(dir, 0o711) // whatever our umask is
	}
	return "", fmt.Errorf("no folder for the run's files: %w", errs)
}

// closeOnExec starts the agent without the descriptors that are the command's.
func closeOnExec(start func() error) error {
	const first = 3
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return err
	}
	var restore []int
	for _, d := range fds {
		var fd int
		if _, err := fmt.Sscanf(d.Name(), "%d", &fd); err != nil || fd < first {
			continue
		}
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil && flags&unix.FD_CLOEXEC == 0 {
			unix.CloseOnExec(fd)
			restore = append(restore, fd)
		}
	}
	err = start()
	for _, fd := range restore {
		_, _ = unix.FcntlInt(uintptr(fd), unix.F_SETFD, 0)
	}
	return err
}

// end ends an agent that has nothing to serve.
func (p *privateAgent) end() {
	p.ending.Store(true)
	if c := p.process.Load(); c != nil {
		_ = c.Signal(unix.SIGTERM)
	}
	for range 200 {
		if _, err := os.Stat(p.dir); err != nil {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	// It was dead already: there is nothing but its keeper and its folder.
	if r, alive, err := keeper.Read(filepath.Join(p.dir, "state")); err == nil && alive {
		keeper.End(r.Pid, r.Start)
	}
	p.removeFolder()
}

// removeFolder removes what a run without an agent leaves on disk.
func (p *privateAgent) removeFolder() {
	_ = os.RemoveAll(p.dir)
	_ = os.Remove(filepath.Dir(p.dir)) // only if nothing else is in it
}

// writeStats writes the run's statistics.
func (p *privateAgent) writeStats(file string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	s, err := p.client.Get(ctx, p.id)
	if err != nil {
		return fmt.Errorf("statistics: %w", err)
	}
	b, err := json.MarshalIndent(s.Stats, "", "  ")
	if err != nil {
		return err
	}
	if err := writeWhole(file, append(b, '\n')); err != nil {
		line, _ := json.Marshal(s.Stats)                                  // as above
		return fmt.Errorf("write statistics: %w; they are %s", err, line) // not lost
	}
	return nil
}

// writeWhole writes a file, and leaves nothing in it if not all finds room.
func writeWhole(file string, content []byte) error {
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	if _, err = f.Write(content); err != nil {
		_ = f.Truncate(0) // what is no file has nothing in it
	}
	return errors.Join(err, f.Close())
}

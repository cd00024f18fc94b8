package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/farpage/farpage/handler/agent"
	"github.com/farpage/farpage/handler/check"
	"github.com/farpage/farpage/handler/config"
	"github.com/farpage/farpage/handler/keeper"
	"github.com/farpage/farpage/oci/policy"
	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// agentFlags are the flags of `farpage agent`: each stands above the file's option.
type agentFlags struct {
	file        string
	store       string
	flags       config.Config
	printConfig bool
	private     bool
}

func agentCommand() *cobra.Command {
	var f agentFlags
	c := &cobra.Command{
		Use:   "agent",
		Short: "Serve the containers of this host, in the foreground",
		Long: `Serve the containers of this host, in the foreground.

The agent may be killed and started again at any time: a small process, the
keeper, holds every descriptor, and the next agent of the same --state-dir goes on
where the last one stopped. Stopped with no container left, it leaves nothing.

Options come from the file of --config, and from flags, which stand above it.`,
		Example: `  sudo farpage agent
  sudo farpage agent --config /etc/farpage/config.toml
  sudo farpage agent --socket-dir /run/test --state-dir /run/test/state --store mem:
  farpage agent --print-config > config.toml`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			cfg, err := f.config(c)
			if err != nil {
				return err
			}
			if f.printConfig {
				text, err := cfg.Text()
				if err == nil {
					fmt.Print(text)
				}
				return err
			}
			return runAgent(cfg, f.private)
		},
	}
	d := config.Default()
	fs := c.Flags()
	fs.StringVar(&f.file, "config", config.DefaultPath, "configuration file (TOML)")
	fs.StringVar(&f.flags.SocketDir, "socket-dir", d.SocketDir, "folder of the agent's sockets")
	fs.StringVar(&f.flags.StateDir, "state-dir", d.StateDir, "folder that tells the next agent what this one served")
	fs.StringVar(&f.store, "store", "mem:", "URL of the store `default`")
	fs.StringToStringVar(&f.flags.Stores, "stores", nil, "more stores, as NAME=URL,...")
	fs.StringVar(&f.flags.LogLevel, "log-level", d.LogLevel, "error, warn, info or debug")
	fs.StringVar(&f.flags.LogFormat, "log-format", d.LogFormat, "text or json")
	fs.BoolVar(&f.flags.Environment, "environment", false, "take FARPAGE_LOCAL, ... of a container's environment as annotations")
	fs.StringVar(&f.flags.Bounds.MaxLocal, "max-local", "", "largest io.farpage.local that containers may ask for")
	fs.StringVar(&f.flags.Bounds.MaxFar, "max-far", "", "largest io.farpage.far that containers may ask for")
	fs.StringSliceVar(&f.flags.Bounds.Stores, "allow-stores", nil, "names of the stores that containers may use (default all)")
	fs.BoolVar(&f.printConfig, "print-config", false, "print the configuration in force, as a file, and exit")
	fs.BoolVar(&f.private, "private", false, "end with the last container (used by farpage run)")
	if err := fs.MarkHidden("private"); err != nil {
		panic(err)
	}
	return c
}

// config is the file's configuration under the flags that were given.
func (f *agentFlags) config(c *cobra.Command) (config.Config, error) {
	given := c.Flags().Changed
	cfg := config.Default()
	if !f.private || given("config") {
		var err error
		if cfg, err = config.Load(f.file, given("config")); err != nil {
			return cfg, err
		}
	}
	if dir := os.Getenv(privateDirVariable); f.private && dir != "" {
		cfg.SocketDir, cfg.StateDir = dir, filepath.Join(dir, "state")
	}
	if given("socket-dir") {
		cfg.SocketDir = f.flags.SocketDir
	}
	if given("state-dir") {
		cfg.StateDir = f.flags.StateDir
	}
	if given("log-level") {
		cfg.LogLevel = f.flags.LogLevel
	}
	if given("log-format") {
		cfg.LogFormat = f.flags.LogFormat
	}
	if given("environment") {
		cfg.Environment = f.flags.Environment
	}
	if given("max-local") {
		cfg.Bounds.MaxLocal = f.flags.Bounds.MaxLocal
	}
	if given("max-far") {
		cfg.Bounds.MaxFar = f.flags.Bounds.MaxFar
	}
	if given("allow-stores") {
		cfg.Bounds.Stores = f.flags.Bounds.Stores
	}
	maps.Copy(cfg.Stores, f.flags.Stores)
	if given("store") {
		cfg.Stores[policy.DefaultStore] = f.store
	}
	return cfg, cfg.Check()
}

func newLogger(cfg config.Config, output io.Writer) (*logrus.Logger, error) {
	log := logrus.New()
	log.SetOutput(output)
	level, err := logrus.ParseLevel(cfg.LogLevel)
	if err != nil {
		return nil, err
	}
	log.SetLevel(level)
	if cfg.LogFormat == "json" {
		log.SetFormatter(&logrus.JSONFormatter{})
	}
	return log, nil
}

// checkHost refuses a host that cannot run farpage. Where programs wait for this agent
// it goes on: they ran here once.
func checkHost(cfg config.Config, private bool, log *logrus.Logger) error {
	if os.Geteuid() != 0 {
		return nil // the agent has words of its own for that
	}
	refusal := check.ThisHost().Refusal(!private)
	if refusal == nil {
		return nil
	}
	if _, waiting, err := keeper.Read(cfg.StateDir); err != nil || !waiting {
		return refusal
	}
	log.Warnf("%v; what the last agent served is taken over all the same", refusal)
	return nil
}

// fromSystemd returns the socket that systemd listens on for the agent (sd_listen_fds(3)),
// nil when it was not started so.
func fromSystemd() (net.Listener, error) {
	listeners, err := activation.Listeners()
	switch {
	case err != nil:
		return nil, fmt.Errorf("take the socket that systemd has made: %w", err)
	case len(listeners) == 0:
		return nil, nil
	case len(listeners) > 1 || listeners[0] == nil:
		return nil, fmt.Errorf("systemd gave %d sockets, and the agent takes one, of ListenStream=: mend farpage.socket", len(listeners))
	}
	return listeners[0], nil
}

func runAgent(cfg config.Config, private bool) error {
	// The heap is small and steady; collecting it rarely keeps pauses rare.
	debug.SetGCPercent(400)
	unix.Umask(0o022) // containers read what we write for them
	liftLimits()
	if private { // it has no output of anybody's
		return serve(cfg, true, os.Stderr)
	}
	output, err := keeper.Output()
	if err != nil {
		return err
	}
	if output != io.Writer(os.Stderr) {
		reportCrashes()
	}
	if err := serve(cfg, false, output); err != nil {
		fmt.Fprintf(output, "farpage: %v\n", err)
		return exitStatus(1)
	}
	return nil
}

// terminationLog is the file that a kubelet shows as why a container has ended.
const terminationLog = "/dev/termination-log"

// reportCrashes has Go write what a crash says there, where there is such a file: it
// does not reach the log once that is another thread's.
func reportCrashes() {
	file, err := os.OpenFile(terminationLog, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return
	}
	defer file.Close()
	_ = debug.SetCrashOutput(file, debug.CrashOptions{}) // then there is no such report
}

// serve is the agent until it is told to stop, or a private one is not needed any more.
func serve(cfg config.Config, private bool, output io.Writer) error {
	log, err := newLogger(cfg, output)
	if err != nil {
		return err
	}
	if err := checkHost(cfg, private, log); err != nil {
		return err
	}
	listener, err := fromSystemd()
	if err != nil {
		return err
	}
	a, err := agent.Start(agent.Options{Config: cfg, Version: version, Private: private, Listener: listener, Log: log})
	if err != nil {
		return err
	}
	l, err := a.Listen()
	if err != nil {
		return errors.Join(err, a.Stop())
	}
	server := a.Serve(l)
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, unix.SIGTERM, unix.SIGINT)
	if private {
		signal.Ignore(unix.SIGINT, unix.SIGHUP)
	}
	if _, err := daemon.SdNotify(false, daemon.SdNotifyReady); err != nil {
		log.Warnf("tell systemd that the agent is ready: %v", err)
	}
	select {
	case <-stop:
	case <-a.Empty():
	}
	_, _ = daemon.SdNotify(false, daemon.SdNotifyStopping) // what it says to systemd now changes nothing
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	if err := server.Shutdown(ctx); err != nil {
		_ = server.Close()
	}
	if err := a.Stop(); err != nil {
		return fmt.Errorf("stop: %w", err)
	}
	return nil
}

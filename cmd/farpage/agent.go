package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/farpage/farpage/handler/agent"
	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

const defaultStateDir = "/run/farpage/state"

func agentCommand() *cobra.Command {
	var o agent.Options
	c := &cobra.Command{
		Use:   "agent",
		Short: "Serve the containers of this host, in the foreground",
		Long: `Serve the containers of this host, in the foreground.

The agent may be killed and started again at any time: a small process, the
keeper, holds every descriptor, and the next agent of the same --state-dir goes on
where the last one stopped. Stopped with no container left, it leaves nothing.`,
		Example: `  sudo farpage agent
  sudo farpage agent --socket-dir /run/test --state-dir /run/test/state --store mem:`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return runAgent(o) },
	}
	socketDirFlag(c, &o.SocketDir)
	c.Flags().StringVar(&o.StateDir, "state-dir", defaultStateDir, "folder that tells the next agent what this one served")
	c.Flags().StringVar(&o.StoreURL, "store", "mem:", "where far pages live: mem: (compressed RAM)")
	c.Flags().BoolVar(&o.Private, "private", false, "end with the last container (used by farpage run)")
	if err := c.Flags().MarkHidden("private"); err != nil {
		panic(err)
	}
	return c
}

func runAgent(o agent.Options) error {
	// The heap is small and steady; collecting it rarely keeps pauses rare.
	debug.SetGCPercent(400)
	o.Log = logrus.New()
	o.Log.SetOutput(os.Stderr)
	a, err := agent.Start(o)
	if err != nil {
		return err
	}
	l, err := a.Listen()
	if err != nil {
		return err
	}
	server := a.Serve(l)
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, unix.SIGTERM, unix.SIGINT)
	if o.Private {
		signal.Ignore(unix.SIGINT, unix.SIGHUP)
	}
	if _, err := daemon.SdNotify(false, daemon.SdNotifyReady); err != nil {
		o.Log.Warnf("tell systemd that the agent is ready: %v", err)
	}
	select {
	case <-stop:
	case <-a.Empty():
	}
	_, _ = daemon.SdNotify(false, daemon.SdNotifyStopping)
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

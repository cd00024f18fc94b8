// Command farpage is the host agent and the command line.
package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/farpage/farpage/api"
	"github.com/spf13/cobra"
)

// exitStatus is an error that only sets the exit status: what there was to say has
// been said.
type exitStatus int

func (s exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(s)) }

// version is set by the build (-X main.version).
var version = "development"

func main() {
	root := &cobra.Command{
		Use:   "farpage",
		Short: "Far memory for containers: run within a local-RAM budget, the rest lives elsewhere",
		Example: `  sudo farpage run --local 256Mi -- python3 job.py
  sudo farpage agent
  sudo farpage ps`,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddCommand(agentCommand(), runCommand(), psCommand(), statCommand(), evictCommand(), setCommand(), checkCommand(), installCommand(), uninstallCommand())
	sayWhereHelpIs(root)
	root.Version = version
	root.AddCommand(manCommand(root))
	if err := root.Execute(); err != nil {
		var status exitStatus
		if errors.As(err, &status) {
			os.Exit(int(status))
		}
		fmt.Fprintf(os.Stderr, "farpage: %v\n", err)
		if len(os.Args) > 1 && os.Args[1] == "run" {
			os.Exit(statusFailed)
		}
		os.Exit(1)
	}
}

// sayWhereHelpIs has what is wrong with a command line end with where to read on.
func sayWhereHelpIs(root *cobra.Command) {
	more := func(c *cobra.Command, err error) error {
		if err == nil {
			return nil
		}
		return fmt.Errorf("%w (see `%s --help`)", err, c.CommandPath())
	}
	root.SetFlagErrorFunc(more)
	for _, c := range root.Commands() {
		check := c.Args
		c.Args = func(c *cobra.Command, args []string) error { return more(c, check(c, args)) }
	}
}

// watchFlag adds --watch.
func watchFlag(c *cobra.Command, into *bool) {
	c.Flags().BoolVarP(into, "watch", "w", false, "show anew every second until interrupted")
}

// socketDirFlag adds --socket-dir.
func socketDirFlag(c *cobra.Command, into *string) {
	c.Flags().StringVar(into, "socket-dir", api.DefaultSocketDir, "folder of the agent's sockets")
}

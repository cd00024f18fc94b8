package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/dustin/go-humanize"
	"github.com/farpage/farpage/api"
	"github.com/farpage/farpage/oci/policy"
	"github.com/spf13/cobra"
)

func psCommand() *cobra.Command {
	var dir string
	var asJSON, watch bool
	c := &cobra.Command{
		Use:   "ps",
		Short: "List containers and their processes",
		Example: `  sudo farpage ps
  sudo farpage ps --watch
  sudo farpage ps --json`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return show(c.Context(), watch, func(ctx context.Context, w io.Writer) error {
				all, err := api.NewClientIn(dir).List(ctx)
				if err != nil {
					return err
				}
				if asJSON {
					return writeJSON(w, all)
				}
				return writeList(w, all)
			})
		},
	}
	socketDirFlag(c, &dir)
	watchFlag(c, &watch)
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func statCommand() *cobra.Command {
	var dir string
	var asJSON, watch bool
	c := &cobra.Command{
		Use:   "stat ID",
		Short: "Show one container's statistics",
		Example: `  sudo farpage stat redis
  sudo farpage stat redis --watch
  sudo farpage stat 3f4a --json`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return show(c.Context(), watch, func(ctx context.Context, w io.Writer) error {
				s, err := api.NewClientIn(dir).Get(ctx, args[0])
				if err != nil {
					return err
				}
				if asJSON {
					return writeJSON(w, s)
				}
				return writeStat(w, s)
			})
		},
	}
	socketDirFlag(c, &dir)
	watchFlag(c, &watch)
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func evictCommand() *cobra.Command {
	var dir, size string
	var all bool
	c := &cobra.Command{
		Use:   "evict ID (--bytes SIZE | --all)",
		Short: "Send pages of a container far now, whatever its watermarks say",
		Example: `  sudo farpage evict redis --bytes 64Mi
  sudo farpage evict redis --all`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			req := api.EvictRequest{All: all}
			if (size != "") == all {
				return errors.New("say how much to evict: --bytes SIZE or --all")
			}
			if size != "" {
				n, err := policy.ParseSize(size)
				if err != nil {
					return fmt.Errorf("--bytes: %w", err)
				}
				req.Bytes = n
			}
			reply, err := api.NewClientIn(dir).Evict(c.Context(), args[0], req)
			if err != nil {
				return err
			}
			fmt.Printf("%d pages (%s) evicted\n", reply.EvictedPages, humanize.IBytes(uint64(reply.EvictedPages)*4096))
			return nil
		},
	}
	socketDirFlag(c, &dir)
	c.Flags().StringVar(&size, "bytes", "", "how much, for example 64Mi")
	c.Flags().BoolVar(&all, "all", false, "all that can be evicted")
	return c
}

func setCommand() *cobra.Command {
	var dir string
	c := &cobra.Command{
		Use:   "set ID local=SIZE far=SIZE",
		Short: "Change a container's budget or far limit at run time",
		Long: `Change a container's budget or far limit at run time, up or down. A smaller
budget is reached by evicting, within a second on an ordinary host.`,
		Example: `  sudo farpage set redis local=128Mi
  sudo farpage set redis local=64Mi far=1Gi
  sudo farpage set redis far=unlimited`,
		Args: cobra.MinimumNArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			req, err := parseSet(args[1:])
			if err != nil {
				return err
			}
			s, err := api.NewClientIn(dir).Set(c.Context(), args[0], req)
			if err != nil {
				return err
			}
			fmt.Printf("%s: local %s, far %s\n", s.ID, size(s.BudgetBytes), size(s.FarLimitBytes))
			return nil
		},
	}
	socketDirFlag(c, &dir)
	return c
}

// parseSet parses local=SIZE and far=SIZE.
func parseSet(args []string) (req api.SetRequest, err error) {
	for _, a := range args {
		key, value, given := strings.Cut(a, "=")
		if key != "local" && key != "far" || !given {
			return req, fmt.Errorf("%s: what can be set is local=SIZE and far=SIZE, such as local=256Mi", a)
		}
		n := policy.Unlimited
		if key == "local" || value != "unlimited" {
			if n, err = policy.ParseSize(value); err != nil {
				return req, fmt.Errorf("%s=%w", key, err)
			}
		}
		if key == "local" {
			req.LocalBytes = &n
		} else {
			req.FarBytes = &n
		}
	}
	return req, nil
}

func writeJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

func size(n int64) string {
	if n < 0 {
		return "unlimited"
	}
	return humanize.IBytes(uint64(n))
}

func writeList(w io.Writer, all []api.Container) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "CONTAINER\tPID\tCOMMAND\tSTATE\tRESIDENT\tBUDGET\tFAR\tFAULTS\tEVICTED\tREASON")
	for _, c := range all {
		id := c.ID
		if len(id) > 12 {
			id = id[:12]
		}
		fmt.Fprintf(t, "%s\t\t%s\t\t%s\t%s\t%s\t%d\t%d\t\n", id, c.Name, size(c.ResidentBytes), size(c.BudgetBytes),
			size(c.FarBytes), c.Faults.Total, c.EvictedPages)
		for _, p := range c.ProcessList {
			fmt.Fprintf(t, "\t%d\t%s\t%s\t\t\t\t\t\t%s\n", p.Pid, p.Command, p.State, p.Reason)
		}
	}
	return t.Flush()
}

func writeStat(w io.Writer, c api.Container) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	row := func(name, format string, args ...any) { fmt.Fprintf(t, "%s\t%s\n", name, fmt.Sprintf(format, args...)) }
	row("container", "%s %s", c.ID, c.Name)
	row("resident", "%s of %s, peak %s", size(c.ResidentBytes), size(c.BudgetBytes), size(c.ResidentPeakBytes))
	row("unevictable", "%s", size(c.UnevictableBytes))
	row("far", "%s of %s, stored in %s; limit hit %d times", size(c.FarBytes), size(c.FarLimitBytes), size(c.StoreBytes), c.FarLimitHits)
	row("processes", "%d managed, %d unmanaged, %d exited; %d forks, %d execs", c.Processes.Managed, c.Processes.Unmanaged,
		c.Processes.Exited, c.Forks, c.Execs)
	row("faults", "%d: %d far, %d zero, %d unexplained; p50 %d µs, p99 %d µs", c.Faults.Total, c.Faults.ServedFar,
		c.Faults.ServedZero, c.Faults.Unexplained, c.Faults.P50Us, c.Faults.P99Us)
	row("stalled", "%d ms in all", c.StallUs/1000)
	row("pages", "%d evicted, %d restored, %d of them ahead of need", c.EvictedPages, c.RestoredPages, c.PrefetchedPages)
	row("errors", "%d store, %d checksum, %d protocol", c.Errors.Store, c.Errors.Checksum, c.Errors.Protocol)
	for _, p := range c.ProcessList {
		row("process", "%d %s: %s %s", p.Pid, p.Command, p.State, p.Reason)
	}
	return t.Flush()
}

package main

import (
	"fmt"
	"os"
	"text/tabwriter"

	"github.com/farpage/farpage/handler/check"
	"github.com/farpage/farpage/oci/install"
	"github.com/spf13/cobra"
)

func checkCommand() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "check",
		Short: "Say whether this host can run farpage, feature by feature, and what to do",
		Long: `Say whether this host can run farpage, feature by feature, which container engines it has,
and what to do.

Exit status 1 when something is missing that farpage does not run without.`,
		Example: `  sudo farpage check
  sudo farpage check --json`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			results, err := withEngines(check.ThisHost().Run())
			if err != nil {
				return err
			}
			if asJSON {
				if err := writeJSON(os.Stdout, results); err != nil {
					return err
				}
			} else if err := writeCheck(results); err != nil {
				return err
			}
			if !check.Usable(results) {
				return exitStatus(1)
			}
			return nil
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

// withEngines adds what there is of container engines, and of farpage in them.
func withEngines(results []check.Result) ([]check.Result, error) {
	bin, err := programFolder()
	if err != nil {
		return nil, err
	}
	for _, s := range install.StatusOf(install.Host{Bin: bin}) {
		results = append(results, check.Result{Name: s.Name, OK: s.OK, Detail: s.Detail, Fix: s.Fix})
	}
	return results, nil
}

func writeCheck(results []check.Result) error {
	t := tabwriter.NewWriter(os.Stdout, 0, 8, 2, ' ', 0)
	for _, r := range results {
		mark := "ok"
		switch {
		case !r.OK && r.Required:
			mark = "MISSING"
		case !r.OK:
			mark = "without"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\n", mark, r.Name, r.Detail)
		if !r.OK && r.Fix != "" {
			fmt.Fprintf(t, "\t\t-> %s\n", r.Fix)
		}
	}
	return t.Flush()
}

package main

import (
	"errors"
	"fmt"
	"io"
)

// slackBytes is what the peak may be above the budget: a quarter of it, and 16 MiB
// at least.
const slackBytes = max(budgetBytes/4, 16*mib)

// report prints the table and what held; its error says what did not.
func report(out io.Writer, results []*result) error {
	row := func(name string, cell func(*result) string) {
		fmt.Fprintf(out, "%-26s", name)
		for _, r := range results {
			fmt.Fprintf(out, "%16s", cell(r))
		}
		fmt.Fprintln(out)
	}
	fmt.Fprintln(out)
	row("", func(r *result) string {
		if r.farpage {
			return "with farpage"
		}
		return "without"
	})
	row("local budget", onlyFarpage(func(*result) string { return inMiB(budgetBytes) }))
	row("peak resident", func(r *result) string { return inMiB(r.resident.PeakBytes) })
	row("far, at most", onlyFarpage(func(r *result) string { return inMiB(r.farBytes) }))
	row("pages evicted", onlyFarpage(func(r *result) string { return fmt.Sprint(r.stats.EvictedPages) }))
	row("  of them during the save", onlyFarpage(func(r *result) string { return fmt.Sprint(r.saveEvicted) }))
	row("pages read back", onlyFarpage(func(r *result) string { return fmt.Sprint(r.stats.RestoredPages) }))
	row("rewritten around the save", func(r *result) string { return fmt.Sprint(r.rewritten) })
	row("wrong values", func(r *result) string { return r.readBack.String() })
	row("wrong values in the save", func(r *result) string { return r.save.String() })
	row("wall time", func(r *result) string { return fmt.Sprintf("%.1f s", r.wall.Seconds()) })
	fmt.Fprintln(out)

	var broken []error
	for _, r := range results {
		for _, c := range r.claims() {
			word := "held    "
			if !c.holds {
				word = "BROKEN  "
				broken = append(broken, fmt.Errorf("did not hold: %s", c.what))
			}
			fmt.Fprintln(out, word+c.what)
		}
		for _, p := range r.stats.ProcessList {
			if p.Reason != "" {
				fmt.Fprintf(out, "        %s: process %d (%s): %s\n", p.State, p.Pid, p.Command, p.Reason)
			}
		}
		for _, c := range []*checked{r.readBack, r.save} {
			for _, example := range c.examples {
				fmt.Fprintln(out, "        wrong:", example)
			}
		}
	}
	return errors.Join(broken...)
}

func onlyFarpage(cell func(*result) string) func(*result) string {
	return func(r *result) string {
		if r.farpage {
			return cell(r)
		}
		return "-"
	}
}

func (c *checked) String() string { return fmt.Sprintf("%d of %d", c.wrong, c.wrong+c.right) }

// claim is something that must hold.
type claim struct {
	what  string
	holds bool
}

func (r *result) claims() []claim {
	half := "without farpage: "
	if r.farpage {
		half = "with farpage: "
	}
	list := []claim{
		{half + "every value was right", r.readBack.wrong == 0 && r.readBack.right > 0},
		{half + "every value in the save was right", r.save.wrong == 0 && r.save.right > 0},
		{half + fmt.Sprintf("resident memory was sampled from outside (%d times, at most %d ms apart)",
			r.resident.Samples, r.resident.LongestUs/1000), r.resident.Samples > 0},
	}
	if !r.farpage {
		return list
	}
	return append(list,
		claim{
			half + fmt.Sprintf("peak resident %s was within budget + %s", inMiB(r.resident.PeakBytes), inMiB(slackBytes)),
			r.resident.PeakBytes <= budgetBytes+slackBytes,
		},
		claim{half + "memory was far", r.farBytes > 0},
		claim{half + "pages were evicted while redis saved", r.saveEvicted > 0},
		claim{
			half + fmt.Sprintf("no fault was unexplained, nothing failed its checksum (%d, %d)",
				r.stats.Faults.Unexplained, r.stats.Errors.Checksum),
			r.stats.Faults.Unexplained == 0 && r.stats.Errors.Checksum == 0,
		},
	)
}

package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"
)

func main() {
	var o options
	flag.StringVar(&o.bin, "farpage", "bin", "`folder` with farpage's programs")
	flag.BoolVar(&o.quick, "quick", false, "smaller sizes: under a minute")
	flag.StringVar(&o.json, "json", "", "write all samples to this `file` too")
	flag.StringVar(&o.only, "only", "", "take only measures whose name matches this `pattern`")
	limit := flag.Duration("timeout", 10*time.Minute, "give up after this `time`")
	flag.Parse()
	only, err := regexp.Compile(o.only)
	if flag.NArg() > 0 || *limit <= 0 || err != nil {
		flag.Usage()
		os.Exit(2)
	}
	if names := names(); !slices.ContainsFunc(names, only.MatchString) {
		fmt.Fprintf(os.Stderr, "bench: no measure's name matches %q; there are: %s\n", o.only, strings.Join(names, ", "))
		os.Exit(2)
	}

	interrupted, stop := signal.NotifyContext(context.Background(),
		syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
	defer stop()
	ctx, cancel := context.WithTimeoutCause(interrupted, *limit, fmt.Errorf("not finished after %v", *limit))
	defer cancel()

	sizes := full
	if o.quick {
		sizes = quick
	}
	_, err = run(ctx, o, only, sizes, os.Stdout, os.Stderr)
	switch {
	case interrupted.Err() != nil:
		fmt.Fprintln(os.Stderr, "bench: interrupted")
		os.Exit(130)
	case err != nil:
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// options are the command line's.
type options struct {
	bin, json, only string
	quick           bool
}

// bench is what all measures are given.
type bench struct {
	sizes
	farpage string // the program
	dir     string // for this run: the C programs and what measures put there
	report  *report
}

// measures are taken in this order; each adds lines to the report.
var measures = []struct {
	name string
	take func(context.Context, *bench) error
}{
	{"faults", faults},
	{"steps", steps},
	{"evict", evictions},
	{"refault", refaults},
	{"touch", firstTouches},
	{"processes", processes},
	{"shell", shellLoops},
	{"mmap", mappings},
	{"idle", idleAgent},
	{"threads8", threads},
	{"redis", redisGets},
}

func names() (all []string) {
	for _, m := range measures {
		all = append(all, m.name)
	}
	return all
}

// run takes the measures and prints them. Its error says which could not be taken.
func run(ctx context.Context, o options, only *regexp.Regexp, s sizes, out, progress io.Writer) (r *report, err error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("userfaultfd with fork events needs root: type `sudo make bench`")
	}
	b := &bench{sizes: s, report: &report{repetitions: s.repetitions}}
	// As /proc shows it.
	if b.farpage, err = filepath.Abs(filepath.Join(o.bin, "farpage")); err == nil {
		b.farpage, err = filepath.EvalSymlinks(b.farpage)
	}
	if err != nil {
		return nil, fmt.Errorf("farpage is not built, `make build` does it: %w", err)
	}
	root, err := findRoot()
	if err != nil {
		return nil, err
	}
	if b.dir, err = os.MkdirTemp("", "farpage-bench-"); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(b.dir)) }()
	if err := compile(ctx, root, b.dir); err != nil {
		return nil, err
	}
	var failed []error
	for _, m := range measures {
		if !only.MatchString(m.name) {
			continue
		}
		begun := time.Now()
		fmt.Fprintf(progress, "%-10s", m.name)
		if err := m.take(ctx, b); err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", m.name, err))
		}
		fmt.Fprintf(progress, "%6.1f s\n", time.Since(begun).Seconds())
		if ctx.Err() != nil {
			failed = append(failed, context.Cause(ctx))
			break
		}
	}
	failed = append(failed, b.report.whole(), b.report.print(out))
	if o.json != "" {
		failed = append(failed, b.report.writeJSON(o.json))
	}
	return b.report, errors.Join(failed...)
}

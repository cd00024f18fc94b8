package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/farpage/farpage/test/agent"
	"github.com/farpage/farpage/test/container"
)

const (
	mib         = 1 << 20
	budget      = "64Mi"
	budgetBytes = 64 * mib
	valueBytes  = 3 * budgetBytes
)

const story = `farpage demo: redis in a runc container keeps %d MiB of values in a local budget of %d MiB.
It is filled, forks for a BGSAVE while pages are being evicted and values rewritten, every
value is read back, and the save is loaded into a second redis. Then the same without farpage.

`

// options are the command line's.
type options struct {
	bin, only, agentLog string
}

func main() {
	var o options
	flag.StringVar(&o.bin, "farpage", "bin", "`folder` with farpage's programs")
	flag.StringVar(&o.only, "only", "", "run one half: `with or without` farpage")
	flag.StringVar(&o.agentLog, "agent-log", "", "keep the agent's log in this `file`")
	limit := flag.Duration("timeout", 2*time.Minute, "give up after this `time`")
	flag.Parse()
	if flag.NArg() > 0 || o.only != "" && o.only != withFarpage && o.only != without || *limit <= 0 {
		flag.Usage()
		os.Exit(2)
	}

	// SIGPIPE is among them so that `make demo | head` cleans up as well. The
	// signals stay caught until the end: a second one does not stop the cleaning.
	interrupted, stop := signal.NotifyContext(context.Background(),
		syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
	defer stop()
	ctx, cancel := context.WithTimeoutCause(interrupted, *limit, fmt.Errorf("not finished after %v", *limit))
	defer cancel()

	err := run(ctx, o)
	switch {
	case interrupted.Err() != nil:
		fmt.Fprintln(os.Stderr, "demo: interrupted")
		var left *leftError
		if errors.As(err, &left) {
			fmt.Fprintln(os.Stderr, "demo:", left)
		}
		os.Exit(130)
	case err != nil:
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
	fmt.Println("All of it held, and nothing is left behind.")
}

// run does both halves, prints the table, and cleans up. Its error says what did
// not hold.
func run(ctx context.Context, o options) (err error) {
	if err := container.Missing("redis-server"); err != nil {
		return err
	}
	fmt.Printf(story, valueBytes/mib, budgetBytes/mib)
	place, err := makePlace()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, place.remove()) }()

	values := newDataset(valueBytes)
	show := newScreen(os.Stdout)
	defer show.clear()
	var results []*result
	for _, half := range []string{withFarpage, without} {
		if o.only != "" && o.only != half {
			continue
		}
		j := &job{name: half, place: place, values: values, show: show}
		r, err := o.runHalf(ctx, j)
		if err != nil {
			return fmt.Errorf("%s farpage: %w", half, err)
		}
		results = append(results, r)
	}
	show.clear()
	return report(os.Stdout, results)
}

// runHalf does the job once, with an agent around it or without one.
func (o options) runHalf(ctx context.Context, j *job) (*result, error) {
	if j.name == without {
		return j.run(ctx)
	}
	bin, err := filepath.Abs(o.bin)
	if err != nil {
		return nil, err
	}
	logFile := o.agentLog
	if logFile == "" {
		logFile = filepath.Join(j.place.sockets, "agent.log")
	}
	served, err := agent.Start(ctx, agent.Config{Bin: bin, Folder: j.place.sockets, LogFile: logFile})
	if err != nil {
		return nil, err
	}
	defer func() { j.place.leave(served.Stop()) }()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(served.Ended(), func() { cancel(errors.New("the agent ended")) })()
	j.agent = served
	j.hook = container.Hook(bin, served.SocketDir())
	r, err := j.run(ctx)
	if err != nil {
		return nil, fmt.Errorf("%w\nthe agent's log ends with:\n%s", err, served.Log())
	}
	return r, nil
}

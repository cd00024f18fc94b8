package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

// job runs a command to its end and says how long that took.
func (b *bench) job(ctx context.Context, argv []string) (took time.Duration, err error) {
	if ctx.Err() != nil {
		return 0, context.Cause(ctx)
	}
	g, err := b.newGroup()
	if err != nil {
		return 0, err
	}
	// The agent ends a little later than `farpage run`.
	defer func() { err = errors.Join(err, g.end()) }()
	stop := context.AfterFunc(ctx, g.stop)
	defer stop()
	var errout bytes.Buffer
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.SysProcAttr = g.Attributes()
	cmd.Stderr = &errout
	cmd.WaitDelay = endLimit
	begun := time.Now()
	if err := cmd.Run(); err != nil {
		return 0, fmt.Errorf("%v: %w: %s", argv, err, errout.Bytes())
	}
	return time.Since(begun), nil
}

// threads measures how much slower eight threads that verify what they write
// become with a half and a quarter of their memory local.
func threads(ctx context.Context, b *bench) error {
	guest := []string{b.dir + "/threads8", strconv.Itoa(b.threadsMiB)}
	for r := range b.repetitions {
		var took [3]time.Duration
		for k := range took {
			which := (r + k) % len(took)
			argv := guest
			if which > 0 {
				local := strconv.Itoa(b.threadsMiB >> which)
				argv = append([]string{b.farpage, "run", "--local", local + "Mi", "--"}, guest...)
			}
			var err error
			if took[which], err = b.job(ctx, argv); err != nil {
				return err
			}
		}
		for which, part := range []string{1: "a half", 2: "a quarter"} {
			if which > 0 {
				b.report.pair(fmt.Sprintf("threads8 over %d MiB, %s of it local", b.threadsMiB, part), "ms",
					milliseconds(took[which]), alone, milliseconds(took[0]))
			}
		}
	}
	return nil
}

func milliseconds(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e6 }

// residentOf reads the sizes in /proc/PID/status, in MiB.
func residentOf(pid int) (map[string]float64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return nil, err
	}
	sizes := map[string]float64{}
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		if kib, ok := strings.CutSuffix(value, " kB"); ok {
			n, err := strconv.ParseInt(strings.TrimSpace(kib), 10, 64)
			if err != nil {
				return nil, err
			}
			sizes[name] = float64(n) / 1024
		}
	}
	return sizes, nil
}

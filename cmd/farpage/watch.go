package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"time"

	"golang.org/x/sys/unix"
)

// watchEvery is how often --watch shows anew.
const watchEvery = time.Second

// show writes once, or with watch again and again until interrupted: in place on a
// terminal, one block after the other elsewhere.
func show(ctx context.Context, watch bool, write func(context.Context, io.Writer) error) error {
	if !watch {
		return write(ctx, os.Stdout)
	}
	ctx, stop := signal.NotifyContext(ctx, unix.SIGINT, unix.SIGTERM)
	defer stop()
	terminal := isTerminal(os.Stdout)
	for {
		if terminal {
			fmt.Print("\x1b[H\x1b[2J") // home, clear
		}
		err := write(ctx, os.Stdout)
		if ctx.Err() != nil && (err == nil || errors.Is(err, context.Canceled)) {
			return nil
		}
		if err != nil {
			return err
		}
		if !terminal {
			fmt.Println()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(watchEvery):
		}
	}
}

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

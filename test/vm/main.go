package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"github.com/farpage/farpage/test/container"
)

func main() {
	limit := flag.Duration("timeout", 30*time.Minute, "give up after this `time`, of the run in the VM")
	cache := flag.String("cache", "/var/cache/farpage-test", "`folder` that keeps the VM's image")
	flag.Parse()
	if flag.NArg() > 0 || *limit <= 0 {
		flag.Usage()
		os.Exit(2)
	}
	runtime.LockOSThread() // the VM ends with the thread that started it

	interrupted, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
	defer stop()
	began := time.Now()
	if err := run(interrupted, *cache, *limit); err != nil {
		fmt.Fprintln(os.Stderr, "vm:", err)
		os.Exit(1)
	}
	fmt.Printf("All steps passed, in %v.\n", time.Since(began).Round(time.Second))
}

func run(ctx context.Context, cache string, limit time.Duration) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("a Debian is unpacked and disks are made: run this with sudo")
	}
	image, err := debianImage(ctx, cache)
	if err != nil {
		return fmt.Errorf("make the VM's image: %w", err)
	}
	dir, err := os.MkdirTemp("/var/tmp", "farpage-vm-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, container.RemoveTree(dir)) }()
	disk := filepath.Join(dir, "disk.img")
	if err := makeDisk(ctx, dir, disk); err != nil {
		return fmt.Errorf("make the disk that the run brings along: %w", err)
	}

	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("not finished after %v", limit))
	defer cancel()
	say("boot the VM")
	r := newReport(os.Stdout)
	console := filepath.Join(dir, "console")
	ended := image.run(ctx, vm{disk: disk, console: console, tmp: dir, line: r.line})
	if err := r.verdict(ended); err != nil {
		if ended != nil || r.brokenOff() {
			err = fmt.Errorf("%w\nthe VM's console ends with:\n%s", err, tail(console))
		}
		return err
	}
	return shutdownsInOrder(console)
}

// say tells what is being done.
func say(what string) {
	fmt.Printf("%s  %s\n", time.Now().Format(time.TimeOnly), what)
}

// tail is the end of a file.
func tail(path string) string {
	const most = 6 << 10
	text, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return string(text[max(0, len(text)-most):])
}

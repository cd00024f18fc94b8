package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// swapDevice is swap that was made for this run.
type swapDevice struct {
	name string // for the report
	path string // what swapon was given
	zram string // number of the zram device, empty: a file
}

const swapBytes = 512 << 20

// makeSwap makes a zram device of the run's own and turns it on, or else a file.
// The error says why neither can be had here.
func makeSwap(ctx context.Context, dir string) (*swapDevice, error) {
	d, zramErr := makeZram(ctx)
	if zramErr == nil {
		return d, nil
	}
	d, fileErr := makeSwapFile(ctx, dir)
	if fileErr == nil {
		return d, nil
	}
	return nil, fmt.Errorf("no zram (%w) and no swap file (%w)", zramErr, fileErr)
}

func makeZram(ctx context.Context) (*swapDevice, error) {
	number, err := os.ReadFile("/sys/class/zram-control/hot_add")
	if err != nil {
		return nil, err
	}
	d := &swapDevice{name: "zram", zram: strings.TrimSpace(string(number))}
	d.path = "/dev/zram" + d.zram
	attribute := func(name, value string) error {
		return os.WriteFile(filepath.Join("/sys/block/zram"+d.zram, name), []byte(value), 0)
	}
	for _, algorithm := range []string{"lz4", "lzo-rle"} {
		if attribute("comp_algorithm", algorithm) == nil {
			d.name += " (" + algorithm + ")"
			break
		}
	}
	err = attribute("disksize", fmt.Sprint(swapBytes))
	for range 100 { // the device's file comes a little later
		if _, gone := os.Stat(d.path); gone == nil {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err == nil {
		err = turnOn(ctx, d.path)
	}
	if err != nil {
		return nil, errors.Join(err, d.removeZram())
	}
	return d, nil
}

func makeSwapFile(ctx context.Context, dir string) (*swapDevice, error) {
	d := &swapDevice{name: "swap file", path: filepath.Join(dir, "swap")}
	file, err := os.OpenFile(d.path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	// Written, not allocated: swap takes no file with holes.
	piece := make([]byte, 1<<20)
	for written := 0; written < swapBytes && err == nil; written += len(piece) {
		_, err = file.Write(piece)
	}
	if err = errors.Join(err, file.Close()); err == nil {
		err = turnOn(ctx, d.path)
	}
	if err != nil {
		return nil, errors.Join(err, os.Remove(d.path))
	}
	return d, nil
}

func turnOn(ctx context.Context, path string) error {
	for _, command := range [][]string{{"mkswap", path}, {"swapon", path}} {
		if err := execute(ctx, command...); err != nil {
			return err
		}
	}
	return nil
}

func execute(ctx context.Context, argv ...string) error {
	if output, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", argv[0], err, strings.TrimSpace(string(output)))
	}
	return nil
}

// remove turns it off, which brings back what is in it, and takes it away.
func (d *swapDevice) remove() error {
	// Not the run's context: this has to be done when it is over, too.
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := execute(ctx, "swapoff", d.path); err != nil {
		return err
	}
	if d.zram != "" {
		return d.removeZram()
	}
	return os.Remove(d.path)
}

func (d *swapDevice) removeZram() error {
	err := os.WriteFile(filepath.Join("/sys/block/zram"+d.zram, "reset"), []byte("1"), 0)
	return errors.Join(err, os.WriteFile("/sys/class/zram-control/hot_remove", []byte(d.zram), 0))
}

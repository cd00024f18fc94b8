package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/farpage/farpage/test/container"
)

// place is where a run's files are.
type place struct {
	sockets string // in /run: sockets and the agent's state
	data    string // on disk: root file systems and saves

	left []error // what could not be cleaned up in order
}

// leave takes note of how a cleaning went; remove reports it.
func (p *place) leave(err error) {
	if err != nil {
		p.left = append(p.left, err)
	}
}

func makePlace() (*place, error) {
	sockets, err := os.MkdirTemp("/run", "farpage-demo-")
	if err != nil {
		return nil, fmt.Errorf("make a folder for sockets: %w", err)
	}
	p := &place{sockets: sockets}
	p.data, err = os.MkdirTemp("/var/tmp", "farpage-demo-")
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make a folder for data: %w", err), p.remove())
	}
	// The container's user passes through them.
	for _, dir := range []string{p.sockets, p.data} {
		if err := os.Chmod(dir, 0o711); err != nil {
			return nil, errors.Join(err, p.remove())
		}
	}
	return p, nil
}

// folder makes a folder that the container's user may write to.
func (p *place) folder(parent, name string) (string, error) {
	dir := filepath.Join(parent, name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", err
	}
	if err := os.Chown(dir, container.UID, container.GID); err != nil {
		return "", err
	}
	return dir, nil
}

// remove takes everything away and tells what went wrong with cleaning, here and
// before; a mount that somebody left there is an error.
func (p *place) remove() error {
	errs := p.left
	for _, dir := range []string{p.sockets, p.data} {
		if dir == "" {
			continue
		}
		points, err := container.MountsUnder(dir)
		if len(points) > 0 {
			err = fmt.Errorf("left behind, and unmounted now: %v", points)
		}
		errs = append(errs, err, container.RemoveTree(dir))
	}
	if err := errors.Join(errs...); err != nil {
		return &leftError{err}
	}
	return nil
}

// leftError says what was left behind, or had to be taken away by force.
type leftError struct{ error }

func (e *leftError) Unwrap() error { return e.error }

package main

import (
	"fmt"
	"syscall"
	"time"

	"github.com/farpage/farpage/test/group"
)

const endLimit = 15 * time.Second

// programGroup is what was started for one program.
type programGroup struct {
	*group.Group
	farpage string // the executable
}

func (b *bench) newGroup() (*programGroup, error) {
	g, err := group.New()
	if err != nil {
		return nil, err
	}
	return &programGroup{g, b.farpage}, nil
}

// stop kills the programs. farpage is left alone: it ends when they have ended, and
// takes its own things away.
func (g *programGroup) stop() {
	pids, err := g.PidsExcept(g.farpage)
	if err != nil {
		return // it is empty and gone
	}
	for _, pid := range pids {
		_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended just now
	}
}

// end waits until the last process has ended. What stays is reported, and ended.
func (g *programGroup) end() error {
	empty, err := g.Await(endLimit)
	if err == nil && !empty {
		err = fmt.Errorf("still there after %v:\n%s", endLimit, g.State())
	}
	if closing := g.Close(); err == nil {
		err = closing
	}
	return err
}

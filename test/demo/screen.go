package main

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/farpage/farpage/api"
)

// screen keeps one line of figures below the lines that stay: redrawn in place on
// a terminal, a new one every few seconds elsewhere.
type screen struct {
	out      io.Writer
	terminal bool
	every    time.Duration // between two lines elsewhere

	mu    sync.Mutex
	title string    // guarded by mu
	last  time.Time // of a line elsewhere; guarded by mu
}

func newScreen(out *os.File) *screen {
	_, err := unix.IoctlGetTermios(int(out.Fd()), unix.TCGETS)
	return &screen{out: out, terminal: err == nil, every: 3 * time.Second}
}

// phase says what the figures from now on belong to.
func (s *screen) phase(half, name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.title = fmt.Sprintf("%-16s %-14s", half, name)
}

// stats shows the agent's figures.
func (s *screen) stats(c api.Stats) {
	s.draw(fmt.Sprintf("resident %s / budget %s / far %s / faults %d",
		inMiB(c.ResidentBytes), inMiB(c.BudgetBytes), inMiB(c.FarBytes), c.Faults.Total))
}

// resident shows what there is to show without an agent.
func (s *screen) resident(bytes int64) {
	s.draw(fmt.Sprintf("resident %s / no budget", inMiB(bytes)))
}

// silent shows that the agent did not answer.
func (s *screen) silent(err error) {
	s.draw(fmt.Sprintf("the agent does not answer: %v", err))
}

func (s *screen) draw(figures string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.terminal {
		fmt.Fprintf(s.out, "\r\x1b[K%s %s", s.title, figures)
		return
	}
	if now := time.Now(); now.Sub(s.last) >= s.every {
		s.last = now
		fmt.Fprintf(s.out, "%s %s\n", s.title, figures)
	}
}

// print writes a line that stays.
func (s *screen) print(line string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.terminal {
		fmt.Fprint(s.out, "\r\x1b[K")
	}
	fmt.Fprintln(s.out, line)
}

// clear takes the redrawn line away.
func (s *screen) clear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.terminal {
		fmt.Fprint(s.out, "\r\x1b[K")
	}
}

func inMiB(bytes int64) string { return fmt.Sprintf("%.1f MiB", float64(bytes)/mib) }

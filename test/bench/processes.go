package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/farpage/farpage/shim/lib"
)

const shortProgram = "/bin/true"

func middle(a answer) float64 { return a.us("p50") }

// processes measures what it costs to start a program, with the bell rung (each
// program is taken in) and silent (the shim's constructor is all there is), and to fork
// a parent with much memory.
func processes(ctx context.Context, b *bench) error {
	return b.compare(ctx, func(ours, theirs *program) (err error) {
		const start = "fork, exec, wait: "
		if err := b.turns(ctx, start+"bell rung", "µs", ours, theirs, middle, "spawn %d %s", b.spawns, shortProgram); err != nil {
			return err
		}
		library, err := silentBell(b.dir)
		if err != nil {
			return err
		}
		silent, err := b.native(ctx, "LD_PRELOAD="+library)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, silent.end()) }()
		if err := b.turns(ctx, start+"bell silent", "µs", silent, theirs, middle, "spawn %d %s", b.spawns, shortProgram); err != nil {
			return err
		}
		for _, p := range []*program{ours, theirs} {
			if err := prepareRegion(p, b.forkedPages); err != nil {
				return err
			}
		}
		name := "fork, exit, wait: " + strconv.Itoa(b.forkedPages*pageBytes>>20) + " MiB resident"
		return b.turns(ctx, name, "µs", ours, theirs, middle, "fork %d", b.forks)
	})
}

// silentBell makes a folder as a container has it whose bell nobody rings, and
// returns the library in it.
func silentBell(dir string) (library string, err error) {
	dir = filepath.Join(dir, "silent")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", err
	}
	bytes, err := lib.Library(dir)
	if err != nil {
		return "", err
	}
	library = filepath.Join(dir, "libfarpage.so")
	return library, errors.Join(
		os.WriteFile(library, bytes, 0o755),
		os.WriteFile(filepath.Join(dir, "bell"), make([]byte, pageBytes), 0o644))
}

// shellLoops starts programs from a shell's loop, and farpage itself.
func shellLoops(ctx context.Context, b *bench) error {
	script := filepath.Join(b.dir, "loop.sh")
	text := fmt.Sprintf("i=0; while [ $i -lt %d ]; do %s; i=$((i+1)); done\n", b.shellPrograms, shortProgram)
	if err := os.WriteFile(script, []byte(text), 0o644); err != nil {
		return err
	}
	err := b.compare(ctx, func(ours, theirs *program) error {
		each := func(a answer) float64 { return a.us("mean") / float64(b.shellPrograms) }
		return b.turns(ctx, fmt.Sprintf("shell's loop, each of %d programs", b.shellPrograms), "µs", ours, theirs, each, "spawn 1 /bin/sh %s", script)
	})
	if err != nil {
		return err
	}
	command := []string{shortProgram}
	for r := range b.repetitions {
		ours, theirs, err := b.jobs(ctx, r, append([]string{b.farpage, "run", "--local", budget, "--"}, command...), command)
		if err != nil {
			return err
		}
		b.report.pair("farpage run, from start to end", "ms", milliseconds(ours), alone, milliseconds(theirs))
	}
	return nil
}

// mappings measures what it costs that the shim's mmap waits until a mapping is
// registered.
func mappings(ctx context.Context, b *bench) error {
	return b.compare(ctx, func(ours, theirs *program) error {
		for _, size := range []struct {
			name  string
			bytes int
		}{{"64 KiB", 64 << 10}, {"4 MiB", 4 << 20}} {
			err := b.turns(ctx, "mmap and munmap, "+size.name, "µs", ours, theirs, answer.perPage, "maps %d %d", size.bytes, b.maps)
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// idleAgent looks at an agent that has one program to serve which does nothing.
func idleAgent(ctx context.Context, b *bench) (err error) {
	p, err := b.managed(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.end()) }()
	const settling = 500 * time.Millisecond
	if err := wait(ctx, settling); err != nil {
		return err
	}
	window := b.idle / time.Duration(b.repetitions)
	for range b.repetitions {
		before, err := threadsOf(p.agent.pid)
		if err != nil {
			return err
		}
		begun := time.Now()
		if err := wait(ctx, window); err != nil {
			return err
		}
		after, err := threadsOf(p.agent.pid)
		if err != nil {
			return err
		}
		took := time.Since(begun)
		ran, switches := usage(before, after, anyThread)
		resident, err := residentOf(p.agent.pid)
		if err != nil {
			return err
		}
		b.report.alone("idle agent: CPU", "ms/s", float64(ran.Microseconds())/1e3/took.Seconds())
		b.report.alone("idle agent: context switches", "1/s", float64(switches)/took.Seconds())
		b.report.alone("idle agent: resident, file pages included", "MiB", resident["VmRSS"])
		b.report.alone("idle agent: resident, anonymous", "MiB", resident["RssAnon"])
		b.report.alone("idle agent: resident, shared (pages' state and store)", "MiB", resident["RssShmem"])
	}
	return nil
}

func wait(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}

// jobs runs two commands from beginning to end, the second first in every other
// repetition, and says how long each took.
func (b *bench) jobs(ctx context.Context, repetition int, ours, theirs []string) (our, their time.Duration, err error) {
	var took [2]time.Duration
	for k := range took {
		which := (repetition + k) % 2
		if took[which], err = b.job(ctx, [][]string{ours, theirs}[which]); err != nil {
			return 0, 0, err
		}
	}
	return took[0], took[1], nil
}

package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/farpage/farpage/api"
	"github.com/farpage/farpage/test/agent"
	"github.com/farpage/farpage/test/container"
)

// The two halves of the demo.
const (
	withFarpage = "with"
	without     = "without"
)

// job is the same work in both halves; agent and hook make the difference.
type job struct {
	name   string
	place  *place
	values *dataset
	show   *screen

	agent *agent.Agent // nil: without farpage
	hook  []string     // none: without farpage

	watcher *container.Watcher
	id      string
}

// result is what one half came to.
type result struct {
	farpage     bool
	resident    container.Resident
	stats       api.Container // the agent's last word; zero without farpage
	farBytes    int64         // the most that was far
	saveEvicted int64         // pages evicted during the save
	rewritten   int           // values written before and during the save
	readBack    *checked
	save        *checked // what the second redis had loaded
	wall        time.Duration
}

// run does the whole job and removes what it made. When the context ended, its
// cause comes first in the error: the rest is how that showed.
func (j *job) run(ctx context.Context) (*result, error) {
	r, err := j.do(ctx)
	if err != nil && ctx.Err() != nil {
		return nil, fmt.Errorf("%w (%w)", context.Cause(ctx), err)
	}
	return r, err
}

func (j *job) do(ctx context.Context) (*result, error) {
	sockets, err := j.place.folder(j.place.sockets, j.name)
	if err != nil {
		return nil, err
	}
	data, err := j.place.folder(j.place.data, j.name)
	if err != nil {
		return nil, err
	}
	// The save is large: gone before the next half, not only at the end.
	defer func() { j.place.leave(os.RemoveAll(data)) }()

	r := &result{farpage: j.agent != nil}
	at, err := j.inContainer(ctx, r, sockets, data)
	if err != nil {
		return nil, err
	}
	if err := j.loadSave(ctx, r, at, data); err != nil {
		return nil, fmt.Errorf("load the save into a second redis: %w", err)
	}
	return r, nil
}

// inContainer fills, saves and reads back; it returns the versions that the save
// must hold.
func (j *job) inContainer(ctx context.Context, r *result, sockets, data string) (versions, error) {
	cfg := container.Config{Dir: j.place.data}
	if j.agent != nil {
		cfg.Annotations = map[string]string{"io.farpage.local": budget}
		cfg.Prestart = j.hook
	}
	began := time.Now()
	s, err := startRedis(ctx, cfg, sockets, data)
	if err != nil {
		return nil, err
	}
	defer func() { j.place.leave(s.Close()) }()
	j.id = s.ID()
	j.watcher = container.Watch(s.Pids, 20*time.Millisecond)
	defer func() { r.resident = j.watcher.Stop() }()
	follow := j.follow(ctx)
	defer func() { r.farBytes = max(follow.end(), r.stats.FarBytes) }()

	w := &writer{to: s, values: j.values, now: make(versions, j.values.len())}
	if err := j.steps(ctx, r, s, w); err != nil {
		return nil, s.whyEnded(ctx, err)
	}
	r.wall = time.Since(began)
	return w.saved, s.end(ctx)
}

// steps is what is done with redis while it is watched.
func (j *job) steps(ctx context.Context, r *result, s *server, w *writer) error {
	if err := j.phase("fill", func() error { return s.fill(ctx, j.values, w.now) }); err != nil {
		return err
	}
	before, err := j.stats(ctx)
	if err != nil {
		return err
	}
	if err := j.phase("save", func() error { return w.saveWhileWriting(ctx) }); err != nil {
		return err
	}
	after, err := j.stats(ctx)
	if err != nil {
		return err
	}
	r.rewritten = w.writes
	r.saveEvicted = after.EvictedPages - before.EvictedPages
	err = j.phase("read back", func() (err error) {
		r.readBack, err = s.check(ctx, j.values, w.now)
		return err
	})
	if err != nil {
		return err
	}
	r.stats, err = j.stats(ctx)
	return err
}

// loadSave compares the save in a redis that has nothing to do with farpage.
func (j *job) loadSave(ctx context.Context, r *result, at versions, data string) error {
	sockets, err := j.place.folder(j.place.sockets, j.name+"-save")
	if err != nil {
		return err
	}
	if info, err := os.Stat(filepath.Join(data, redisSave)); err != nil {
		return err
	} else if info.Size() < valueBytes/4 {
		return fmt.Errorf("it has %d bytes only", info.Size())
	}
	return j.phase("load the save", func() error {
		s, err := startRedis(ctx, container.Config{Dir: j.place.data}, sockets, data)
		if err != nil {
			return err
		}
		defer func() { j.place.leave(s.Close()) }()
		if r.save, err = s.check(ctx, j.values, at); err != nil {
			return err
		}
		return s.end(ctx)
	})
}

// phase runs a step and shows its name meanwhile and how long it took afterwards.
func (j *job) phase(name string, do func() error) error {
	j.show.phase(j.name+" farpage", name)
	began := time.Now()
	if err := do(); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	j.show.print(fmt.Sprintf("%-16s %-14s %5.1f s", j.name+" farpage", name, time.Since(began).Seconds()))
	return nil
}

// stats asks the agent; without one they are zero.
func (j *job) stats(ctx context.Context) (api.Container, error) {
	if j.agent == nil {
		return api.Container{}, nil
	}
	return j.agent.Stats(ctx, j.id)
}

// follower redraws the line while a job runs and remembers the most that was far.
type follower struct {
	stop chan struct{}
	far  chan int64
}

func (j *job) follow(ctx context.Context) *follower {
	f := &follower{stop: make(chan struct{}), far: make(chan int64, 1)}
	go func() {
		var most int64
		defer func() { f.far <- most }()
		tick := time.NewTicker(200 * time.Millisecond)
		defer tick.Stop()
		for {
			if j.agent == nil {
				j.show.resident(j.watcher.Seen().LastBytes)
			} else if s, err := j.agent.Stats(ctx, j.id); err != nil {
				j.show.silent(err)
			} else {
				most = max(most, s.FarBytes)
				j.show.stats(s.Stats)
			}
			select {
			case <-f.stop:
				return
			case <-tick.C:
			}
		}
	}()
	return f
}

// end returns the most bytes that were far at once.
func (f *follower) end() int64 {
	close(f.stop)
	return <-f.far
}

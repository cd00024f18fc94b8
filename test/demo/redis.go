package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/farpage/farpage/test/container"
)

const (
	redisSocket = "redis.sock"
	redisSave   = "dump.rdb"
	batch       = 64 // commands in a pipeline
)

// server is a redis in a container, and our connection to it.
type server struct {
	*container.Container
	client *redis.Client
	stop   func() bool
}

// quiet drops what the client logs: each attempt to reach a redis that starts, say.
// What matters comes back as an error.
type quiet struct{}

func (quiet) Printf(context.Context, string, ...any) {}

// startRedis runs Debian's redis-server and waits until it has loaded what lies in
// dataDir and answers. The context's end cuts every command short.
func startRedis(ctx context.Context, cfg container.Config, socketDir, dataDir string) (*server, error) {
	cfg.Programs = []string{"/usr/bin/redis-server"}
	cfg.Args = []string{
		"/usr/bin/redis-server", "--port", "0", "--unixsocket", "/run/redis/" + redisSocket,
		"--dir", "/data", "--dbfilename", redisSave, "--save", "", "--appendonly", "no",
	}
	cfg.Binds = []container.Bind{{Host: socketDir, Inside: "/run/redis"}, {Host: dataDir, Inside: "/data"}}
	redis.SetLogger(quiet{})
	c, err := container.Start(ctx, cfg)
	if err != nil {
		return nil, err
	}
	s := &server{Container: c, client: redis.NewClient(&redis.Options{
		Network: "unix", Addr: filepath.Join(socketDir, redisSocket),
		MaxRetries: -1, DialerRetries: 1, DialTimeout: 5 * time.Second, ReadTimeout: 30 * time.Second, WriteTimeout: 30 * time.Second,
		DisableIdentity: true, Protocol: 2,
	})}
	// go-redis does not look at a context while it waits for an answer; closing the
	// client ends the wait.
	s.stop = context.AfterFunc(ctx, func() { _ = s.client.Close() })
	if err := s.ready(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("wait for redis: %w", err), s.Close())
	}
	return s, nil
}

// ready waits until redis answers: before, the socket is missing, or it is loading.
func (s *server) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		err := s.client.Ping(ctx).Err()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ctx.Err(), err)
		case <-s.Ended():
			return fmt.Errorf("it has ended: %s", s.Output())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// whyEnded adds to an error what redis said last, if it has ended: the connection
// breaks a moment before the runtime has seen that.
func (s *server) whyEnded(ctx context.Context, err error) error {
	select {
	case <-ctx.Done():
	case <-time.After(time.Second):
	case <-s.Ended():
		err = fmt.Errorf("%w; redis has ended: %s", err, s.Output())
	}
	return err
}

// end asks redis to shut down and says when it does not do so in good order.
func (s *server) end(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	// No answer comes to this one; the exit status tells.
	_ = s.client.Do(ctx, "SHUTDOWN", "NOSAVE").Err()
	status, err := s.Wait(ctx)
	if err != nil {
		return fmt.Errorf("shut redis down: %w", err)
	}
	if status != 0 {
		return fmt.Errorf("redis ended with status %d: %s", status, s.Output())
	}
	return nil
}

// Close removes the container, whatever state it is in.
func (s *server) Close() error {
	s.stop()
	_ = s.client.Close() // it may be closed already
	return s.Container.Close()
}

// set writes values in one trip.
func (s *server) set(ctx context.Context, values *dataset, at versions, which []int) error {
	_, err := s.client.Pipelined(ctx, func(p redis.Pipeliner) error {
		for _, i := range which {
			p.Set(ctx, values.key(i), values.value(i, at[i]), 0)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("write values: %w", err)
	}
	return nil
}

// fill writes every value.
func (s *server) fill(ctx context.Context, values *dataset, at versions) error {
	return batches(values.len(), func(which []int) error { return s.set(ctx, values, at, which) })
}

// check reads every value and compares it with its version.
func (s *server) check(ctx context.Context, values *dataset, at versions) (*checked, error) {
	c := &checked{}
	err := batches(values.len(), func(which []int) error {
		replies := make([]*redis.StringCmd, len(which))
		_, err := s.client.Pipelined(ctx, func(p redis.Pipeliner) error {
			for n, i := range which {
				replies[n] = p.Get(ctx, values.key(i))
			}
			return nil
		})
		if err != nil && !errors.Is(err, redis.Nil) {
			return fmt.Errorf("read values: %w", err)
		}
		for n, i := range which {
			got, err := replies[n].Bytes()
			if err != nil && !errors.Is(err, redis.Nil) {
				return fmt.Errorf("read values: %w", err)
			}
			c.compare(values.key(i), got, values.value(i, at[i]))
		}
		return nil
	})
	return c, err
}

// batches calls do with the numbers below n, some at a time.
func batches(n int, do func(which []int) error) error {
	which := make([]int, 0, batch)
	for i := range n {
		which = append(which, i)
		if len(which) == batch || i == n-1 {
			if err := do(which); err != nil {
				return err
			}
			which = which[:0]
		}
	}
	return nil
}

// checked counts compared values and describes the first wrong ones.
type checked struct {
	right, wrong int
	examples     []string
}

func (c *checked) compare(key string, got, want []byte) {
	if bytes.Equal(got, want) {
		c.right++
		return
	}
	c.wrong++
	if len(c.examples) < 5 {
		c.examples = append(c.examples, difference(key, got, want))
	}
}

// difference says where two values differ first, in pages too: a lost page shows.
func difference(key string, got, want []byte) string {
	if len(got) != len(want) {
		return fmt.Sprintf("%s has %d bytes instead of %d", key, len(got), len(want))
	}
	first, last, count := -1, 0, 0
	for i := range got {
		if got[i] != want[i] {
			if first < 0 {
				first = i
			}
			last = i
			count++
		}
	}
	from := got[first : last+1]
	what := fmt.Sprintf("begins with %q", from[:min(len(from), 24)])
	if len(bytes.Trim(from, "\x00")) == 0 {
		what = "is all zeros"
	}
	return fmt.Sprintf("%s of %d bytes: %d differ, from %d to %d; what was read there %s",
		key, len(want), count, first, last, what)
}

// saving says whether a save is under way, and fails when the last one did.
func (s *server) saving(ctx context.Context) (bool, error) {
	info, err := s.client.Info(ctx, "persistence").Result()
	if err != nil {
		return false, fmt.Errorf("ask redis about its save: %w", err)
	}
	if strings.Contains(info, "rdb_bgsave_in_progress:1") {
		return true, nil
	}
	if !strings.Contains(info, "rdb_last_bgsave_status:ok") {
		return false, fmt.Errorf("redis could not save: %s", s.Output())
	}
	return false, nil
}

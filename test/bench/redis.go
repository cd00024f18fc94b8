package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	redisValueBytes = 1 << 10
	redisClients    = 8
	redisPipeline   = 256
)

// server is a redis of the run's own.
type server struct {
	group  *programGroup
	cmd    *exec.Cmd
	errout bytes.Buffer
	client *redis.Client
	stop   func() bool
}

// redisGets measures random GETs, from several clients at once, with a half of what
// redis keeps local. Each value is compared.
func redisGets(ctx context.Context, b *bench) (err error) {
	program, err := exec.LookPath("redis-server")
	if err != nil {
		b.report.skip("redis", err)
		return nil
	}
	theirs, err := b.startRedis(ctx, "alone", program)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, theirs.end()) }()
	if err := theirs.fill(ctx, b.redisKeys); err != nil {
		return err
	}
	resident, err := residentOf(theirs.cmd.Process.Pid)
	if err != nil {
		return err
	}
	half := strconv.Itoa(int(resident["RssAnon"]/2*(1<<20)) / pageBytes * pageBytes)
	ours, err := b.startRedis(ctx, "far", b.farpage, "run", "--local", half, "--", program)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, ours.end()) }()
	if err := ours.fill(ctx, b.redisKeys); err != nil {
		return err
	}
	name := fmt.Sprintf("redis: a GET of 1 KiB, a half of %.0f MiB local, %d clients", resident["RssAnon"], redisClients)
	for r := range b.repetitions {
		var took [2]time.Duration
		for k := range took {
			which := (r + k) % 2
			if took[which], err = []*server{ours, theirs}[which].gets(ctx, b.redisGets, b.redisKeys, r); err != nil {
				return err
			}
		}
		each := func(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e3 / float64(b.redisGets) }
		b.report.pair(name, "µs", each(took[0]), alone, each(took[1]))
	}
	return nil
}

func (b *bench) startRedis(ctx context.Context, name string, argv ...string) (*server, error) {
	dir := filepath.Join(b.dir, "redis-"+name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	g, err := b.newGroup()
	if err != nil {
		return nil, err
	}
	socket := filepath.Join(dir, "socket")
	argv = append(argv, "--port", "0", "--unixsocket", socket, "--dir", dir, "--save", "", "--appendonly", "no", "--loglevel", "warning")
	s := &server{group: g, cmd: exec.Command(argv[0], argv[1:]...)}
	s.cmd.SysProcAttr = g.Attributes()
	s.cmd.Stderr = &s.errout
	s.cmd.WaitDelay = endLimit
	if err := s.cmd.Start(); err != nil {
		return nil, errors.Join(err, g.Close())
	}
	s.stop = context.AfterFunc(ctx, g.stop)
	redis.SetLogger(quietLogger{})
	s.client = redis.NewClient(&redis.Options{
		Network: "unix", Addr: socket, PoolSize: redisClients, MaxRetries: -1, DialerRetries: 1,
		ReadTimeout: answerLimit, WriteTimeout: answerLimit, DisableIdentity: true, Protocol: 2,
	})
	for deadline := time.Now().Add(endLimit); ; time.Sleep(10 * time.Millisecond) {
		err := s.client.Ping(ctx).Err()
		if err == nil {
			return s, nil
		}
		if ctx.Err() != nil || time.Now().After(deadline) {
			return nil, errors.Join(fmt.Errorf("%v does not answer: %w", argv, err), s.end())
		}
	}
}

// quietLogger drops what the client logs while redis is starting.
type quietLogger struct{}

func (quietLogger) Printf(context.Context, string, ...any) {}

func redisKey(i int) string { return "key:" + strconv.Itoa(i) }

// redisValue is made of its number; half of it is news to a store that compresses.
func redisValue(i int) []byte {
	var seed [32]byte
	copy(seed[:], strconv.Itoa(i))
	value := make([]byte, redisValueBytes/2, redisValueBytes)
	_, _ = rand.NewChaCha8(seed).Read(value)
	return append(value, value...)
}

func (s *server) fill(ctx context.Context, keys int) error {
	for from := 0; from < keys; from += redisPipeline {
		_, err := s.client.Pipelined(ctx, func(p redis.Pipeliner) error {
			for i := from; i < min(from+redisPipeline, keys); i++ {
				p.Set(ctx, redisKey(i), redisValue(i), 0)
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("fill redis: %w", err)
		}
	}
	return nil
}

// gets has the clients get `count` values in all.
func (s *server) gets(ctx context.Context, count, keys, repetition int) (time.Duration, error) {
	ended := make(chan error, redisClients)
	begun := time.Now()
	for c := range redisClients {
		go func() {
			random := rand.New(rand.NewPCG(uint64(repetition), uint64(c)))
			for range count / redisClients {
				i := random.IntN(keys)
				value, err := s.client.Get(ctx, redisKey(i)).Bytes()
				if err == nil && !bytes.Equal(value, redisValue(i)) {
					err = fmt.Errorf("the value of %s is wrong", redisKey(i))
				}
				if err != nil {
					ended <- err
					return
				}
			}
			ended <- nil
		}()
	}
	var errs []error
	for range redisClients {
		errs = append(errs, <-ended)
	}
	return time.Since(begun), errors.Join(errs...)
}

// end shuts redis down and sees to it that nothing is left.
func (s *server) end() error {
	ctx, cancel := context.WithTimeout(context.Background(), endLimit)
	defer cancel()
	_ = s.client.Do(ctx, "SHUTDOWN", "NOSAVE").Err() // no answer comes to this one
	_ = s.client.Close()
	late := time.AfterFunc(endLimit, s.group.stop)
	var errs []error
	if err := s.cmd.Wait(); err != nil {
		errs = append(errs, fmt.Errorf("redis: %w: %s", err, s.errout.Bytes()))
	}
	late.Stop()
	s.stop()
	return errors.Join(append(errs, s.group.end())...)
}

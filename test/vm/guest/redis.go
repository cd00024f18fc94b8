package main

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

// What redis holds.
const (
	keys       = 6000
	valueBytes = 4096
)

// redisContainer is a redis in a container, and what its values must be.
type redisContainer struct {
	id      string
	pid     string
	client  *redis.Client
	version []uint32 // of each value
}

// value is what a key has in a version; a half of it is random.
func value(key int, version uint32) []byte {
	b := make([]byte, valueBytes)
	rnd := rand.New(rand.NewPCG(uint64(key), uint64(version)))
	for i := 0; i < valueBytes/2; i += 8 {
		for k, v := 0, rnd.Uint64(); k < 8; k++ {
			b[i+k] = byte(v >> (8 * k))
		}
	}
	return b
}

func (r *redisContainer) set(ctx context.Context, key int) error {
	r.version[key]++
	return r.client.Set(ctx, fmt.Sprint("key:", key), value(key, r.version[key]), 0).Err()
}

func (r *redisContainer) check(ctx context.Context, key int) error {
	got, err := r.client.Get(ctx, fmt.Sprint("key:", key)).Bytes()
	if err == nil && !bytes.Equal(got, value(key, r.version[key])) {
		err = fmt.Errorf("value %d is wrong", key)
	}
	return err
}

// checkAll reads every value.
func (r *redisContainer) checkAll(t *test) {
	for key := range keys {
		if err := r.check(context.Background(), key); err != nil {
			t.fatalf("redis: %v", err)
		}
	}
}

// traffic rewrites and reads values, in any order, until it is stopped.
type traffic struct {
	done  atomic.Int64 // values
	stop  context.CancelFunc
	ended chan error
}

func (r *redisContainer) traffic() *traffic {
	ctx, stop := context.WithCancel(context.Background())
	f := &traffic{stop: stop, ended: make(chan error, 1)}
	go func() {
		for rnd := rand.New(rand.NewPCG(1, 2)); ctx.Err() == nil; f.done.Add(1) {
			key := rnd.IntN(keys)
			err := r.check(context.Background(), key)
			if err == nil {
				err = r.set(context.Background(), key)
			}
			if err != nil {
				f.ended <- err
				return
			}
		}
		f.ended <- nil
	}()
	return f
}

func testRedis(t *test) {
	data := filepath.Join(dir, "redis")
	t.must("mkdir", data)
	r := &redisContainer{version: make([]uint32, keys)}
	r.id = t.must(dockerRun("--detach", "--name", "redis", "--runtime", "farpage", "--annotation", annotation, "--volume", data+":/data", image,
		"redis-server", "--port", "0", "--unixsocket", "/data/s", "--dir", "/data", "--save", "")...)
	r.pid = t.must("docker", "inspect", "--format", "{{.State.Pid}}", "redis")
	r.client = redis.NewClient(&redis.Options{Network: "unix", Addr: filepath.Join(data, "s"), MaxRetries: -1, ReadTimeout: patience, WriteTimeout: patience})
	t.wait("redis does not answer", func() bool { return r.client.Ping(context.Background()).Err() == nil })
	_, seen := t.watch(r.id, func() string {
		for key := range keys {
			if err := r.set(context.Background(), key); err != nil {
				t.fatalf("redis: %v", err)
			}
		}
		r.checkAll(t)
		return ""
	})
	t.fit("redis", seen, keys*valueBytes)
	if far := t.stat(r.id).FarBytes; far < keys*valueBytes-mostBytes {
		t.errorf("redis: %d bytes are far", far)
	}
	t.redis = r
}

// under does something to the agent while redis is being used, and checks that redis goes
// on, with every byte.
func (t *test) under(what string, do func()) {
	r := t.redis
	before, agentBefore := t.stat(r.id), t.property("MainPID")
	f := r.traffic()
	t.wait("redis does nothing before "+what, func() bool { return f.done.Load() > 50 || len(f.ended) > 0 })
	do()
	t.wait("no other agent than before "+what, func() bool {
		pid := t.property("MainPID")
		return pid != "0" && pid != agentBefore && t.property("ActiveState") == "active"
	})
	from := f.done.Load()
	t.wait("redis does nothing after "+what, func() bool { return f.done.Load() > from+200 || len(f.ended) > 0 })
	f.stop()
	if err := <-f.ended; err != nil {
		t.fatalf("redis, used while %s: %v", what, err)
	}
	r.checkAll(t)
	after := t.stat(r.id)
	t.notef("%s: %d values were used; pages evicted %d before and %d after, restored %d and %d", what,
		f.done.Load(), before.EvictedPages, after.EvictedPages, before.RestoredPages, after.RestoredPages)
	if after.EvictedPages <= before.EvictedPages || after.RestoredPages <= before.RestoredPages || after.ResidentBytes > mostBytes {
		t.errorf("the agent after %s serves nothing: before %+v, after %+v", what, before, after)
	}
	if after.Faults.Unexplained != 0 || after.Errors.Checksum != 0 || after.Errors.Store != 0 {
		t.errorf("after %s: %+v", what, after)
	}
	t.managed(after.ProcessList, "redis-server")
	if pid := t.must("docker", "inspect", "--format", "{{.State.Pid}}", "redis"); pid != r.pid {
		t.errorf("redis is another process: %s, was %s", pid, r.pid)
	}
}

func testRestart(t *test) {
	t.under("systemctl restart", func() { t.must("systemctl", "restart", "farpage.service") })
}

func testKill(t *test) {
	t.under("SIGKILL of the agent", func() { t.must("systemctl", "kill", "--kill-whom=main", "--signal=KILL", "farpage.service") })
	if n := t.property("NRestarts"); n != "1" {
		t.errorf("systemd has restarted it %s times", n)
	}
}

func testStop(t *test) {
	t.under("systemctl stop and a call", func() {
		t.must("systemctl", "stop", "farpage.service")
		time.Sleep(2 * time.Second) // redis waits for its pages
		t.contains("farpage ps", t.must("farpage", "ps"), "redis-server")
	})
}

func testUpgrade(t *test) {
	t.under("an upgrade", func() { t.must("dpkg", "--install", filepath.Join(dir, "1.1.0.deb")) })
	t.contains("farpage --version", t.must("farpage", "--version"), "1.1.0")
	if exe := t.must("readlink", "/proc/"+t.property("MainPID")+"/exe"); exe != "/usr/bin/farpage" {
		t.errorf("the agent is %s", exe)
	}
	t.contains("farpage install docker", t.must("farpage", "install", "docker"), "nothing to change")
}

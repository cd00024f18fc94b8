package e2e

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const (
	redisKeys       = 24 << 10
	redisValueBytes = 4 << 10 // 96 MiB in all
	redisPipeline   = 64
)

// redisValue cannot be compressed for even keys and can for odd ones.
func redisValue(key, generation int) []byte {
	value := make([]byte, redisValueBytes)
	if key%2 == 1 {
		copy(value, bytes.Repeat(fmt.Appendf(nil, "value %d generation %d. ", key, generation), redisValueBytes/24))
		return value
	}
	var seed [32]byte
	copy(seed[:], fmt.Sprintf("%d %d", key, generation))
	rand.NewChaCha8(seed).Read(value) // never fails
	return value
}

func redisKey(key int) []byte { return fmt.Appendf(nil, "key:%d", key) }

// shortTempDir has room for a socket: their paths hold 107 bytes, and t.TempDir's
// name the test.
func shortTempDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "redis-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

type redisServer struct {
	job
	t      *testing.T
	client *redisClient
}

// redisCommand is a server on a socket in its folder, that saves only when told to.
func redisCommand(t *testing.T, dir string) []string {
	t.Helper()
	return []string{
		requireProgram(t, "redis-server"), "--port", "0",
		"--unixsocket", "redis.sock", "--save", "", "--dir", dir, "--daemonize", "no",
	}
}

// redis waits until the server that was started as a job answers.
func redis(t *testing.T, dir string, started job) redisServer {
	t.Helper()
	server := redisServer{job: started, t: t}
	client, err := dialRedis(filepath.Join(dir, "redis.sock"), 30*time.Second)
	if err != nil {
		server.giveUp(err.Error())
	}
	server.client = client
	for {
		_, err := client.do("PING")
		if err == nil {
			return server
		}
		if !strings.Contains(err.Error(), "LOADING") {
			server.giveUp(err.Error())
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// pipelined sends a command for each key and gives each reply to check.
func (s redisServer) pipelined(keys []int, command func(key int) [][]byte, check func(key int, reply []byte) error) {
	s.t.Helper()
	for len(keys) > 0 {
		batch := keys[:min(redisPipeline, len(keys))]
		keys = keys[len(batch):]
		for _, key := range batch {
			s.client.send(command(key)...)
		}
		for _, key := range batch {
			reply, err := s.client.receive()
			if err == nil {
				err = check(key, reply)
			}
			if err != nil {
				s.giveUp(fmt.Sprintf("key %d: %v", key, err))
			}
		}
	}
}

func (s redisServer) set(keys []int, generation int) {
	s.t.Helper()
	s.pipelined(keys, func(key int) [][]byte {
		return [][]byte{[]byte("SET"), redisKey(key), redisValue(key, generation)}
	}, func(_ int, reply []byte) error {
		if string(reply) != "OK" {
			return fmt.Errorf("SET says %q", reply)
		}
		return nil
	})
}

// expect reads every key back. generation says which value a key must have.
func (s redisServer) expect(keys []int, generation func(key int) int) {
	s.t.Helper()
	wrong := 0
	s.pipelined(keys, func(key int) [][]byte {
		return [][]byte{[]byte("GET"), redisKey(key)}
	}, func(key int, reply []byte) error {
		if !bytes.Equal(reply, redisValue(key, generation(key))) {
			wrong++
		}
		return nil
	})
	if wrong > 0 {
		s.t.Errorf("%d of %d values are wrong", wrong, len(keys))
	}
}

func (s redisServer) must(words ...string) string {
	s.t.Helper()
	reply, err := s.client.do(words...)
	if err != nil {
		s.giveUp(fmt.Sprintf("%v: %v", words, err))
	}
	return string(reply)
}

func (s redisServer) awaitSaved(limit time.Duration) {
	s.t.Helper()
	for deadline := time.Now().Add(limit); ; time.Sleep(50 * time.Millisecond) {
		info := s.must("INFO", "persistence")
		if strings.Contains(info, "rdb_bgsave_in_progress:0") {
			if !strings.Contains(info, "rdb_last_bgsave_status:ok") {
				s.giveUp("BGSAVE failed:\n" + info)
			}
			return
		}
		if time.Now().After(deadline) {
			s.giveUp("BGSAVE did not end")
		}
	}
}

func (s redisServer) shutdown() outcome {
	s.t.Helper()
	s.client.send([]byte("SHUTDOWN"), []byte("NOSAVE"))
	_, _ = s.client.receive() // the connection ends instead of a reply
	_ = s.client.close()
	return s.wait(time.Minute)
}

func TestRedisKeepsEveryValueAndSavesWhatWasThereAtTheFork(t *testing.T) {
	requireFarpage(t)
	keys := seeded("redis").Perm(redisKeys)
	rewritten := func(key int) bool { return key%4 < 2 }
	var half []int
	for _, key := range keys {
		if rewritten(key) {
			half = append(half, key)
		}
	}
	dir := shortTempDir(t)
	server := redis(t, dir, startFar(t, dir, redisCommand(t, dir)...))
	server.set(keys, 1)
	// The reply comes after the fork: the child must save generation 1 of all.
	server.must("BGSAVE")
	server.set(half, 2)
	server.awaitSaved(3 * time.Minute)
	server.expect(keys, func(key int) int {
		if rewritten(key) {
			return 2
		}
		return 1
	})
	far := server.shutdown()
	far.log(t)
	if far.status != 0 {
		t.Errorf("exit status %d\nstdout:\n%s\nstderr:\n%s", far.status, tail(far.stdout), tail(far.stderr))
	}
	far.expectSound(t)
	far.expectFar(t)
	far.expectInBudget(t)
	expectSaved(t, dir, keys)
}

// expectSaved loads the snapshot, which must hold generation 1 of every key, into a
// redis that has nothing to do with farpage.
func expectSaved(t *testing.T, dir string, keys []int) {
	t.Helper()
	second := redis(t, dir, startNative(t, dir, redisCommand(t, dir)...))
	if size := second.must("DBSIZE"); size != fmt.Sprint(len(keys)) {
		t.Errorf("the snapshot holds %s keys, want %d", size, len(keys))
	}
	second.expect(keys, func(int) int { return 1 })
	second.shutdown()
}

package engines

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/farpage/farpage/test/container"
	"github.com/redis/go-redis/v9"
)

// redisImage is a root file system with the host's redis.
func redisImage(t *testing.T) string {
	t.Helper()
	root := filepath.Join(t.TempDir(), "redis")
	if err := container.WriteRootfs(root, container.Config{Programs: []string{"redis-server"}}); err != nil {
		t.Fatal(err)
	}
	return root
}

// redisCommand starts it in a container that has a folder at /data.
var redisCommand = []string{"redis-server", "--port", "0", "--unixsocket", "/data/s", "--unixsocketperm", "777", "--dir", "/data", "--save", ""}

// redisFolder makes that folder.
func redisFolder(t *testing.T, path string) {
	t.Helper()
	if err := os.Mkdir(path, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o777); err != nil {
		t.Fatal(err)
	}
}

// redisByValue fills a redis that has a budget of 32 MiB with three times as much, has it
// saved while it is evicted from, and compares every value. Its socket is in folder.
func (h *host) redisByValue(t *testing.T, id, folder string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	watcher := container.Watch(func() ([]int, error) {
		s, err := h.Stats(ctx, id)
		var pids []int
		for _, p := range s.ProcessList {
			pids = append(pids, p.Pid)
		}
		return pids, err
	}, 50*time.Millisecond)
	client := redis.NewClient(&redis.Options{Network: "unix", Addr: filepath.Join(folder, "s"), MaxRetries: 20})
	defer client.Close()
	const keys, valueBytes = 24000, 4096
	value := func(i int) []byte {
		b := make([]byte, valueBytes)
		rnd := rand.New(rand.NewPCG(uint64(i), 1))
		for k := 0; k < valueBytes/2; k++ { // a half of it is random
			b[k] = byte(rnd.Uint32())
		}
		return b
	}
	for i := range keys {
		if err := client.Set(ctx, fmt.Sprint("key:", i), value(i), 0).Err(); err != nil {
			t.Fatal(err)
		}
		if i == keys/2 {
			if err := client.BgSave(ctx).Err(); err != nil {
				t.Fatal(err)
			}
		}
	}
	for i := range keys {
		got, err := client.Get(ctx, fmt.Sprint("key:", i)).Bytes()
		if err != nil || string(got) != string(value(i)) {
			t.Fatalf("value %d is wrong (%v)", i, err)
		}
	}
	for saving := true; saving; time.Sleep(100 * time.Millisecond) {
		info, err := client.Info(ctx, "persistence").Result()
		if err != nil {
			t.Fatal(err)
		}
		saving = strings.Contains(info, "rdb_bgsave_in_progress:1")
		if !saving && !strings.Contains(info, "rdb_last_bgsave_status:ok") {
			t.Errorf("the save failed: %s", info)
		}
	}
	s, err := h.Stats(ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	seen := watcher.Stop()
	t.Logf("redis: peak %s; %d pages evicted, %d restored", seen, s.EvictedPages, s.RestoredPages)
	const most = 32<<20 + 16<<20 // as the end-to-end tests have it
	if seen.PeakBytes == 0 || seen.PeakBytes > most || s.FarBytes < 48<<20 || s.Forks != 1 || s.Faults.Unexplained != 0 || s.Errors.Checksum != 0 {
		t.Errorf("peak %d of %d bytes; %+v", seen.PeakBytes, most, s)
	}
}

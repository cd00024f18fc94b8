package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/farpage/farpage/api"
)

// farAgent is the private agent of a `farpage run`.
type farAgent struct {
	client *api.Client
	id     string // of its container
	pid    int
}

// findAgent finds the agent that serves a process, by the library that the process
// has preloaded, and waits until the process is taken in.
func findAgent(ctx context.Context, pid int) (*farAgent, error) {
	library, err := preloaded(pid)
	if err != nil {
		return nil, err
	}
	dir := filepath.Dir(library)
	for ; dir != "/"; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, api.SocketName)); err == nil {
			break
		}
	}
	a := &farAgent{client: api.NewClientIn(dir)}
	ctx, cancel := context.WithTimeoutCause(ctx, 10*time.Second, fmt.Errorf("process %d was not taken in", pid))
	defer cancel()
	for {
		all, err := a.client.List(ctx)
		if err == nil && len(all) == 1 {
			a.id = all[0].ID
			for _, p := range all[0].ProcessList {
				if p.Pid == pid && p.State == "managed" && p.Reason == "" {
					info, err := a.client.Agent(ctx)
					a.pid = info.Pid
					return a, err
				}
			}
		}
		select {
		case <-ctx.Done():
			a.client.Close()
			return nil, errors.Join(context.Cause(ctx), err)
		case <-time.After(time.Millisecond):
		}
	}
}

// preloaded is the last library in a process's LD_PRELOAD.
func preloaded(pid int) (string, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	if err != nil {
		return "", err
	}
	for variable := range bytes.SplitSeq(text, []byte{0}) {
		if list, ok := bytes.CutPrefix(variable, []byte("LD_PRELOAD=")); ok {
			return string(list[bytes.LastIndexByte(list, ':')+1:]), nil
		}
	}
	return "", fmt.Errorf("process %d has no LD_PRELOAD", pid)
}

// evictTries is how often all is evicted again, where some of it has stayed.
const evictTries = 100

// evict sends all far that can be, until at least `far` pages are. It says how many
// went, and how long that took: from asking until the store has the last of them.
func (a *farAgent) evict(ctx context.Context, far int) (pages int64, took time.Duration, err error) {
	for range evictTries {
		begun := time.Now()
		reply, err := a.client.Evict(ctx, a.id, api.EvictRequest{All: true})
		if err != nil {
			return 0, 0, err
		}
		pages += reply.EvictedPages
		took += time.Since(begun)
		c, err := a.client.Get(ctx, a.id)
		if err != nil {
			return 0, 0, err
		}
		if c.FarBytes >= int64(far)*pageBytes {
			return pages, took, nil
		}
	}
	return 0, 0, fmt.Errorf("%d pages cannot be evicted, asked %d times", far, evictTries)
}

// stored waits until the store has taken all pages that were given to it.
func (a *farAgent) stored(ctx context.Context) error {
	last := int64(-1)
	for {
		c, err := a.client.Get(ctx, a.id)
		if err != nil {
			return err
		}
		if c.StoreBytes == last {
			return nil
		}
		last = c.StoreBytes
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

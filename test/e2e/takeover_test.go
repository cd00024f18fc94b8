package e2e

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// killing kills an agent over and over, at random moments.
type killing struct {
	done  chan struct{} // closed after the last kill, when a new agent is there
	stop  func()        // makes an end of it and waits for done
	kills int           // valid when done is closed
}

// killOften calls kill, which also sees to it that there is a new agent, at most
// that often, each time after 50 to 300 ms.
func killOften(t *testing.T, most int, random *rand.Rand, kill func() error) *killing {
	t.Helper()
	stopped := make(chan struct{})
	k := &killing{done: make(chan struct{})}
	go func() {
		defer close(k.done)
		for k.kills < most {
			select {
			case <-stopped:
				return
			case <-time.After(50*time.Millisecond + time.Duration(random.Int64N(int64(250*time.Millisecond)))):
			}
			if err := kill(); err != nil {
				t.Errorf("after %d kills: %v", k.kills, err)
				return
			}
			k.kills++
		}
	}()
	k.stop = sync.OnceFunc(func() {
		close(stopped)
		<-k.done
	})
	t.Cleanup(k.stop)
	return k
}

// expectAll says that the program lived through all kills.
func (k *killing) expectAll(t *testing.T, most int) {
	t.Helper()
	k.stop()
	if k.kills != most {
		t.Errorf("the agent was killed %d times only, want %d: the program is too short", k.kills, most)
	}
}

// killAgent kills the host's agent and starts the next one.
func (h *host) killAgent() error {
	if err := h.Kill(); err != nil {
		return err
	}
	return h.Again(h.t.Context())
}

func TestRedisThatSavesOutlivesTenAgents(t *testing.T) {
	const agents = 10
	host := startHost(t)
	keys := seeded("redis").Perm(redisKeys)
	dir := shortTempDir(t)
	// Its child takes its time, so that all agents die under it.
	command := append(redisCommand(t, dir), "--rdb-key-save-delay", "250")
	server := redis(t, dir, host.startContained(t, dir, "32Mi", nil, command...))
	server.set(keys, 1)
	server.must("BGSAVE")

	random := seeded("writes")
	generations := map[int]int{}
	killing := killOften(t, agents, seeded("kills"), host.killAgent)
	for generation := 2; ; generation++ {
		some := make([]int, redisPipeline)
		for i := range some {
			some[i] = keys[random.IntN(len(keys)/2)]
		}
		slices.Sort(some)
		some = slices.Compact(some)
		server.set(some, generation)
		for _, key := range some {
			generations[key] = generation
		}
		select {
		case <-killing.done:
		default:
			continue
		}
		break
	}
	killing.expectAll(t, agents)
	if info := server.must("INFO", "persistence"); !strings.Contains(info, "rdb_bgsave_in_progress:1") {
		t.Error("the save was over before the last agent died")
	}
	server.awaitSaved(3 * time.Minute)
	server.expect(keys, func(key int) int { return max(1, generations[key]) })
	far := server.shutdown()
	far.log(t)
	t.Logf("%d values were rewritten meanwhile", len(generations))
	if far.status != 0 {
		t.Errorf("exit status %d\nstderr:\n%s", far.status, tail(far.stderr))
	}
	far.expectSound(t)
	far.expectFar(t)
	expectSaved(t, dir, keys)
}

func TestProgramsInContainersOutliveTheirAgents(t *testing.T) {
	const agents = 15
	host := startHost(t)
	for _, p := range []program{
		guestProgram("forktree", "64"), guestProgram("threads8", "256"), guestProgram("daemonise", "64", "64", "512"),
	} {
		t.Run(p.name, func(t *testing.T) {
			native := p.runNative(t)
			far := p.run(t, func(dir string) job {
				c := host.startContained(t, dir, "32Mi", nil, p.argv(t)...)
				return &underKills{c, killOften(t, agents, seeded(p.name), host.killAgent)}
			})
			far.log(t)
			far.expectSame(t, native.outcome)
			far.expectSound(t)
			far.expectFar(t)
		})
	}
}

// underKills is a job whose agent is killed until the job's end is near.
type underKills struct {
	job
	killing *killing
}

func (u *underKills) wait(limit time.Duration) outcome {
	if c, contained := u.job.(*contained); contained {
		c.awaitProgram(limit)
	}
	u.killing.stop() // statistics come from a living agent
	return u.job.wait(limit)
}

func TestProgramsUnderRunOutliveTheirAgents(t *testing.T) {
	const agents = 20
	for _, p := range []program{
		guestProgram("forktree", "96"), guestProgram("shortforks", "64", "1500", "64"),
	} {
		t.Run(p.name, func(t *testing.T) {
			native := p.runNative(t)
			var killing *killing
			far := p.run(t, func(dir string) job {
				r := startFar(t, dir, p.argv(t)...)
				r.awaitCommand()
				killing = killOften(t, agents, seeded(p.name), r.killAgent)
				return r
			})
			far.log(t)
			killing.expectAll(t, agents)
			far.expectSame(t, native.outcome)
			far.expectSound(t)
			far.expectFar(t)
		})
	}
}

// awaitCommand waits until the run has come to its command: before, it has nothing
// that could go on.
func (r *running) awaitCommand() {
	r.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		pids, err := r.group.PidsExcept(farpagePath())
		if err != nil {
			r.t.Fatal(err)
		}
		if len(pids) > 0 {
			return
		}
		if time.Now().After(deadline) {
			r.giveUp("has not started its command")
		}
	}
}

// killAgent kills the agent of this run, which the run itself replaces.
func (r *running) killAgent() error {
	for range 1000 {
		pids, err := r.group.Pids()
		if err != nil {
			return err
		}
		for _, pid := range pids {
			if killed, err := r.killIfAgent(pid); killed || err != nil {
				return err
			}
		}
		time.Sleep(5 * time.Millisecond)
	}
	return errors.New("there is no new agent")
}

func (r *running) killIfAgent(pid int) (bool, error) {
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return false, nil // it has just ended
	}
	defer unix.Close(pidfd)
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if arguments := strings.Split(string(text), "\x00"); len(arguments) < 2 || arguments[0] != "farpage" || arguments[1] != "agent" {
		return false, nil
	}
	if err := unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0); err != nil {
		return false, nil // it has just ended
	}
	poll := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	for {
		if _, err := unix.Poll(poll, -1); err != unix.EINTR {
			return true, err
		}
	}
}

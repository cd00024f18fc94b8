package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/farpage/farpage/api"
	"golang.org/x/sys/unix"
)

// onDisk starts a command with a small file system on folder, where a file that is
// nobody's leaves free bytes. Both are seen by nobody else, and gone with the command.
func onDisk(t *testing.T, folder string, bytes, free int64) []string {
	t.Helper()
	script := `mount -t tmpfs -o size=$1,mode=711 farpage-test "$3" && head -c $2 /dev/zero >"$3/` + otherFile + `" && shift 3 && exec "$@"`
	return []string{
		requireProgram(t, "unshare"), "-m", "sh", "-c", script, "sh",
		fmt.Sprint(bytes), fmt.Sprint(bytes - free), folder,
	}
}

// otherFile is the file that is nobody's.
const otherFile = "other"

// disk is a file system that a process sees.
type disk struct {
	t    *testing.T
	path string
}

// diskOf is what a process sees at a path.
func diskOf(t *testing.T, pid int, path string) disk {
	return disk{t, fmt.Sprintf("/proc/%d/root%s", pid, path)}
}

func (d disk) free() int64 {
	d.t.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs(d.path, &st); err != nil {
		d.t.Fatal(err)
	}
	return int64(st.Bavail) * st.Bsize
}

// makeRoom removes the file that is nobody's.
func (d disk) makeRoom() {
	d.t.Helper()
	if err := os.Remove(filepath.Join(d.path, otherFile)); err != nil {
		d.t.Fatal(err)
	}
}

// residentNow is the sum of Pss_Anon, from outside.
func (r *running) residentNow() int64 {
	r.t.Helper()
	w := watch(r.t, func() ([]int, error) { return r.group.PidsExcept(farpagePath()) })
	time.Sleep(5 * sampleInterval)
	return w().LastBytes
}

// await waits until something holds.
func (r *running) await(what string, holds func() bool) {
	r.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !holds(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			r.giveUp("waits in vain for " + what)
		}
	}
}

// said are the messages of a private agent about eviction, each with its level.
func (a privateAgent) said(t *testing.T) (messages []string) {
	t.Helper()
	for line := range strings.Lines(readAll(t, filepath.Join(a.dir, "agent.log"))) {
		_, line, _ = strings.Cut(strings.TrimSpace(line), " ") // behind the time
		if strings.Contains(line, "evict") {
			messages = append(messages, line)
		}
	}
	return messages
}

// fillRedis gives a server more than its budget and the little room elsewhere take.
func fillRedis(server redisServer) (keys []int) {
	keys = seeded("full").Perm(20 << 10)
	server.set(keys, 1)
	server.expect(keys, func(int) int { return 1 })
	return keys
}

// expectStopped says that eviction has stopped, that the log says so once, and that it is
// not tried again and again while nothing changes.
func (r *running) expectStopped(agent privateAgent, says ...string) {
	r.t.Helper()
	if resident := r.residentNow(); resident < mostResidentBytes(budgetBytes) {
		r.t.Fatalf("%d MiB are resident: want more than there is room for elsewhere", resident>>20)
	}
	quiet := false
	var before, after api.Container
	var writes int64
	for range 10 { // the program may do something by itself
		before, writes = r.ps(agent), -agent.writes(r.t)
		time.Sleep(time.Second)
		after, writes = r.ps(agent), writes+agent.writes(r.t)
		if quiet = after.FarLimitHits == before.FarLimitHits && after.EvictedPages == before.EvictedPages; quiet {
			break
		}
	}
	if !quiet {
		r.t.Errorf("with nothing to do eviction was stopped %d times, %d before; %d pages evicted, %d before",
			after.FarLimitHits, before.FarLimitHits, after.EvictedPages, before.EvictedPages)
	}
	if writes > writesMost {
		r.t.Errorf("with nothing to do the agent writes %d times in a second", writes)
	}
	if after.FarLimitHits == 0 || after.Errors != (api.Errors{}) {
		r.t.Errorf("eviction was stopped %d times, errors %+v: want some, none", after.FarLimitHits, after.Errors)
	}
	if said := agent.said(r.t); !slices.Equal(said, says) {
		r.t.Errorf("the log says\n%s\nwant\n%s", strings.Join(said, "\n"), strings.Join(says, "\n"))
	}
}

// writesMost is how often an agent may write in a second of nothing to do. It looks some
// twenty times whether the store has room again; offering all that was refused takes 300.
const writesMost = 100

// writes is how often the agent has called write(2) and the like.
func (a privateAgent) writes(t *testing.T) (n int64) {
	t.Helper()
	_, text, _ := strings.Cut(readAll(t, fmt.Sprintf("/proc/%d/io", a.pid)), "syscw: ")
	if _, err := fmt.Sscan(text, &n); err != nil {
		t.Fatal(err)
	}
	return n
}

// expectGoesOn says that eviction brings the program back into its budget.
func (r *running) expectGoesOn() {
	r.t.Helper()
	r.await("eviction to go on", func() bool { return r.residentNow() <= mostResidentBytes(budgetBytes) })
}

// expectWell ends a server that has had its memory far.
func (s redisServer) expectWell() {
	s.t.Helper()
	far := s.shutdown()
	far.log(s.t)
	if far.status != 0 {
		s.t.Errorf("exit status %d\nstderr:\n%s", far.status, tail(far.stderr))
	}
	far.expectSound(s.t)
	far.expectFar(s.t)
}

func TestFullDiskStopsEvictionAndRoomLetsItGoOn(t *testing.T) {
	requireFarpage(t)
	const room = 12 << 20
	dir, slots, stats := shortTempDir(t), t.TempDir(), filepath.Join(t.TempDir(), "stats.json")
	r := start(t, dir, stats, slices.Concat(onDisk(t, slots, 96<<20, room), []string{
		farpagePath(), "run", "--local", "32Mi", "--stats", stats, "--store", "file://" + filepath.Join(slots, "slots"), "--",
	}, redisCommand(t, dir)))
	server := redis(t, dir, r)
	agent := r.awaitAgent()
	disk := diskOf(t, agent.pid, slots)
	id := r.ps(agent).ID

	keys := fillRedis(server)
	r.await("a full disk", func() bool { return disk.free() == 0 })
	full := fmt.Sprintf(`level=warning msg="the store is full: eviction stops until it has room" container=%s`, id)
	r.expectStopped(agent, full)

	disk.makeRoom()
	r.expectGoesOn()
	var file syscall.Stat_t
	if err := syscall.Stat(filepath.Join(disk.path, "slots"), &file); err != nil || file.Blocks*512 < 2*room {
		t.Errorf("the slot file takes %d MiB, %v: want more than there was room for", file.Blocks>>11, err)
	}
	server.expect(keys, func(int) int { return 1 })
	goesOn := fmt.Sprintf(`level=info msg="eviction is not held up any more" container=%s`, id)
	r.await("the log to say so", func() bool { return slices.Equal(agent.said(t), []string{full, goesOn}) })
	server.expectWell()
}

func TestFarLimitStopsEvictionAndAHigherOneLetsItGoOn(t *testing.T) {
	requireFarpage(t)
	dir, stats := shortTempDir(t), filepath.Join(t.TempDir(), "stats.json")
	r := start(t, dir, stats, append([]string{
		farpagePath(), "run", "--local", "32Mi", "--far", "12Mi", "--stats", stats, "--",
	}, redisCommand(t, dir)...))
	server := redis(t, dir, r)
	agent := r.awaitAgent()
	id := r.ps(agent).ID

	keys := fillRedis(server)
	r.expectStopped(agent, fmt.Sprintf(`level=warning msg="the far limit of 12 MiB is reached: eviction stops until far pages are given up" container=%s`, id))
	if far := r.ps(agent).FarBytes; far > 12<<20 {
		t.Errorf("%d bytes are far: want at most 12 MiB", far)
	}

	stdout, stderr, status := farpage(t, "set", id, "far=unlimited", "--socket-dir", agent.dir)
	if want := id + ": local 32 MiB, far unlimited\n"; status != 0 || stdout != want || stderr != "" {
		t.Errorf("set: status %d, stdout %q, stderr %q: want 0, %q, nothing", status, stdout, stderr, want)
	}
	r.expectGoesOn()
	server.expect(keys, func(int) int { return 1 })
	server.expectWell()
}

func TestStatisticsThatFindNoRoomAreNotLost(t *testing.T) {
	requireFarpage(t)
	program := guestProgram("threads8", "64")
	native := program.runNative(t)
	folder := t.TempDir()
	for _, test := range []struct {
		name   string
		before []string
		why    string
	}{
		{"a full disk", onDisk(t, folder, 64<<10, 0), "no space left on device"},
		{"room for half of them", []string{"sh", "-c", `ulimit -Sf 1; exec "$@"`, "sh"}, "file too large"},
	} {
		t.Run(test.name, func(t *testing.T) {
			stats := filepath.Join(folder, "stats.json")
			argv := slices.Concat(test.before, []string{
				"sh", "-c", `"$@"; status=$?; wc -c <"$0" >&2; exit $status`, stats,
				farpagePath(), "run", "--local", "32Mi", "--stats", stats, "--",
			}, program.argv(t))
			far := start(t, t.TempDir(), "", argv).wait(time.Minute)
			far.expectSame(t, native.outcome)
			said, found := strings.CutPrefix(string(far.stderr), "farpage: write statistics: write "+stats+": "+test.why+"; they are ")
			text, size, _ := strings.Cut(said, "\n")
			if !found || size != "0\n" {
				t.Fatalf("farpage and wc say\n%swant that there is no room, the statistics, and no byte in the file", far.stderr)
			}
			if err := json.Unmarshal([]byte(text), &far.stats); err != nil {
				t.Fatalf("statistics %q: %v", text, err)
			}
			far.budget = budgetBytes
			far.expectSound(t)
			far.expectFar(t)
		})
	}
}

func TestAgentWhoseStateFindsNoRoomDoesNotStart(t *testing.T) {
	folder := t.TempDir()
	sockets := filepath.Join(shortTempDir(t), "sockets")
	argv := slices.Concat(onDisk(t, folder, 64<<10, 0), []string{
		"sh", "-c", `"$@"; status=$?; ls -A "$0"; exit $status`, folder,
		farpagePath(), "agent", "--state-dir", folder, "--socket-dir", sockets,
	})
	far := failing(t, argv...)
	says := "farpage: write the keeper's record: write " + folder + "/keeper.json.new: no space left on device: free some of the disk or choose another --state-dir\n"
	if far.status != 1 || string(far.stdout) != otherFile+"\n" || string(far.stderr) != says {
		t.Errorf("status %d, stdout %q, it says\n%swant 1, only the file of somebody else,\n%s", far.status, far.stdout, far.stderr, says)
	}
	if _, err := os.Stat(sockets); err == nil {
		t.Error("it has left the folder of its sockets")
	}
}

// The agent dies, and those after it find no room to say that they are there. The
// program waits, and goes on when there is.
func TestProgramOutlivesItsAgentOnAFullDisk(t *testing.T) {
	const folder = "/run/farpage"
	requireFarpage(t)
	if err := os.MkdirAll(folder, 0o711); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(folder) }) // not if somebody else has something in it
	program := guestProgram("threads8", "192")
	native := program.runNative(t)
	var says string
	far := program.run(t, func(dir string) job {
		r := startFarIn(t, onDisk(t, folder, 1<<20, 512<<10), program.argv(t)...)
		guest := r.awaitProgram(program.argv(t)[0])
		agent := privateAgent{dir: r.privateDir()}
		disk := diskOf(t, guest, folder)
		agent.dir = diskOf(t, guest, agent.dir).path
		disk.fill()
		if err := r.killAgent(); err != nil {
			t.Fatal(err)
		}
		const refusal = "farpage: write the keeper's record: write RUN/state/keeper.json.new: no space left on device: free some of the disk or choose another --state-dir\n"
		says = "farpage: the private agent has died and does not start again (RUN/agent.log says why): the command waits for its memory, and it is tried again\n"
		run := strings.TrimPrefix(agent.dir, fmt.Sprintf("/proc/%d/root", guest))
		says = strings.ReplaceAll(says, "RUN", run)
		r.await("agents that find no room", func() bool {
			return strings.Count(readAll(t, filepath.Join(agent.dir, "agent.log")), strings.ReplaceAll(refusal, "RUN", run)) >= 2
		})
		disk.makeRoom()
		return r
	})
	far.log(t)
	far.expectSame(t, native.outcome)
	far.expectSound(t)
	far.expectFar(t)
	if string(far.stderr) != says {
		t.Errorf("farpage says\n%swant\n%s", far.stderr, says)
	}
}

// awaitProgram waits until a program of the run has started, and returns its process.
func (r *running) awaitProgram(path string) (pid int) {
	r.t.Helper()
	r.await(path, func() bool {
		pids, err := r.group.Pids()
		if err != nil {
			r.t.Fatal(err)
		}
		at := slices.IndexFunc(pids, func(pid int) bool {
			exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
			return exe == path
		})
		if at >= 0 {
			pid = pids[at]
		}
		return at >= 0
	})
	return pid
}

// privateDir is the folder of the run's agent.
func (r *running) privateDir() string {
	r.t.Helper()
	pids, err := r.group.Pids()
	if err != nil {
		r.t.Fatal(err)
	}
	dirs := privateDirs(pids)
	if len(dirs) != 1 {
		r.giveUp(fmt.Sprintf("has agents in %q, want one", dirs))
	}
	return dirs[0]
}

// fill leaves no byte free.
func (d disk) fill() {
	d.t.Helper()
	file, err := os.OpenFile(filepath.Join(d.path, otherFile), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		d.t.Fatal(err)
	}
	defer file.Close()
	for {
		if _, err := file.Write(make([]byte, 4096)); errors.Is(err, unix.ENOSPC) {
			return
		} else if err != nil {
			d.t.Fatal(err)
		}
	}
}

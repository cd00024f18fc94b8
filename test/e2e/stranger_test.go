package e2e

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/farpage/farpage/api"
	"github.com/farpage/farpage/handler/keeper"
	"github.com/farpage/farpage/handler/state"
	"golang.org/x/sys/unix"
)

// stateDir is where the agent's state is.
func (h *host) stateDir() string { return filepath.Join(filepath.Dir(h.SocketDir()), "state") }

// strangers are folders that an agent must not make its own. Each is made in dir and
// returns its path.
var strangers = []struct {
	name string
	make func(dir string) (path string, err error)
	says string // PATH and DIR for the paths
}{
	{
		"of another user",
		func(dir string) (string, error) {
			path := filepath.Join(dir, "theirs")
			return path, firstError(os.Mkdir(path, 0o700), os.Chown(path, 4711, 4711))
		},
		"PATH belongs to user 4711, who could change what the agent relies on: choose another folder, or make it root's (chown root PATH)",
	},
	{
		"open to its group",
		func(dir string) (string, error) {
			path := filepath.Join(dir, "group")
			return path, firstError(os.Mkdir(path, 0o700), os.Chmod(path, 0o770))
		},
		"PATH can be changed by others (mode 0770): choose another folder, or forbid it (chmod go-w PATH)",
	},
	{
		"open to everybody",
		func(dir string) (string, error) {
			path := filepath.Join(dir, "all")
			return path, firstError(os.Mkdir(path, 0o700), os.Chmod(path, 0o777|os.ModeSticky))
		},
		"PATH can be changed by others (mode 0777): choose another folder, or forbid it (chmod go-w PATH)",
	},
	{
		"a symbolic link",
		func(dir string) (string, error) {
			path, to := filepath.Join(dir, "link"), filepath.Join(dir, "folder")
			return path, firstError(os.Mkdir(to, 0o755), os.Symlink(to, path))
		},
		"PATH is a symbolic link: give the folder that it leads to",
	},
	{
		"a symbolic link to nothing",
		func(dir string) (string, error) {
			path := filepath.Join(dir, "link")
			return path, os.Symlink(filepath.Join(dir, "nothing"), path)
		},
		"PATH is a symbolic link: give the folder that it leads to",
	},
	{
		"a file",
		func(dir string) (string, error) {
			path := filepath.Join(dir, "file")
			return path, os.WriteFile(path, []byte("text\n"), 0o644)
		},
		"PATH is a file: choose a folder",
	},
	{
		"below a file",
		func(dir string) (string, error) {
			path := filepath.Join(dir, "file")
			return filepath.Join(path, "state"), os.WriteFile(path, []byte("text\n"), 0o644)
		},
		"PATH cannot be made: not a directory: choose another folder",
	},
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func TestFolderOfAStrangerIsRefusedAndLeftAsItIs(t *testing.T) {
	requireFarpage(t)
	for _, stranger := range strangers {
		t.Run(stranger.name, func(t *testing.T) {
			dir := shortTempDir(t)
			path, err := stranger.make(dir)
			if err != nil {
				t.Fatal(err)
			}
			before := treeOf(t, dir)
			says := strings.ReplaceAll(stranger.says, "PATH", path) + "\n"
			other := filepath.Join(dir, "other", "one")
			failing(t, farpagePath(), "agent", "--state-dir", path, "--socket-dir", other).
				expectRefusal(t, 1, "farpage: --state-dir "+says)
			failing(t, farpagePath(), "agent", "--state-dir", other, "--socket-dir", path).
				expectRefusal(t, 1, "farpage: --socket-dir "+says)
			if after := treeOf(t, dir); !slices.Equal(after, before) {
				t.Errorf("there is now\n%s\nbefore\n%s", strings.Join(after, "\n"), strings.Join(before, "\n"))
			}
		})
	}
}

func TestRecordThatIsNoRecordIsRefused(t *testing.T) {
	requireFarpage(t)
	dir := shortTempDir(t)
	record := filepath.Join(dir, "keeper.json")
	writeText(t, record, "{\"pid\": ")
	failing(t, farpagePath(), "agent", "--state-dir", dir, "--socket-dir", dir+"/sockets").expectRefusal(t, 1,
		"farpage: "+record+" is no keeper's record (unexpected end of JSON input): remove it if no farpage-keeper runs, else choose another --state-dir\n")
	if names := entries(t, dir); !slices.Equal(names, []string{"keeper.json"}) || readAll(t, record) != "{\"pid\": " {
		t.Errorf("the folder holds %q now, the record says %q", names, readAll(t, record))
	}
}

// What is there already, root's own and open for reading, stays as it is.
func TestFolderOfRootIsTakenWithAllThatIsInIt(t *testing.T) {
	requireFarpage(t)
	dir := shortTempDir(t)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	writeText(t, filepath.Join(dir, "notes"), "somebody's\n")
	before := treeOf(t, dir)
	r := start(t, t.TempDir(), "", []string{farpagePath(), "agent", "--state-dir", dir, "--socket-dir", dir})
	awaitFile(t, filepath.Join(dir, api.SocketName))
	during := treeOf(t, dir)
	if err := r.command.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if o := r.wait(time.Minute); o.status != 0 || len(o.stdout)+len(o.stderr) > 0 {
		t.Errorf("status %d, stdout %q, stderr %q: want 0 and nothing", o.status, o.stdout, o.stderr)
	}
	for _, line := range before {
		if !slices.Contains(during, line) {
			t.Errorf("while the agent runs it is not %s but\n%s", line, strings.Join(during, "\n"))
		}
	}
	if after := treeOf(t, dir); !slices.Equal(after, before) {
		t.Errorf("there is now\n%s\nbefore\n%s", strings.Join(after, "\n"), strings.Join(before, "\n"))
	}
}

func TestSecondAgentTakesNothingFromTheFirst(t *testing.T) {
	host := startHost(t)
	neighbour := host.startNeighbour(t)
	dir := shortTempDir(t)
	failing(t, farpagePath(), "agent", "--state-dir", host.stateDir(), "--socket-dir", dir+"/sockets").expectRefusal(t, 1,
		fmt.Sprintf("farpage: another agent (pid %d) uses %s: stop it, or choose another --state-dir\n", host.Pid(), host.stateDir()))
	failing(t, farpagePath(), "agent", "--state-dir", dir+"/state", "--socket-dir", host.SocketDir()).expectRefusal(t, 1,
		fmt.Sprintf("farpage: another agent (pid %d) listens in %s: stop it, or choose another --socket-dir\n", host.Pid(), host.SocketDir()))
	if names := entries(t, dir); len(names) > 0 {
		t.Errorf("they have left %q", names)
	}
	neighbour.expectUnharmed(t)
}

// Whose state is of another version is not taken over: it waits, as it is, for the
// version that it belongs to.
func TestAgentOfAnotherVersionLeavesWhatItCannotTakeOver(t *testing.T) {
	host := startHost(t)
	neighbour := host.startNeighbour(t)
	version := neighbour.version(t)
	if err := host.Kill(); err != nil {
		t.Fatal(err)
	}
	record, alive, err := keeper.Read(host.stateDir())
	if err != nil || !alive {
		t.Fatalf("the keeper is not to be found: %v", err)
	}
	setStateVersion(t, record, state.Version+1)
	before := treeOf(t, host.stateDir())
	says := fmt.Sprintf("farpage: what the last agent (farpage %s) served waits in its keeper (pid %d), and cannot be taken over: the table of containers is not farpage's or of another version: start that version again, or end its containers and then the keeper\n",
		version, record.Pid)
	for range 2 {
		failing(t, farpagePath(), "agent", "--state-dir", host.stateDir(), "--socket-dir", host.SocketDir()).expectRefusal(t, 1, says)
	}
	if after := treeOf(t, host.stateDir()); !slices.Equal(after, before) {
		t.Errorf("there is now\n%s\nbefore\n%s", strings.Join(after, "\n"), strings.Join(before, "\n"))
	}
	setStateVersion(t, record, state.Version)
	if err := host.Again(t.Context()); err != nil {
		t.Fatal(err)
	}
	neighbour.pid = host.Pid()
	neighbour.expectUnharmed(t)
}

// version is what the agent says of itself.
func (n *neighbour) version(t *testing.T) string {
	t.Helper()
	client := api.NewClientIn(n.host.SocketDir())
	defer client.Close()
	about, err := client.Agent(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return about.Version
}

// setStateVersion changes the version of the table that a keeper holds: it stands behind
// eight bytes of magic.
func setStateVersion(t *testing.T, record keeper.Record, version uint32) {
	t.Helper()
	table, err := os.OpenFile(fmt.Sprintf("/proc/%d/fd/%d", record.Pid, record.RootFD), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer table.Close()
	if _, err := table.WriteAt(binary.NativeEndian.AppendUint32(nil, version), 8); err != nil {
		t.Fatal(err)
	}
}

// clientsMost is how many connections the agent has at once, and some more descriptors.
const clientsMost = 128 + 16

// dial connects to the agent's control socket until the test ends.
func (h *host) dial(t *testing.T) *net.UnixConn {
	t.Helper()
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: filepath.Join(h.SocketDir(), api.SocketName), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

const evictRequest = "POST /v1/containers/x/evict HTTP/1.1\r\nHost: farpage\r\nConnection: close\r\n"

// exchange sends bytes, as many as are wanted, and returns the answer without its date.
func (h *host) exchange(t *testing.T, request string) string {
	t.Helper()
	conn := h.dial(t)
	defer conn.Close()
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		_, _ = io.WriteString(conn, request) // it may be cut off
	}()
	if err := conn.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(conn)
	if err != nil && len(answer) == 0 {
		t.Errorf("no answer to %.60q: %v", request, err)
	}
	_ = conn.Close()
	<-sent
	head, body, _ := bytes.Cut(answer, []byte("\r\n\r\n"))
	status, _, _ := bytes.Cut(head, []byte("\r\n"))
	return string(status) + "\n" + string(body)
}

func TestClientsWithRubbishAreToldSoAndHarmNobody(t *testing.T) {
	host := startHost(t)
	neighbour := host.startNeighbour(t)
	megabytes := strings.Repeat("rubbish ", 1<<20)
	for name, test := range map[string]struct{ request, says string }{
		"rubbish":              {"\x00\x01rubbish\r\n\r\n", "HTTP/1.1 400 Bad Request\n400 Bad Request"},
		"megabytes":            {megabytes, "HTTP/1.1 431 Request Header Fields Too Large\n431 Request Header Fields Too Large"},
		"megabytes of headers": {evictRequest + "X: " + megabytes, "HTTP/1.1 431 Request Header Fields Too Large\n431 Request Header Fields Too Large"},
		"megabytes of a body": {
			evictRequest + fmt.Sprintf("Content-Length: %d\r\n\r\n%s", len(megabytes), megabytes),
			"HTTP/1.1 422 Unprocessable Entity\n" + `{"error":"the request cannot be read: http: request body too large"}` + "\n",
		},
		"a body of rubbish": {
			evictRequest + "Content-Length: 8\r\n\r\nrubbish ",
			"HTTP/1.1 422 Unprocessable Entity\n" + `{"error":"not a request that this agent understands (is it from another version of farpage?): invalid character 'r' looking for beginning of value"}` + "\n",
		},
		"no body": {
			evictRequest + "Content-Length: 0\r\n\r\n",
			"HTTP/1.1 422 Unprocessable Entity\n" + `{"error":"not a request that this agent understands (is it from another version of farpage?): EOF"}` + "\n",
		},
	} {
		if answer := host.exchange(t, test.request); answer != test.says {
			t.Errorf("%s: the agent says %q, want %q", name, answer, test.says)
		}
	}
	neighbour.expectUnharmed(t)
}

func TestClientsThatSayNothingOrHalfHoldUpNobodyAndDoNotPileUp(t *testing.T) {
	host := startHost(t)
	neighbour := host.startNeighbour(t)
	var open []*net.UnixConn
	for _, begin := range []string{"", "POST /v1/cont", evictRequest + "Content-Length: 100\r\n\r\n{\"all\":"} {
		for range 300 {
			conn := host.dial(t)
			open = append(open, conn)
			if _, err := io.WriteString(conn, begin); err != nil {
				t.Fatal(err)
			}
		}
		// Each of these goes through, and the connections before it are still open.
		host.command(t, "ps")
		host.command(t, "stat", neighbour.id)
		if now, most := host.descriptors(), neighbour.descriptors+clientsMost; now > most {
			t.Errorf("after %.13q the agent has %d descriptors open, want at most %d", begin, now, most)
		}
	}
	for _, conn := range open {
		_ = conn.Close()
	}
	neighbour.expectUnharmed(t)
}

// A program of the host, and not of the container. What those of the container may do
// there the guest hostile tries.
func TestStrangerOnAContainersHandOffSocketIsTurnedAway(t *testing.T) {
	host := startHost(t)
	neighbour := host.startNeighbour(t)
	dir := t.TempDir()
	stop := openFifo(t, filepath.Join(dir, "stop"))
	victim := host.startContained(t, dir, "32Mi", nil, "sh", "-c", "read go <stop")
	victim.awaitProcesses(2) // the shell, and the one behind it
	socket := filepath.Join(host.SocketDir(), "c", victim.container.ID(), "sock")
	before := host.descriptors()
	var silent []int
	for range 200 {
		silent = append(silent, dialHandOff(t, socket))
	}
	for _, message := range [][]byte{[]byte("x"), bytes.Repeat([]byte("rubbish "), 5), bytes.Repeat([]byte("rubbish "), 8<<10)} {
		fd := dialHandOff(t, socket)
		if err := unix.Send(fd, message, unix.MSG_NOSIGNAL); err != nil {
			t.Fatal(err)
		}
		expectHungUp(t, fd)
	}
	says := fmt.Sprintf("hand-off of pid %d (%s) failed: handoff: not a message of this protocol: 1 bytes, want 40",
		os.Getpid(), strings.TrimSpace(readAll(t, "/proc/self/comm")))
	if want := fmt.Sprintf("level=warning msg=%q container=%s", says, victim.container.ID()); !strings.Contains(host.Log(), want) {
		t.Errorf("the agent's log has no line %s:\n%s", want, host.Log())
	}
	// A program that starts in the container is taken in all the same.
	out, err := victim.container.Exec(t.Context(), "/bin/sh", "-c", "for t in /proc/self/task/*; do read name <$t/comm; echo $name; done")
	if tasks := strings.Fields(string(out)); err != nil || len(tasks) != 2 || !slices.Contains(tasks, "farpage") {
		t.Errorf("a program of the container has the tasks %q, %v: want sh, farpage", tasks, err)
	}
	for _, fd := range silent {
		unix.Close(fd)
	}
	host.expectDescriptors(before)
	victim.awaitProcesses(2)
	if _, err := stop.WriteString("\n"); err != nil {
		t.Fatal(err)
	}
	if far := victim.wait(time.Minute); far.status != 0 || far.stats.Errors.Protocol != 3 || far.stats.Processes.Unmanaged != 0 {
		t.Errorf("the container ended with status %d, %d protocol errors, %d processes unmanaged: want 0, 3, 0",
			far.status, far.stats.Errors.Protocol, far.stats.Processes.Unmanaged)
	}
	neighbour.expectUnharmed(t)
}

// awaitProcesses waits until that many are managed.
func (c *contained) awaitProcesses(n int64) {
	c.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); c.stats().Processes.Managed != n; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			c.giveUp(fmt.Sprintf("has %+v, want %d managed", c.stats().Processes, n))
		}
	}
}

// dialHandOff connects to a container's hand-off socket until the test ends.
func dialHandOff(t *testing.T, path string) int {
	t.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		unix.Close(fd)
		t.Fatal(err)
	}
	return fd
}

// expectHungUp waits for the other side to close the connection.
func expectHungUp(t *testing.T, fd int) {
	t.Helper()
	defer unix.Close(fd)
	poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
	if n, err := unix.Poll(poll, 20_000); n != 1 || err != nil {
		t.Errorf("the agent neither answers nor hangs up: %v", err)
	}
}

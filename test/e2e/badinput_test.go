package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/farpage/farpage/api"
	"github.com/farpage/farpage/handler/check"
	"github.com/farpage/farpage/oci/policy"
	"github.com/farpage/farpage/test/container"
	"golang.org/x/sys/unix"
)

// What messages say is allowed.
const (
	sizeForms    = "a whole number of bytes, or one with K, M, G, T (powers of 1000) or Ki, Mi, Gi, Ti (powers of 1024), such as 256Mi"
	shareForms   = sizeForms + ", or a share of the memory limit such as 50%"
	maxForms     = "a whole number of bytes, or one with K, M, G, T (powers of 1000) or Ki, Mi, Gi, Ti (powers of 1024), such as 16Gi"
	markForms    = "a whole number of percent of the budget, without %; low from 1, high to 100, low below high"
	storeSchemes = "mem: (compressed RAM) and file:///path or file:///path?max=SIZE (a slot file)"
)

// neighbour is a redis that an agent serves while others make mistakes.
type neighbour struct {
	redisServer
	host        *host
	id          string
	keys        []int
	pid         int // of the agent
	descriptors int
}

// startNeighbour gives it half as much again as it may keep local.
func (h *host) startNeighbour(t *testing.T) *neighbour {
	t.Helper()
	dir := shortTempDir(t)
	c := h.startContained(t, dir, "16Mi", nil, redisCommand(t, dir)...)
	n := &neighbour{redisServer: redis(t, dir, c), host: h, id: c.container.ID(), keys: seeded("neighbour").Perm(6 << 10), pid: h.Pid()}
	n.set(n.keys, 1)
	n.descriptors = h.descriptors()
	return n
}

// expectUnharmed says that the agent has served the neighbour as if it were alone, and
// that nothing of the others is left in it.
func (n *neighbour) expectUnharmed(t *testing.T) {
	t.Helper()
	n.expect(n.keys, func(int) int { return 1 })
	if n.host.Pid() != n.pid || n.host.Ended().Err() != nil {
		t.Fatal("the agent has ended")
	}
	if all := n.host.ps(t); len(all) != 1 || all[0].ID != n.id {
		t.Errorf("the agent lists %+v: want only the neighbour", all)
	}
	if folders := entries(t, filepath.Join(n.host.SocketDir(), "c")); !slices.Equal(folders, []string{n.id}) {
		t.Errorf("the agent has folders for %q: want only the neighbour's", folders)
	}
	n.host.expectDescriptors(n.descriptors)
	far := n.shutdown()
	far.log(t)
	if far.status != 0 {
		t.Errorf("the neighbour ended with status %d", far.status)
	}
	far.expectSound(t)
	far.expectFar(t)
}

// expectDescriptors gives the last connections a moment to end.
func (h *host) expectDescriptors(most int) {
	h.t.Helper()
	now := h.descriptors()
	for deadline := time.Now().Add(5 * time.Second); now > most && time.Now().Before(deadline); now = h.descriptors() {
		time.Sleep(20 * time.Millisecond)
	}
	if now > most {
		h.t.Errorf("the agent has %d descriptors open, want at most %d", now, most)
	}
}

var containerID = regexp.MustCompile(`farpage-container-[0-9a-f]{12}`)

// refused starts a container that must not start, and returns what the hook said, with
// ID for the container's. nil contents add nothing.
func (h *host) refused(t *testing.T, annotations map[string]string, contents func(*container.Config)) string {
	t.Helper()
	cfg := container.Config{
		Args: []string{"/bin/sh", "-c", "echo started"}, Programs: []string{"/bin/sh"}, Annotations: annotations,
		Prestart: container.Hook(filepath.Dir(farpagePath()), h.SocketDir()), Dir: t.TempDir(),
	}
	if contents != nil {
		contents(&cfg)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c, err := container.Start(ctx, cfg)
	if err == nil {
		t.Errorf("the container starts: %s", c.Output())
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		return ""
	}
	return containerID.ReplaceAllString(hookSaid(t, err.Error()), "ID")
}

// hookSaid is what a hook wrote to standard error, as runc logs it.
func hookSaid(t *testing.T, text string) string {
	t.Helper()
	_, quoted, _ := strings.Cut(text, " msg=")
	message, err := strconv.Unquote(strings.TrimSpace(quoted))
	_, said, found := strings.Cut(message, ", stderr: ")
	if err != nil || !found {
		t.Errorf("runc said %q: want what its hook said (%v)", text, err)
	}
	return said
}

// One of each key; what else can be wrong with a value the tests of oci/policy say.
func TestWrongAnnotationStopsItsContainerAndNoOther(t *testing.T) {
	host := startHost(t, "--max-local", "64Mi", "--max-far", "1Gi", "--stores", "cold=mem:,spare=mem:", "--allow-stores", "default,spare")
	neighbour := host.startNeighbour(t)
	const local = policy.KeyLocal
	for _, test := range []struct {
		annotations map[string]string
		limit       int64 // of memory
		says        string
	}{
		{
			map[string]string{local: "32Mi", "io.farpage.locl": "1G"},
			0,
			`annotation io.farpage.locl="1G": there is no such annotation; allowed: io.farpage.local, io.farpage.far, io.farpage.store, io.farpage.low, io.farpage.high, io.farpage.regions, io.farpage.on-failure`,
		},
		{
			map[string]string{policy.KeyFar: "1G"},
			0,
			`annotation io.farpage.far="1G": io.farpage.local is missing, and only it opts a container in; allowed: with io.farpage.local (such as 256Mi) beside it`,
		},
		{
			map[string]string{local: "32MB"},
			0,
			`annotation io.farpage.local="32MB": not a size; allowed: ` + shareForms + `; from 1Mi`,
		},
		{
			map[string]string{local: "91%", policy.KeyOnFailure: "open"},
			64 << 20,
			`annotation io.farpage.local="91%": 61069066 bytes are more than 90 % of the memory limit of 67108864 bytes; allowed: ` + shareForms + `; from 1Mi to 90 % of the memory limit (60397977 bytes)`,
		},
		{
			map[string]string{local: "60397978"},
			64 << 20,
			`annotation io.farpage.local="60397978": 60397978 bytes are more than 90 % of the memory limit of 67108864 bytes; allowed: ` + shareForms + `; from 1Mi to 90 % of the memory limit (60397977 bytes)`,
		},
		{
			map[string]string{local: "32Mi", policy.KeyFar: "all"},
			0,
			`annotation io.farpage.far="all": not a size; allowed: ` + shareForms + `, or unlimited`,
		},
		{
			map[string]string{local: "32Mi", policy.KeyStore: "file:///slots"},
			0,
			`annotation io.farpage.store="file:///slots": not the name of a store; allowed: a name in the agent's configuration: letters, digits, '.', '_' and '-', a letter or digit first, 63 at most`,
		},
		{
			map[string]string{local: "32Mi", policy.KeyLow: "0"},
			0,
			`annotation io.farpage.low="0": not a watermark; allowed: ` + markForms,
		},
		{
			map[string]string{local: "32Mi", policy.KeyHigh: "80"},
			0,
			`annotation io.farpage.high="80": low is not below high: io.farpage.low is 85 without an annotation; allowed: ` + markForms,
		},
		{
			map[string]string{local: "32Mi", policy.KeyRegions: "1000-1800"},
			0,
			`annotation io.farpage.regions="1000-1800": "1000-1800" does not begin and end on a page; allowed: all, or START-END[,START-END...]: hexadecimal addresses, multiples of 0x1000, end not included, no two overlapping, 256 ranges at most`,
		},
		{
			map[string]string{local: "32Mi", policy.KeyOnFailure: "ignore"},
			0,
			`annotation io.farpage.on-failure="ignore": not a way to go on; allowed: open (the container starts unmanaged) or closed (it does not start)`,
		},
		// What the operator does not allow.
		{
			map[string]string{local: "64Mi", policy.KeyFar: "2Gi"},
			0,
			`policy refused: io.farpage.far: 2147483648 bytes are more than the operator allows; allowed: up to 1Gi`,
		},
		{
			map[string]string{local: "67108865"},
			0,
			`policy refused: io.farpage.local: 67108865 bytes are more than the operator allows; allowed: up to 64Mi`,
		},
		{
			map[string]string{local: "32Mi", policy.KeyStore: "cold"},
			0,
			`policy refused: io.farpage.store: the operator does not let containers use store "cold"; allowed: default, spare`,
		},
		{
			map[string]string{local: "32Mi", policy.KeyStore: "tape"},
			0,
			`policy refused: io.farpage.store: this agent has no store "tape"; it has cold, default, spare`,
		},
	} {
		said := host.refused(t, test.annotations, func(cfg *container.Config) { cfg.MemoryLimitBytes = test.limit })
		if want := "farpage: container ID does not start: " + test.says + "\n"; said != want {
			t.Errorf("%v:\nthe hook says %s\nwant          %s", test.annotations, said, want)
		}
	}
	for argument, says := range map[string]string{
		"local=67108865": `io.farpage.local: 67108865 bytes are more than the operator allows; allowed: up to 64Mi`,
		"local=512Ki":    `local=524288: a budget is 1048576 bytes at least`,
		"far=2Gi":        `io.farpage.far: 2147483648 bytes are more than the operator allows; allowed: up to 1Gi`,
	} {
		_, stderr, status := farpage(t, "set", neighbour.id, argument, "--socket-dir", host.SocketDir())
		if want := "farpage: policy refused: " + says + "\n"; status != 1 || stderr != want {
			t.Errorf("set %s: status %d, it says %swant 1, %s", argument, status, stderr, want)
		}
	}
	neighbour.expectUnharmed(t)
}

// failing runs a command that has to end by itself and leave no process.
func failing(t *testing.T, argv ...string) outcome {
	t.Helper()
	requireFarpage(t)
	return start(t, t.TempDir(), "", argv).wait(time.Minute)
}

// expectRefusal says that a command said this and nothing else.
func (o outcome) expectRefusal(t *testing.T, status int, stderr string) {
	t.Helper()
	if o.status != status || len(o.stdout) > 0 || string(o.stderr) != stderr {
		t.Errorf("status %d, stdout %q, it says\n%swant %d, nothing,\n%s", o.status, o.stdout, o.stderr, status, stderr)
	}
}

func TestWrongCommandLineOfRunStartsNothing(t *testing.T) {
	ran, dir := filepath.Join(t.TempDir(), "ran"), t.TempDir()
	foreign := filepath.Join(dir, "notes.txt")
	writeText(t, foreign, "somebody's notes\n")
	const noStart = "the private agent did not start: store default: "
	for _, test := range []struct {
		flags []string
		says  string
	}{
		{nil, "--local SIZE is missing: how much memory may be resident, for example --local 256Mi"},
		{[]string{"--local", "32MB"}, "--local 32MB: not a size; allowed: " + sizeForms + "; from 1Mi"},
		{[]string{"--local", "1000000"}, "--local 1000000: a budget of 1000000 bytes is too small; allowed: " + sizeForms + "; from 1Mi"},
		{[]string{"--local", "50%"}, "--local 50%: a command has no memory limit that this could be a share of; allowed: " + sizeForms + "; from 1Mi"},
		{[]string{"--local", "32Mi", "--far", "all"}, "--far all: not a size; allowed: " + sizeForms + ", or unlimited"},
		{[]string{"--local", "32Mi", "--far", "50%"}, "--far 50%: a command has no memory limit that this could be a share of; allowed: " + sizeForms + ", or unlimited"},
		{[]string{"--locl", "32Mi"}, "unknown flag: --locl (see `farpage run --help`)"},
		{[]string{"--local", "32Mi", "--stats", dir}, "--stats " + dir + ": that is a folder: give the path of a file, such as " + dir + "/stats.json"},
		{[]string{"--local", "32Mi", "--stats", dir + "/no/stats"}, "--stats " + dir + "/no/stats: there is no folder " + dir + "/no: make it or choose another path"},
		{[]string{"--local", "32Mi", "--stats", foreign + "/stats"}, "--stats " + foreign + "/stats: it cannot be written: stat " + foreign + "/stats: not a directory: choose another path"},
		{[]string{"--local", "32Mi", "--store", "tape:"}, noStart + `store "tape:": unknown scheme "tape"; allowed are ` + storeSchemes},
		{[]string{"--local", "32Mi", "--store", "file://" + dir}, noStart + `store "file://` + dir + `": ` + dir + " is a folder: give the path of a file, such as file://" + dir + "/slots"},
		{[]string{"--local", "32Mi", "--store", "file://" + dir + "/slots?max="}, noStart + `store "file://` + dir + `/slots?max=": max=: not a size; allowed: ` + maxForms},
		{[]string{"--local", "32Mi", "--store", "file://" + dir + "/slots?max=4095"}, noStart + `store "file://` + dir + `/slots?max=4095": max=4095: less than a page of 4096 bytes; allowed: ` + maxForms},
		{[]string{"--local", "32Mi", "--store", "file://" + dir + "/slots?most=1G"}, noStart + `store "file://` + dir + `/slots?most=1G": unknown key "most"; allowed is max`},
		{[]string{"--local", "32Mi", "--store", "file://" + foreign}, noStart + `store "file://` + foreign + `": ` + foreign + " is no slot file of farpage (it begins otherwise): choose another path, or remove it if nobody needs it"},
	} {
		argv := slices.Concat([]string{farpagePath(), "run"}, test.flags, []string{"--", "touch", ran})
		failing(t, argv...).expectRefusal(t, 125, "farpage: "+test.says+"\n")
		if _, err := os.Stat(ran); err == nil {
			t.Fatalf("%q: the command was run", test.flags)
		}
	}
	failing(t, farpagePath(), "run", "--local", "32Mi").expectRefusal(t, 125, "farpage: requires at least 1 arg(s), only received 0 (see `farpage run --help`)\n")
	if names := entries(t, dir); !slices.Equal(names, []string{"notes.txt"}) || readAll(t, foreign) != "somebody's notes\n" {
		t.Errorf("the folder holds %q now, and the notes say %q", names, readAll(t, foreign))
	}
}

func writeText(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// agentIn is the command line of an agent that has its folders in dir.
func agentIn(dir string, flags ...string) []string {
	return append([]string{
		farpagePath(), "agent", "--socket-dir", filepath.Join(dir, "sockets"), "--state-dir", filepath.Join(dir, "state"),
	}, flags...)
}

func TestWrongConfigurationIsNamedWithItsPlaceAndStartsNoAgent(t *testing.T) {
	dir := shortTempDir(t)
	file := filepath.Join(dir, "config.toml")
	const shows = "`farpage agent --print-config` shows "
	for _, test := range []struct {
		text  string
		flags []string
		says  string // FILE for the file
	}{
		{
			text: "log_level = \"info\"\nsokcet_dir = \"/run/x\"\n[bounds]\n  max_locl = \"1Gi\"\n",
			says: "FILE:2:1: unknown option \"sokcet_dir\": " + shows + "all there are\nFILE:4:3: unknown option \"bounds.max_locl\": " + shows + "all there are",
		},
		{text: "log_level = 3\n", says: "FILE:1:13: this is a number, and a text is wanted: " + shows + "how it is written"},
		{text: "\nenvironment = \"yes\"\n", says: "FILE:2:15: this is a text, and true or false is wanted: " + shows + "how it is written"},
		{text: "[bounds]\nstores = \"cold\"\n", says: "FILE:2:10: this is a text, and a list of texts, [\"LIKE\", \"THIS\"], is wanted: " + shows + "how it is written"},
		{text: "stores = \"mem:\"\n", says: "FILE:1:10: this is a text, and a table of texts is wanted: " + shows + "how it is written"},
		{text: "socket_dir\n", says: "FILE:1:11: expected '=' after key"},
		{text: "state_dir = \"state\"\n", says: "FILE: state_dir \"state\" is not an absolute path"},
		{text: "log_format = \"xml\"\n", says: "FILE: log_format \"xml\": allowed are text, json"},
		{text: "[bounds]\nstores = [\"cold\"]\n", says: "FILE: bounds.stores names \"cold\", which stores does not have: name it there too, or leave it out here"},
		{text: "[bounds]\nmax_far = \"lots\"\n", says: "FILE: bounds.max_far: \"lots\": not a size; allowed: " + sizeForms},
		{text: "[stores]\ndefault = \"\"\n", says: "FILE: stores has no \"default\": containers that name no store use it"},
		{text: "[stores]\ncold = \"tape:\"\n", says: "store cold: store \"tape:\": unknown scheme \"tape\"; allowed are " + storeSchemes},
		{flags: []string{"--max-local", "lots"}, says: "bounds.max_local: \"lots\": not a size; allowed: " + sizeForms},
		{flags: []string{"--stores", "cold"}, says: "invalid argument \"cold\" for \"--stores\" flag: cold must be formatted as key=value (see `farpage agent --help`)"},
		{flags: []string{"--config", dir + "/none.toml"}, says: "read the configuration: open " + dir + "/none.toml: no such file or directory"},
	} {
		writeText(t, file, test.text)
		argv := agentIn(dir, append([]string{"--config", file}, test.flags...)...)
		failing(t, argv...).expectRefusal(t, 1, "farpage: "+strings.ReplaceAll(test.says, "FILE", file)+"\n")
	}
	if names := entries(t, dir); !slices.Equal(names, []string{"config.toml"}) {
		t.Errorf("the folder holds %q now", names)
	}
}

// lacking are hosts that farpage cannot run on: as much of that as can be put in front
// of a program that is started here. The tests of handler/check have the rest.
func lacking(t *testing.T) map[string]struct {
	before []string // what farpage is started by
	says   string
	check  string // lines of `farpage check`
} {
	t.Helper()
	type host = struct {
		before []string
		says   string
		check  string
	}
	const device = "the kernel needs CONFIG_USERFAULTFD; in a container or chroot, bind the host's /dev/userfaultfd"
	const upgrade = "boot Linux 6.8 or newer (Debian 13, Ubuntu 24.04, RHEL 10 have it)"
	inMounts := func(script string) []string {
		return []string{requireProgram(t, "unshare"), "-m", "sh", "-c", script + ` && exec "$@"`, "sh"}
	}
	old := []string{requireProgram(t, "setarch"), "--uname-2.6"}
	release, err := exec.CommandContext(t.Context(), old[0], old[1], "uname", "-r").Output()
	if err != nil {
		t.Fatal(err)
	}
	linux := "Linux " + strings.TrimSpace(string(release)) + " x86_64"
	return map[string]host{
		"no device": {
			inMounts("mount -t tmpfs farpage-test /dev && mknod -m 666 /dev/null c 1 3"),
			"userfaultfd device: stat /dev/userfaultfd: no such file or directory: " + device,
			"MISSING  userfaultfd device      stat /dev/userfaultfd: no such file or directory\n" +
				"                                 -> " + device + "\n" +
				"MISSING  userfaultfd features    open /dev/userfaultfd: no such file or directory\n" +
				"                                 -> " + device + "\n",
		},
		"another device": {
			inMounts("mount --bind /dev/null /dev/userfaultfd"),
			"userfaultfd features: USERFAULTFD_IOC_NEW: inappropriate ioctl for device: what is at /dev/userfaultfd is another device: " + device,
			"MISSING  userfaultfd features    USERFAULTFD_IOC_NEW: inappropriate ioctl for device\n" +
				"                                 -> what is at /dev/userfaultfd is another device: " + device + "\n",
		},
		"an old kernel": {
			old, "kernel: " + linux + ": " + upgrade,
			"MISSING  kernel                  " + linux + "\n" +
				"                                 -> " + upgrade + "\n",
		},
		"a user namespace": {
			[]string{requireProgram(t, "unshare"), "--user", "--map-root-user"},
			"initial user namespace: uid_map: 0 0 1: rootless engines and user namespaces cannot run the agent: start it as the host's root",
			"MISSING  initial user namespace  uid_map: 0 0 1\n" +
				"                                 -> rootless engines and user namespaces cannot run the agent: start it as the host's root\n",
		},
	}
}

func TestHostThatLacksSomethingIsRefusedWithWhatToDo(t *testing.T) {
	ran := filepath.Join(t.TempDir(), "ran")
	for name, host := range lacking(t) {
		t.Run(name, func(t *testing.T) {
			dir := shortTempDir(t)
			says := "this host cannot run farpage: " + host.says + " (`farpage check` shows everything)\n"
			failing(t, append(host.before, agentIn(dir)...)...).expectRefusal(t, 1, "farpage: "+says)
			failing(t, append(host.before, farpagePath(), "run", "--local", "32Mi", "--", "touch", ran)...).
				expectRefusal(t, 125, "farpage: the private agent did not start: "+says)
			if _, err := os.Stat(ran); err == nil {
				t.Error("the command was run")
			}
			if names := entries(t, dir); len(names) > 0 {
				t.Errorf("the agent has left %q", names)
			}
			checked := failing(t, append(host.before, farpagePath(), "check")...)
			if lines := missing(checked.stdout); checked.status != 1 || lines != host.check || len(checked.stderr) > 0 {
				t.Errorf("check: status %d, stderr %q, missing\n%swant 1, nothing,\n%s", checked.status, checked.stderr, lines, host.check)
			}
			expectSameAsJSON(t, append(host.before, farpagePath(), "check", "--json"), host.check)
		})
	}
}

// missing are the lines of a check about what farpage does not run without.
func missing(text []byte) string {
	var lines []string
	is := false
	for line := range strings.Lines(string(text)) {
		if !strings.HasPrefix(line, " ") {
			is = strings.HasPrefix(line, "MISSING")
		}
		if is {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "")
}

// expectSameAsJSON says that `check --json` lacks what the lines of `check` say.
func expectSameAsJSON(t *testing.T, argv []string, lines string) {
	t.Helper()
	o := failing(t, argv...)
	var results []check.Result
	decode(t, string(o.stdout), &results)
	var text strings.Builder
	for _, r := range results {
		if !r.OK && r.Required {
			fmt.Fprintf(&text, "%-9s%-24s%s\n%33s-> %s\n", "MISSING", r.Name, r.Detail, "", r.Fix)
		}
	}
	if o.status != 1 || text.String() != lines {
		t.Errorf("check --json: status %d, missing\n%swant 1,\n%s", o.status, text.String(), lines)
	}
}

// farpageAsNobody runs a command without root's rights. The program is opened by root:
// nobody may be kept from the folder that it is in.
func farpageAsNobody(t *testing.T, args ...string) (stdout, stderr string, status int) {
	t.Helper()
	const nobody = 65534
	program, err := os.Open(farpagePath())
	if err != nil {
		t.Fatal(err)
	}
	defer program.Close()
	command := exec.CommandContext(t.Context(), "/proc/self/fd/3", args...)
	command.Args[0] = "farpage"
	command.ExtraFiles = []*os.File{program}
	command.Dir = "/"
	command.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	var out, errs bytes.Buffer
	command.Stdout, command.Stderr = &out, &errs
	var exit *exec.ExitError
	if failed := command.Run(); failed != nil && !errors.As(failed, &exit) {
		t.Fatal(failed)
	}
	return out.String(), errs.String(), command.ProcessState.ExitCode()
}

func TestWithoutRootEachCommandSaysThatItIsNeeded(t *testing.T) {
	host := startHost(t)
	before, log := whatIsThere(), host.Log()
	there := "--socket-dir=" + host.SocketDir()
	notAllowed := "not allowed to talk to the agent on " + host.SocketDir() + "/agent.sock (connect: permission denied): run this as root"
	for _, test := range []struct {
		args   []string
		says   string
		status int
	}{
		{[]string{"run", "--local", "32Mi", "--", "true"}, "run needs root: type sudo farpage run", 125},
		{
			[]string{"agent", there, "--state-dir", t.TempDir()},
			"the agent needs root: it serves other users' processes (userfaultfd with fork events needs CAP_SYS_PTRACE); start it with sudo or by systemd", 1,
		},
		{[]string{"ps", there}, notAllowed, 1},
		{[]string{"ps", there, "--json"}, notAllowed, 1},
		{[]string{"stat", "x", there}, notAllowed, 1},
		{[]string{"stat", "x", there, "--json"}, notAllowed, 1},
		{[]string{"evict", "x", there, "--all"}, notAllowed, 1},
		{[]string{"set", "x", "local=32Mi", there}, notAllowed, 1},
	} {
		stdout, stderr, status := farpageAsNobody(t, test.args...)
		if want := "farpage: " + test.says + "\n"; status != test.status || stdout != "" || stderr != want {
			t.Errorf("%q: status %d, stdout %q, it says\n%swant %d, nothing,\n%s", test.args, status, stdout, stderr, test.status, want)
		}
	}
	stdout, stderr, status := farpageAsNobody(t, "check")
	const says = "MISSING  root                    effective user id 65534\n" +
		"                                 -> run it as root: sudo farpage check\n" +
		"MISSING  userfaultfd features    open /dev/userfaultfd: permission denied\n" +
		"                                 -> run as root, on Linux 6.8 or newer\n"
	if lines := missing([]byte(stdout)); status != 1 || stderr != "" || lines != says {
		t.Errorf("check: status %d, stderr %q, missing\n%swant 1, nothing,\n%s", status, stderr, lines, says)
	}
	for _, thing := range whatIsThere().without(before) {
		t.Errorf("left behind: %s", thing)
	}
	if host.Log() != log || host.Ended().Err() != nil {
		t.Errorf("the agent's log says\n%s", host.Log())
	}
}

// clientCommands are all that talk to an agent.
var clientCommands = [][]string{
	{"ps"},
	{"ps", "--json"},
	{"ps", "--watch"},
	{"stat", "x"},
	{"stat", "x", "--json"},
	{"stat", "x", "--watch", "--json"},
	{"evict", "x", "--all"},
	{"evict", "x", "--bytes", "1Mi"},
	{"set", "x", "local=32Mi"},
	{"set", "x", "far=unlimited"},
}

// expectAllSay says that each client says this and nothing else.
func expectAllSay(t *testing.T, socketDir, says string) {
	t.Helper()
	for _, command := range clientCommands {
		stdout, stderr, status := farpage(t, append(command, "--socket-dir", socketDir)...)
		if want := "farpage: " + says + "\n"; status != 1 || stdout != "" || stderr != want {
			t.Errorf("%q: status %d, stdout %q, it says\n%swant 1, nothing,\n%s", command, status, stdout, stderr, want)
		}
	}
}

func TestClientsWithoutAnAgentSayHowToStartIt(t *testing.T) {
	requireFarpage(t)
	dir := shortTempDir(t)
	file := filepath.Join(dir, "file")
	writeText(t, file, "text\n")
	for at, says := range map[string]string{
		dir:                                  "the agent is not running (no answer on SOCKET): start it with `systemctl start farpage` or `farpage agent`",
		filepath.Join(dir, "none"):           "the agent is not running (no answer on SOCKET): start it with `systemctl start farpage` or `farpage agent`",
		file:                                 "no agent can be on SOCKET (connect: not a directory): give the folder of its sockets as --socket-dir",
		"/run/" + strings.Repeat("long", 30): "the socket path SOCKET is longer than the 107 bytes that unix sockets allow: use a shorter --socket-dir",
	} {
		expectAllSay(t, at, strings.ReplaceAll(says, "SOCKET", at+"/agent.sock"))
	}
	if names := entries(t, dir); !slices.Equal(names, []string{"file"}) {
		t.Errorf("the folder holds %q now", names)
	}
}

// fakeAgent answers on a socket of its own and returns the folder. The protocol is one
// that this program does not speak.
func fakeAgent(t *testing.T, protocol string) string {
	t.Helper()
	dir := shortTempDir(t)
	listener, err := net.Listen("unix", filepath.Join(dir, api.SocketName))
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set(api.VersionHeader, "v9.9.9")
		w.Header().Set(api.ProtocolHeader, protocol)
		fmt.Fprintln(w, `[{"id": "x", "budget_bytes": "in words"}]`)
	})}
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(func() { _ = server.Close() })
	return dir
}

func TestClientsOfAnotherVersionThanTheAgentSaySo(t *testing.T) {
	requireFarpage(t)
	const protocol = "2"
	dir := fakeAgent(t, protocol)
	says := "the agent on " + dir + "/agent.sock is of another version (farpage v9.9.9, protocol 2; this program speaks protocol 1): use the programs of its version, or restart it with this one"
	expectAllSay(t, dir, says)

	// The hook is a client too: whether the container starts is for on-failure to say.
	host := startHost(t)
	neighbour := host.startNeighbour(t)
	annotations := map[string]string{policy.KeyLocal: "32Mi", policy.KeyOnFailure: policy.OnFailureClosed}
	said := host.refused(t, annotations, func(cfg *container.Config) {
		cfg.Prestart = container.Hook(filepath.Dir(farpagePath()), dir)
	})
	if want := "farpage: container ID does not start, because it cannot be set up and io.farpage.on-failure is closed: " + says + "\n"; said != want {
		t.Errorf("the hook says %s\nwant          %s", said, want)
	}

	// And the other way round.
	text, _, _ := farpage(t, "--version")
	version := strings.TrimSpace(strings.TrimPrefix(text, "farpage version "))
	for path, body := range map[string]string{"/v1/containers": "", "/v2/everything": "", "/v1/containers/x/evict": `{"all": true}`} {
		status, text := host.ask(t, path, protocol, body)
		want := `{"error":"this agent is of another version (farpage ` + version + `, protocol 1; the request is of protocol \"2\"): use the programs of its version, or restart it with theirs"}` + "\n"
		if status != http.StatusConflict || text != want {
			t.Errorf("%s: status %d, %swant 409, %s", path, status, text, want)
		}
	}
	// Of the same protocol, and newer: what the agent does not know it does not do.
	for path, want := range map[string]string{
		"/v1/everything": `{"error":"this agent (farpage ` + version + `) knows no POST /v1/everything"}` + "\n",
		"/v1/containers/" + neighbour.id + "/set": `{"error":"not a request that this agent understands (is it from another version of farpage?): json: unknown field \"shares\""}` + "\n",
	} {
		if status, text := host.ask(t, path, "1", `{"local_bytes": 1048576, "shares": 3}`); status/100 != 4 || status == http.StatusBadRequest || text != want {
			t.Errorf("%s: status %d, %swant an error that stops no container, %s", path, status, text, want)
		}
	}
	neighbour.expectUnharmed(t)
}

// ask sends a request to the agent as a client of some version does.
func (h *host) ask(t *testing.T, path, protocol, body string) (status int, text string) {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(h.SocketDir(), api.SocketName))
		},
	}}
	method := http.MethodGet
	if body != "" {
		method = http.MethodPost
	}
	request, err := http.NewRequestWithContext(t.Context(), method, "http://farpage"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set(api.ProtocolHeader, protocol)
	response, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	var all bytes.Buffer
	if _, err := all.ReadFrom(response.Body); err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, all.String()
}

func TestAgentWhoseSocketPathIsTooLongDoesNotStart(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("long", 30))
	path := filepath.Join(dir, "sockets")
	failing(t, agentIn(dir)...).expectRefusal(t, 1, fmt.Sprintf(
		"farpage: socket_dir %q is too long: the socket agent.sock in it would have a path of %d bytes, unix sockets allow 107: choose a shorter one\n",
		path, len(path)+len("/agent.sock")))
	if _, err := os.Stat(dir); err == nil {
		t.Error("it has made the folder")
	}
}

// The folder is short enough for the agent's socket and too long for this container's.
func TestContainerWhoseSocketPathIsTooLongIsRefusedAlone(t *testing.T) {
	host := startHost(t)
	neighbour := host.startNeighbour(t)
	id := strings.Repeat("long", 30)
	socket := filepath.Join(host.SocketDir(), "c", id, "sock")
	client := api.NewClientIn(host.SocketDir())
	_, err := client.Add(t.Context(), api.AddRequest{
		ID: id, Pid: os.Getpid(),
		Policy: policy.Policy{LocalBytes: 32 << 20, FarBytes: policy.Unlimited, Store: "default", LowPercent: 85, HighPercent: 95, OnFailure: policy.OnFailureOpen},
	})
	client.Close()
	want := fmt.Sprintf("socket path %q is longer than 107 bytes: choose a shorter --socket-dir", socket)
	if err == nil || err.Error() != want {
		t.Errorf("the agent says %v\nwant           %s", err, want)
	}
	neighbour.expectUnharmed(t)
}

func TestContainerOfAHookThatFindsNoAgentDoesNotStartWhereItMustNot(t *testing.T) {
	host := startHost(t)
	neighbour := host.startNeighbour(t)
	closed := map[string]string{policy.KeyLocal: "32Mi", policy.KeyOnFailure: policy.OnFailureClosed}
	none, long := filepath.Join(shortTempDir(t), "none"), "/run/"+strings.Repeat("long", 30)
	for dir, says := range map[string]string{
		none: "the agent is not running (no answer on " + none + "/agent.sock): start it with `systemctl start farpage` or `farpage agent`",
		long: "the socket path " + long + "/agent.sock is longer than the 107 bytes that unix sockets allow: use a shorter --socket-dir",
	} {
		said := host.refused(t, closed, func(cfg *container.Config) {
			cfg.Prestart = container.Hook(filepath.Dir(farpagePath()), dir)
		})
		if want := "farpage: container ID does not start, because it cannot be set up and io.farpage.on-failure is closed: " + says + "\n"; said != want {
			t.Errorf("the hook says %s\nwant          %s", said, want)
		}
	}
	neighbour.expectUnharmed(t)
}

// What is wrong with a slot file itself the tests of store say; here nothing else may
// suffer by it.
func TestStoreThatCannotBeOpenedStartsNoAgentAndChangesNothing(t *testing.T) {
	dir := shortTempDir(t)
	at := func(name string) string { return filepath.Join(dir, name) }
	writeText(t, at("foreign"), "somebody's notes\n")
	writeText(t, at("short"), "FRPGSLOT")
	writeText(t, at("locked"), "")
	lock(t, at("locked"))
	host := startHost(t, "--stores", "used=file://"+at("used"))
	neighbour := host.startNeighbour(t)
	before := treeOf(t, dir)
	for name, says := range map[string]string{
		"":        "is a folder: give the path of a file, such as file://" + at("slots"),
		"foreign": "is no slot file of farpage (it begins otherwise): choose another path, or remove it if nobody needs it",
		"short":   "is cut off within its first page: remove it",
		"locked":  "is locked by another process: if that is an agent that is just starting, choose another path, else end it (fuser -v shows it)",
		"used":    fmt.Sprintf("is in use by another agent (pid %d): stop that, or choose another path", host.Pid()),
		"no/file": "cannot be made, there is no folder " + at("no") + ": make it (mkdir -p -m 700 " + at("no") + ") or choose another path",
	} {
		path := filepath.Join(dir, name)
		want := fmt.Sprintf("store default: store %q: %s %s\n", "file://"+path, path, says)
		work := shortTempDir(t)
		failing(t, agentIn(work, "--store", "file://"+path)...).expectRefusal(t, 1, "farpage: "+want)
		if names := entries(t, work); len(names) > 0 {
			t.Errorf("the agent has left %q", names)
		}
	}
	if after := treeOf(t, dir); !slices.Equal(after, before) {
		t.Errorf("the folder holds\n%s\nbefore\n%s", strings.Join(after, "\n"), strings.Join(before, "\n"))
	}
	neighbour.expectUnharmed(t)
}

// lock locks a file until the test ends.
func lock(t *testing.T, path string) {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = file.Close() })
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
}

// treeOf is what is in a folder: names, modes, owners and sums of contents, a line for
// each.
func treeOf(t *testing.T, dir string) (lines []string) {
	t.Helper()
	err := filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		content := ""
		if info.Mode().IsRegular() {
			content = fmt.Sprintf("%08x", crc32.ChecksumIEEE([]byte(readAll(t, path))))
		}
		owner, _ := info.Sys().(*syscall.Stat_t)
		lines = append(lines, fmt.Sprintf("%s %v of %d %s", path, info.Mode(), owner.Uid, content))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return lines
}

// A wrong argument is found before anybody is asked.
func TestWrongArgumentsOfClientsAreSaidWithoutAnAgent(t *testing.T) {
	requireFarpage(t)
	for _, test := range []struct {
		args string
		says string
	}{
		{"set x", "requires at least 2 arg(s), only received 1 (see `farpage set --help`)"},
		{"set x shares=3", "shares=3: what can be set is local=SIZE and far=SIZE, such as local=256Mi"},
		{"set x local", "local: what can be set is local=SIZE and far=SIZE, such as local=256Mi"},
		{"set x local=", `local="": not a size; allowed: ` + sizeForms},
		{"set x local=unlimited", `local="unlimited": not a size; allowed: ` + sizeForms},
		{"set x far=much", `far="much": not a size; allowed: ` + sizeForms},
		{"evict x", "say how much to evict: --bytes SIZE or --all"},
		{"evict x --all --bytes 1Mi", "say how much to evict: --bytes SIZE or --all"},
		{"evict x --bytes much", `--bytes: "much": not a size; allowed: ` + sizeForms},
		{"stat", "accepts 1 arg(s), received 0 (see `farpage stat --help`)"},
		{"stat ..", `".." is not the id or name of a container`},
		{"ps --jsn", "unknown flag: --jsn (see `farpage ps --help`)"},
	} {
		stdout, stderr, status := farpage(t, append(strings.Fields(test.args), "--socket-dir", "/nonexistent")...)
		if want := "farpage: " + test.says + "\n"; status != 1 || stdout != "" || stderr != want {
			t.Errorf("%s: status %d, stdout %q, it says\n%swant 1, nothing,\n%s", test.args, status, stdout, stderr, want)
		}
	}
}

// A container's id that no agent knows.
func TestUnknownContainerIsSaidByEachCommandThatNamesOne(t *testing.T) {
	host := startHost(t)
	for _, command := range clientCommands[3:] {
		_, stderr, status := farpage(t, append(command, "--socket-dir", host.SocketDir())...)
		if want := "farpage: no container \"x\": `farpage ps` lists them\n"; status != 1 || stderr != want {
			t.Errorf("%q: status %d, it says\n%swant 1,\n%s", command, status, stderr, want)
		}
	}
	var all []api.Container
	if err := json.Unmarshal([]byte(host.command(t, "ps", "--json")), &all); err != nil || len(all) > 0 {
		t.Errorf("the agent lists %+v, %v", all, err)
	}
}

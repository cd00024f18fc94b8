package e2e

import (
	"debug/elf"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/farpage/farpage/api"
	"github.com/farpage/farpage/oci/policy"
	"github.com/farpage/farpage/test/container"
	"golang.org/x/sys/unix"
)

// privateAgent is the agent of a run.
type privateAgent struct {
	pid int
	dir string
}

// awaitAgent waits until the agent of a run has taken it in.
func (r *running) awaitAgent() privateAgent {
	r.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		pids, err := r.group.Pids()
		if err != nil {
			r.t.Fatal(err)
		}
		for _, pid := range pids {
			dirs := privateDirs([]int{pid})
			if len(dirs) == 0 {
				continue
			}
			if all, _, status := farpage(r.t, "ps", "--json", "--socket-dir", dirs[0]); status == 0 && all != "[]\n" {
				return privateAgent{pid: pid, dir: dirs[0]}
			}
		}
	}
	r.giveUp("has no agent")
	return privateAgent{}
}

// ps is what `farpage ps` lists of a run.
func (r *running) ps(agent privateAgent) api.Container {
	r.t.Helper()
	stdout, stderr, status := farpage(r.t, "ps", "--json", "--socket-dir", agent.dir)
	if status != 0 || stderr != "" {
		r.giveUp(fmt.Sprintf("has an agent that does not answer: status %d, %s", status, stderr))
	}
	var all []api.Container
	decode(r.t, stdout, &all)
	if len(all) != 1 {
		r.giveUp(fmt.Sprintf("is listed as %+v", all))
	}
	return all[0]
}

// expectStatus runs a program without farpage that ends with a status of its own.
func (p program) expectStatus(t *testing.T, status int) programOutcome {
	t.Helper()
	native := p.run(t, func(dir string) job { return startNative(t, dir, p.argv(t)...) })
	if native.status != status {
		t.Fatalf("exit status %d without farpage, want %d\n%s", native.status, status, native.stderr)
	}
	return native
}

// expectAsNative says that a program did the same with its memory far. How much of it
// was resident is for others to say: a busy host takes in late what starts there.
func (o outcome) expectAsNative(t *testing.T, native outcome) {
	t.Helper()
	o.expectSame(t, native)
	o.expectSound(t)
	o.expectFar(t)
}

func TestProgramWithoutALibcHasItsMemoryFar(t *testing.T) {
	nolibc := guestProgram("nolibc", "64")
	file, err := elf.Open(nolibc.argv(t)[0])
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	isLoader := func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP }
	if needed, err := file.ImportedLibraries(); err != nil || len(needed) > 0 || !slices.ContainsFunc(file.Progs, isLoader) {
		t.Fatalf("it needs the libraries %q (%v), want none, and to be loaded all the same", needed, err)
	}
	host := startHost(t)
	native := nolibc.expectStatus(t, 7)
	for _, start := range []func(dir string) job{
		func(dir string) job { return startFar(t, dir, nolibc.argv(t)...) },
		func(dir string) job { return host.startContained(t, dir, "32Mi", nil, nolibc.argv(t)...) },
	} {
		far := nolibc.run(t, start)
		far.log(t)
		far.expectAsNative(t, native.outcome)
	}
}

// Nothing runs an atfork handler there, so the child has no helper.
func TestChildOfARawCloneIsServedAndListedAsNotEvicted(t *testing.T) {
	dir := t.TempDir()
	r := startFar(t, dir, guest(t, "nolibc"), "48", makeFifo(t, dir))
	parent, child := r.awaitChild("nolibc")
	if parent.State != "managed" || parent.Reason != "" {
		t.Errorf("the parent is listed as %+v", parent)
	}
	if child.State != "managed" || child.Reason != "served, not evicted: it has no helper" {
		t.Errorf("the child is listed as %+v", child)
	}
	letGo(t, dir)
	far := r.wait(time.Minute)
	if want := "nolibc: the child's pages are right\nnolibc: all pages right\n"; far.status != 7 || string(far.stdout) != want {
		t.Errorf("exit status %d, stdout %q\nstderr:\n%s", far.status, far.stdout, far.stderr)
	}
	far.expectSound(t)
	far.expectFar(t)
	if far.stats.Forks != 1 {
		t.Errorf("%d forks, want 1", far.stats.Forks)
	}
}

// awaitChild waits until the list of processes is just a program and its one child.
func (r *running) awaitChild(command string) (parent, child api.Process) {
	r.t.Helper()
	var list []api.Process
	agent := r.awaitAgent()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		list = r.ps(agent).ProcessList
		i := slices.IndexFunc(list, func(p api.Process) bool { return p.Pid == r.onlyChild(command) })
		if len(list) == 2 && i >= 0 {
			return list[1-i], list[i]
		}
	}
	r.giveUp(fmt.Sprintf("is never listed with its child only: %+v", list))
	return parent, child
}

// onlyChild finds, among the run's processes of a name, the child of another.
func (r *running) onlyChild(command string) int {
	r.t.Helper()
	pids, err := r.group.Pids()
	if err != nil {
		r.t.Fatal(err)
	}
	for _, pid := range pids {
		name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		children, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", pid))
		var child int
		if _, err := fmt.Sscan(string(children), &child); err == nil && string(name) == command+"\n" {
			return child
		}
	}
	return 0
}

// makeFifo makes the fifo in a program's folder that letGo writes to.
func makeFifo(t *testing.T, dir string) string {
	t.Helper()
	path := filepath.Join(dir, goName)
	if err := unix.Mkfifo(path, 0o666); err != nil {
		t.Fatal(err)
	}
	return path
}

func letGo(t *testing.T, dir string) {
	t.Helper()
	// With O_RDWR nobody waits, whether the program is there to read or not.
	fifo, err := os.OpenFile(filepath.Join(dir, goName), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = fifo.Close() })
	if _, err := fifo.WriteString("\n"); err != nil {
		t.Fatal(err)
	}
}

// By its id the kernel tells nothing of a process's memory once its first thread has
// ended. From outside nobody here sees it then, but the last thread does for itself.
func TestThreadsThatEndByThemselvesLeaveTheirBytesToTheOthers(t *testing.T) {
	rawexit := guest(t, "rawexit")
	most := fmt.Sprint(mostResidentBytes(budgetBytes) >> 20)
	native := guestProgram("rawexit", "64").expectStatus(t, 7)
	for name, argv := range map[string][]string{
		"alone":            {rawexit, "64", most},
		"beside a process": {"sh", "-c", `"$@"; exit $?`, "sh", rawexit, "64", most},
	} {
		t.Run(name, func(t *testing.T) {
			far := startFar(t, t.TempDir(), argv...).wait(time.Minute)
			far.log(t)
			far.expectAsNative(t, native.outcome)
		})
	}
}

// What preset.so says at the end of a program that has called mmap.
func presetSays(next string) string {
	return "preset: the program's mmap is of preset.so, the next one of " + next + ", called\n"
}

func TestPresetLibraryStandsInFrontOfOursAndWorks(t *testing.T) {
	host := startHost(t)
	t.Setenv("LD_PRELOAD", guest(t, "preset.so"))
	threads8 := guestProgram("threads8", "64")
	native := threads8.runNative(t)
	if !strings.Contains(string(native.stderr), presetSays("libc.so.6")) {
		t.Fatalf("without farpage it says %q", native.stderr)
	}
	for _, start := range []func(dir string) job{
		func(dir string) job { return startFar(t, dir, threads8.argv(t)...) },
		func(dir string) job {
			return host.startContained(t, dir, "32Mi", func(cfg *container.Config) {
				putPreset(t, cfg)
				cfg.Env = append(cfg.Env, "LD_PRELOAD="+presetInside)
			}, threads8.argv(t)...)
		},
	} {
		far := threads8.run(t, start)
		far.log(t)
		far.expectAsNative(t, native.outcome)
		if !strings.Contains(string(far.stderr), presetSays("libfarpage.so")) {
			t.Errorf("it says %q", far.stderr)
		}
	}
}

// presetInside is where containers have preset.so.
const presetInside = "/usr/lib/preset.so"

func putPreset(t *testing.T, cfg *container.Config) {
	t.Helper()
	if cfg.Files == nil {
		cfg.Files = map[string]string{}
	}
	cfg.Files[presetInside] = guest(t, "preset.so")
}

// preloadImage is what an image has at /etc/ld.so.preload.
type preloadImage struct {
	name     string
	commands string // make it so, in the root file system
	left     string // what the image has there when the container is gone
	reason   string // why the container is unmanaged; empty: it is not
	preset   bool   // it names preset.so
}

// preloadImages are the kinds that there are. outside is a file of the host.
func preloadImages(outside string) []preloadImage {
	const here = "etc/ld.so.preload"
	up := strings.Repeat("../", 20)
	return []preloadImage{
		{name: "missing", commands: "rm -f " + here, left: `file ""`},
		{
			name: "other libraries", commands: "echo '" + presetInside + " # ours' >" + here,
			left: `file "` + presetInside + ` # ours\n"`, preset: true,
		},
		{
			name: "link to a file", commands: "echo " + presetInside + " >usr/lib/preloads; ln -s /usr/lib/preloads " + here,
			left: "link /usr/lib/preloads", preset: true,
		},
		{
			name:     "link through the root to a file",
			commands: "echo " + presetInside + " >usr/lib/preloads; ln -s " + up + "usr/lib/preloads " + here,
			left:     "link " + up + "usr/lib/preloads", preset: true,
		},
		{
			name: "link to nothing", commands: "ln -s /usr/lib/none " + here, left: "link /usr/lib/none",
			reason: "the image's /etc/ld.so.preload is a symbolic link to nothing: the library cannot be preloaded there",
		},
		{
			name: "link to a file of the host", commands: "ln -s " + up + outside[1:] + " " + here, left: "link " + up + outside[1:],
			reason: "the image's /etc/ld.so.preload is a symbolic link to nothing: the library cannot be preloaded there",
		},
		{
			name: "folder", commands: "mkdir " + here, left: "folder",
			reason: "the image's /etc/ld.so.preload is a folder, not a file: the library cannot be preloaded there",
		},
	}
}

func TestContainerRunsWhateverItsImagePreloads(t *testing.T) {
	host := startHost(t)
	outside := filepath.Join(t.TempDir(), "preloads")
	const content = "/nonexistent/library.so\n"
	if err := os.WriteFile(outside, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	threads8 := guestProgram("threads8", "64")
	native := threads8.runNative(t)
	for _, image := range preloadImages(outside) {
		t.Run(image.name, func(t *testing.T) {
			var c *contained
			far := threads8.run(t, func(dir string) job {
				c = host.startContained(t, dir, "32Mi", image.put(t), threads8.argv(t)...)
				c.expectMounts(image.reason == "")
				if image.reason != "" {
					c.expectUnmanaged(image.reason)
				}
				return c
			})
			far.expectSame(t, native.outcome)
			if image.reason == "" {
				far.expectAsNative(t, native.outcome)
			}
			if preset := strings.Contains(string(far.stderr), presetSays("libfarpage.so")); preset != image.preset {
				t.Errorf("preset.so is loaded: %v, want %v\nstderr:\n%s", preset, image.preset, far.stderr)
			}
			if left := describe(t, filepath.Join(c.container.Rootfs(), "etc/ld.so.preload")); left != image.left {
				t.Errorf("the image is left with %s, want %s", left, image.left)
			}
		})
	}
	if text, err := os.ReadFile(outside); err != nil || string(text) != content {
		t.Errorf("the host's file holds %q, %v", text, err)
	}
}

// put has the image's file made before the hook is called: a container's bundle is
// made of files of the host, links and folders are not among them.
func (image preloadImage) put(t *testing.T) func(*container.Config) {
	t.Helper()
	return func(cfg *container.Config) {
		putPreset(t, cfg)
		cfg.Programs = append(cfg.Programs, "ln")
		// Hooks are called in the bundle's folder.
		script := "PATH=/usr/bin:/bin; cd rootfs; " + image.commands + `; cd ..; exec "$@"`
		cfg.Prestart = append([]string{"/bin/sh", "-ec", script, "sh"}, cfg.Prestart...)
	}
}

// describe says what is at a path, no link followed.
func describe(t *testing.T, path string) string {
	t.Helper()
	info, err := os.Lstat(path)
	if err != nil {
		return err.Error()
	}
	switch {
	case info.IsDir():
		return "folder"
	case info.Mode()&os.ModeSymlink != 0:
		target, _ := os.Readlink(path)
		return "link " + target
	}
	content, err := os.ReadFile(path)
	if err != nil {
		t.Error(err)
	}
	return fmt.Sprintf("file %q", content)
}

// expectMounts looks at what is mounted in the container.
func (c *contained) expectMounts(want bool) {
	c.t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", c.container.Pid()))
	if err != nil {
		c.giveUp(err.Error())
	}
	if mounted := strings.Contains(string(text), " "+policy.MountPoint+" "); mounted != want {
		c.t.Errorf("%s is mounted: %v, want %v\n%s", policy.MountPoint, mounted, want, text)
	}
}

// expectUnmanaged says that the whole container is, and that both lists say why.
func (c *contained) expectUnmanaged(reason string) {
	c.t.Helper()
	if got := c.awaitUnmanaged("sh"); got != reason {
		c.t.Errorf("the reason is %q, want %q", got, reason)
	}
	if stats := c.stats(); stats.Processes != (api.ProcessCount{Unmanaged: 1}) || stats.Armed {
		c.t.Errorf("statistics %+v", stats.Stats)
	}
	for _, args := range [][]string{{"ps"}, {"stat", c.container.ID()}} {
		if text := c.host.command(c.t, args...); !strings.Contains(text, reason) {
			c.t.Errorf("%s does not give the reason:\n%s", args[0], text)
		}
	}
}

// The limits are set where the program is started, or around farpage, whose agent
// must not be held to them.
func TestProgramWithLowLimitsHasThemAndItsBytes(t *testing.T) {
	for _, test := range []struct {
		name    string
		ulimits string
		outside bool
	}{
		{name: "few descriptors and little address space", ulimits: "ulimit -n 16; ulimit -v 524288"},
		{name: "few descriptors around farpage", ulimits: "ulimit -Sn 16", outside: true},
		{name: "address space around farpage", ulimits: "ulimit -Sv 2097152", outside: true},
		{name: "small files around farpage", ulimits: "ulimit -Sf 1000", outside: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			limited := []string{"sh", "-c", test.ulimits + `; exec "$@"`, "sh"}
			argv := append(slices.Clone(limited), guest(t, "limits"), "64", "2000")
			native := startNative(t, t.TempDir(), argv...).wait(time.Minute)
			if native.status != 0 {
				t.Fatalf("exit status %d without farpage\n%s", native.status, native.stderr)
			}
			var r *running
			if test.outside {
				r = startFarIn(t, limited, guest(t, "limits"), "64", "2000")
			} else {
				r = startFar(t, t.TempDir(), argv...)
			}
			far := r.wait(time.Minute)
			far.log(t)
			far.expectAsNative(t, native)
		})
	}
}

// A hard limit can be lifted by CAP_SYS_RESOURCE only. Without it the agent says what is
// in its way, and the command is not run.
func TestHardLimitThatIsTooLowForTheAgentIsNamed(t *testing.T) {
	var caps uint64
	_, after, _ := strings.Cut(readAll(t, "/proc/self/status"), "\nCapEff:\t")
	if _, err := fmt.Sscanf(after, "%x", &caps); err != nil {
		t.Fatal(err)
	}
	ran := filepath.Join(t.TempDir(), "ran")
	limited := []string{"sh", "-c", `ulimit -v 1000000; exec "$@"`, "sh"}
	if caps>>unix.CAP_SYS_RESOURCE&1 == 1 {
		far := startFarIn(t, limited, "touch", ran).wait(time.Minute)
		if _, err := os.Stat(ran); far.status != 0 || err != nil {
			t.Errorf("exit status %d, %v\n%s", far.status, err, far.stderr)
		}
		return
	}
	failing(t, append(limited, farpagePath(), "run", "--local", "32Mi", "--", "touch", ran)...).expectRefusal(t, 125,
		"farpage: map the state of a container: cannot allocate memory; farpage's agent has the limits of whoever starts it, "+
			"and hard ones may be too low: RLIMIT_AS is 1024000000 (ulimit -v); raise them, or set them inside: farpage run ... -- sh -c 'ulimit ...; exec CMD'\n")
	if _, err := os.Stat(ran); err == nil {
		t.Error("the command was run")
	}
}

// startFarIn is startFar by a command that changes what farpage is started with.
func startFarIn(t *testing.T, before []string, argv ...string) *running {
	t.Helper()
	requireFarpage(t)
	stats := filepath.Join(t.TempDir(), "stats.json")
	run := []string{farpagePath(), "run", "--local", "32Mi", "--stats", stats, "--"}
	return start(t, t.TempDir(), stats, slices.Concat(before, run, argv))
}

func TestClosedStandardDescriptorsHoldNothingOfOurs(t *testing.T) {
	seen := guest(t, "seen")
	for _, closed := range []struct {
		redirections string
		numbers      []string
	}{
		{"<&-", []string{"0"}},
		{">&-", []string{"1"}},
		{"2>&-", []string{"2"}},
		{"<&- >&- 2>&-", []string{"0", "1", "2"}},
	} {
		t.Run(closed.redirections, func(t *testing.T) {
			closing := []string{"sh", "-c", `exec "$@" ` + closed.redirections, "sh"}
			argv := append(slices.Clone(closing), seen, "write", "seen")
			native := descriptorsOf(t, startNative(t, t.TempDir(), argv...))
			for _, number := range closed.numbers {
				if slices.ContainsFunc(native, func(line string) bool { return strings.HasPrefix(line, "descriptor "+number+" ") }) {
					t.Fatalf("%s is open without farpage: %q", number, native)
				}
			}
			if inside := descriptorsOf(t, startFar(t, t.TempDir(), argv...)); !slices.Equal(inside, native) {
				t.Errorf("closed for the program: descriptors %q, without farpage %q", inside, native)
			}
			// farpage itself has nothing closed: its runtime opens /dev/null there.
			for _, number := range closed.numbers {
				native = append(native, "descriptor "+number+" /dev/null")
			}
			slices.Sort(native)
			if around := descriptorsOf(t, startFarIn(t, closing, seen, "write", "seen")); !slices.Equal(around, native) {
				t.Errorf("closed for farpage: descriptors %q, want %q", around, native)
			}
		})
	}
}

// descriptorsOf are what the guest seen has seen of its own.
func descriptorsOf(t *testing.T, r *running) []string {
	t.Helper()
	if o := r.wait(time.Minute); o.status != 0 {
		t.Fatalf("exit status %d\nstderr:\n%s", o.status, o.stderr)
	}
	lines := seenLines(t, filepath.Join(r.command.Dir, "seen"))
	lines = slices.DeleteFunc(lines, func(line string) bool { return !strings.HasPrefix(line, "descriptor ") })
	slices.Sort(lines)
	return lines
}

func seenLines(t *testing.T, path string) []string {
	t.Helper()
	return strings.Split(strings.TrimSuffix(readAll(t, path), "\n"), "\n")
}

// execvp(3) is what env does: the same as a shell with a script.
func TestScriptIsStartedAsByAShell(t *testing.T) {
	static := guest(t, "static-threads8")
	for _, test := range []struct {
		name, text string
		status     int
		says       string // farpage's, on standard error
		far        bool   // it starts a program that is managed and has its memory far
	}{
		{name: "with an interpreter", text: "#!/bin/sh -u\necho \"$0 $*\"; exec " + guest(t, "threads8") + " 64\n", far: true},
		{name: "of a script", text: "#!OTHER with this\n"},
		{name: "without a first line", text: "echo \"$0 $*\"; " + guest(t, "threads8") + " 64; exit 4\n", status: 4, far: true},
		{name: "empty", text: ""},
		{
			name: "without its interpreter", text: "#!/nonexistent/interpreter x\n", status: 127,
			says: "farpage: ./script: there is no /nonexistent/interpreter, which it is started with\n",
		},
		{
			name: "with a static interpreter", text: "#! " + static + " 16\n",
			says: "farpage: ./script runs unmanaged: its interpreter " + static + " is a static program, no library can be preloaded into it\n",
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			other := filepath.Join(dir, "other")
			writeScript(t, other, "#!/bin/sh\necho \"other $1 $2\"\n")
			writeScript(t, filepath.Join(dir, "script"), strings.ReplaceAll(test.text, "OTHER", other))
			native := startNative(t, dir, "env", "./script", "one", "two words").wait(time.Minute)
			if native.status != test.status {
				t.Fatalf("exit status %d without farpage, want %d\n%s", native.status, test.status, native.stderr)
			}
			far := startFar(t, dir, "./script", "one", "two words").wait(time.Minute)
			far.expectSame(t, native)
			if string(far.stderr) != test.says {
				t.Errorf("stderr %q, want %q", far.stderr, test.says)
			}
			far.expectSound(t)
			if test.far {
				far.expectFar(t)
			}
		})
	}
}

// Only while it runs: where there is no cgroup to look in, ps finds it as a child.
func TestScriptWithAStaticInterpreterIsListedWithTheReason(t *testing.T) {
	dir := t.TempDir()
	writeScript(t, filepath.Join(dir, "script"), "#!"+guest(t, "static-threads8")+" 512\n")
	r := startFar(t, dir, "./script")
	agent := r.awaitAgent()
	var list []api.Process
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		list = r.ps(agent).ProcessList
		if len(list) > 0 && list[0].Command != "farpage" { // before its exec
			break
		}
	}
	if len(list) != 1 || list[0].Command != "script" || list[0].State != "unmanaged" ||
		list[0].Reason != "it is a static program: no library can be preloaded into it" {
		t.Errorf("it is listed as %+v", list)
	}
	if far := r.wait(time.Minute); far.status != 0 || !strings.HasPrefix(string(far.stdout), "threads8: 131072 pages right") {
		t.Errorf("exit status %d, stdout %q\nstderr:\n%s", far.status, far.stdout, far.stderr)
	}
}

func writeScript(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
}

// What the kernel does not start and is no text either is not for a shell.
func TestProgramThatIsNoScriptAndNoProgramIsNotExecutable(t *testing.T) {
	dir := t.TempDir()
	writeScript(t, filepath.Join(dir, "data"), "\x7fELF\x00 of another machine\n")
	if err := os.Mkdir(filepath.Join(dir, "folder"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, why := range map[string]string{"./data": "exec format error", "./folder": "is a directory"} {
		far := start(t, dir, "", []string{farpagePath(), "run", "--local", "32Mi", "--", name}).wait(time.Minute)
		if want := fmt.Sprintf("farpage: %s cannot be executed: %s\n", name, why); far.status != 126 || string(far.stderr) != want {
			t.Errorf("exit status %d, stderr %q, want 126, %q", far.status, far.stderr, want)
		}
	}
}

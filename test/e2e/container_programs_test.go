package e2e

import (
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/farpage/farpage/oci/policy"
	"github.com/farpage/farpage/test/container"
)

// containedProgram is a program and what its container holds beside it.
type containedProgram struct {
	program
	contents func(t *testing.T, cfg *container.Config)
}

// Smaller than under run, where that is enough: the engine is the same.
var containedPrograms = []containedProgram{
	{guestProgram("threads8", "128"), nil},
	{guestProgram("forktree", "64"), nil},
	{guestProgram("daemonise", "64", "32", "512"), nil},
	{guestProgram("shortforks", "64", "200", "64"), nil},
	{guestProgram("threadexit", "64", "10"), nil},
	{guestProgram("musl-threads8", "96"), preloadForMusl},
	{guestProgram("musl-forktree", "48"), preloadForMusl},
	{guestProgram("musl-threadexit", "64", "10"), preloadForMusl},
	{pythonProgram("100"), putPython},
	{gccProgram(250), putCompiler},
	{xzProgram(24), putTools},
}

// preloadForMusl: musl's loader does not read /etc/ld.so.preload, which is all that
// a hook can arrange.
func preloadForMusl(_ *testing.T, cfg *container.Config) {
	cfg.Env = append(cfg.Env, "LD_PRELOAD="+policy.MountPoint+"/libfarpage.so")
}

func putPython(t *testing.T, cfg *container.Config) {
	t.Helper()
	script := pythonGuest(t, "pyguest.py")[1]
	cfg.Python = true
	cfg.Files = map[string]string{script: script}
}

func putCompiler(t *testing.T, cfg *container.Config) {
	t.Helper()
	cc1, err := exec.CommandContext(t.Context(), "gcc", "-print-prog-name=cc1").Output()
	if err != nil {
		t.Fatal(err)
	}
	cfg.Programs = append(cfg.Programs, strings.TrimSpace(string(cc1)), "as")
	// cc1 reads it before all else.
	const predefined = "/usr/include/stdc-predef.h"
	cfg.Files = map[string]string{predefined: predefined}
}

func putTools(t *testing.T, cfg *container.Config) {
	t.Helper()
	cfg.Programs = append(cfg.Programs, "xz", "cmp")
}

func TestProgramInAContainerDoesTheSameWithThirtyTwoMebibytesLocal(t *testing.T) {
	host := startHost(t)
	for _, program := range containedPrograms {
		t.Run(program.name, func(t *testing.T) {
			native := program.runNative(t)
			far := program.run(t, func(dir string) job {
				return host.startContained(t, dir, "32Mi", program.configure(t), program.argv(t)...)
			})
			far.log(t)
			program.expectRight(t, far, native)
		})
	}
}

func (p containedProgram) configure(t *testing.T) func(*container.Config) {
	t.Helper()
	return func(cfg *container.Config) {
		if p.contents != nil {
			p.contents(t, cfg)
		}
	}
}

func TestRedisInAContainerKeepsEveryValueAndSavesWhatWasThereAtTheFork(t *testing.T) {
	host := startHost(t)
	keys := seeded("redis").Perm(redisKeys)
	dir := shortTempDir(t)
	server := redis(t, dir, host.startContained(t, dir, "32Mi", nil, redisCommand(t, dir)...))
	server.set(keys, 1)
	server.must("BGSAVE")
	half := keys[:len(keys)/2]
	server.set(half, 2)
	server.awaitSaved(3 * time.Minute)
	server.expect(half, func(int) int { return 2 })
	server.expect(keys[len(half):], func(int) int { return 1 })
	far := server.shutdown()
	far.log(t)
	if far.status != 0 {
		t.Errorf("exit status %d\nstderr:\n%s", far.status, tail(far.stderr))
	}
	far.expectSound(t)
	far.expectFar(t)
	far.expectInBudget(t)
	expectSaved(t, dir, keys)
}

// Nothing can be preloaded into a static program: it runs, and `ps` says why its
// memory stays.
func TestStaticProgramInAContainerRunsUnmanagedWithTheReason(t *testing.T) {
	host := startHost(t)
	static := guestProgram("static-threads8", "256")
	native := static.runNative(t)
	var reason string
	far := static.run(t, func(dir string) job {
		c := host.startContained(t, dir, "32Mi", nil, static.argv(t)...)
		reason = c.awaitUnmanaged("static-threads8")
		return c
	})
	far.expectSame(t, native.outcome)
	if !strings.Contains(reason, "static program") {
		t.Errorf("the reason is %q: want it to say that the program is static", reason)
	}
	far.expectSound(t)
}

// awaitUnmanaged returns the reason that `ps --json` gives for an unmanaged process.
func (c *contained) awaitUnmanaged(command string) string {
	c.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		for _, one := range c.host.ps(c.t) {
			for _, p := range one.ProcessList {
				if one.ID == c.container.ID() && p.State == "unmanaged" && strings.HasPrefix(command, p.Command) {
					return p.Reason
				}
			}
		}
	}
	c.giveUp("is never listed with an unmanaged " + command)
	return ""
}

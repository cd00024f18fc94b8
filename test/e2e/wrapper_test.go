package e2e

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/farpage/farpage/test/container"
)

// runtime makes a command that is farpage's runtime with its own options, as dockerd makes
// one of a runtime's runtimeArgs.
func (h *host) runtime(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "runtime")
	bin := filepath.Dir(farpagePath())
	script := "#!/bin/sh\nexec " + bin + "/farpage-runtime --farpage-socket-dir " + h.SocketDir() + " \"$@\"\n"
	if err := os.WriteFile(path, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// A bundle that says nothing of farpage but the annotation, as an engine without hooks
// makes it; musl programs need no environment of their own.
func TestRuntimeWrapperTakesInWhatIsAnnotated(t *testing.T) {
	host := startHost(t)
	for _, program := range []containedProgram{
		{guestProgram("threads8", "128"), nil},
		{guestProgram("forktree", "64"), nil},
		{guestProgram("musl-threads8", "96"), nil},
	} {
		t.Run(program.name, func(t *testing.T) {
			native := program.runNative(t)
			far := program.run(t, func(dir string) job {
				return host.startContained(t, dir, "32Mi", func(cfg *container.Config) {
					cfg.Prestart, cfg.Runtime = nil, host.runtime(t)
				}, program.argv(t)...)
			})
			far.log(t)
			program.expectRight(t, far, native)
		})
	}
}

func TestProgramThatIsStartedLaterIsTakenInWithGlibcAndMusl(t *testing.T) {
	host := startHost(t)
	for _, name := range []string{"threads8", "musl-threads8"} {
		t.Run(name, func(t *testing.T) {
			program := guestProgram(name, "64").argv(t)
			c := host.startContained(t, t.TempDir(), "32Mi", func(cfg *container.Config) {
				cfg.Prestart, cfg.Runtime = nil, host.runtime(t)
				cfg.Programs = append(cfg.Programs, program[0])
			}, "sh", "-c", ":") // a shell stays behind it
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			out, err := c.container.ExecProcess(ctx, program...)
			if err != nil || !strings.Contains(string(out), "right") {
				t.Errorf("%v\n%s", err, out)
			}
			if s := c.stats(); s.EvictedPages == 0 || s.Processes.Exited == 0 {
				t.Errorf("statistics after it: %+v", s)
			}
			if far := c.wait(time.Minute); far.status != 0 {
				t.Errorf("exit status %d\n%s", far.status, far.stderr)
			}
		})
	}
}

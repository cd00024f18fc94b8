package keeper

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/farpage/farpage/handler/target"
	"github.com/farpage/farpage/internal/need"
)

// startOutput starts an agent that writes through Output, with both outputs to a file,
// and waits for its keeper.
func startOutput(t *testing.T, to *os.File) (agent *os.Process, record Record) {
	t.Helper()
	need.Root(t, "an agent")
	dir := t.TempDir()
	command := exec.Command(build(t), "output", dir)
	command.Stdout, command.Stderr = to, to
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = command.Process.Kill()
		_ = command.Wait()
		end(t, record)
	})
	within(t, "a keeper", func() bool {
		var there bool
		var err error
		record, there, err = Read(dir)
		return there && err == nil
	})
	return command.Process, record
}

// expectStderr checks where an agent's standard error goes, as others see it: by the table
// that it shares with its keeper.
func expectStderr(t *testing.T, record Record, want string) {
	t.Helper()
	if to, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/2", record.Agent)); err != nil || to != want {
		t.Errorf("its standard error is %s, %v", to, err)
	}
}

func TestWhoReadsTheAgentsOutputDoesNotWaitForItsKeeper(t *testing.T) {
	reader, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan string, 1)
	go func() {
		text, _ := io.ReadAll(reader)
		_ = reader.Close()
		ended <- string(text)
	}()
	agent, record := startOutput(t, writer)
	_ = writer.Close() // the test's own
	select {
	case text := <-ended:
		t.Fatalf("its output ends while it runs: %q", text)
	case <-time.After(100 * time.Millisecond):
	}
	expectStderr(t, record, "/dev/null")
	_ = agent.Kill() // in the middle of whatever it does
	select {
	case text := <-ended:
		if want := "a line\n" + string(bytes.Repeat([]byte("long "), 100_000)) + "\nthe last line\n"; text != want {
			t.Errorf("it has written %d bytes, %.40q...: want %d", len(text), text, len(want))
		}
	case <-time.After(10 * time.Second):
		t.Fatal("its output does not end with it")
	}
	if !alive(record.Pid, record.Start) || target.Command(record.Pid) != name {
		t.Error("its keeper has ended too")
	}
}

func TestOutputThatIsNoPipeStaysWhereItIs(t *testing.T) {
	file, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	_, record := startOutput(t, file)
	expectStderr(t, record, file.Name())
}

package keeper

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/farpage/farpage/handler/target"
	"github.com/farpage/farpage/internal/need"
)

// outputAgent starts an agent that writes through Output, and returns what comes out of
// its pipes, which end with it.
func outputAgent(t *testing.T, dir string, before ...string) (*exec.Cmd, Record, <-chan string) {
	t.Helper()
	need.Root(t, "an agent")
	words := append(before, build(t), "output", dir)
	command := exec.Command(words[0], words[1:]...)
	reader, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	command.Stdout, command.Stderr = writer, writer
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	_ = writer.Close() // the test's own
	ended := make(chan string, 1)
	go func() {
		text, _ := io.ReadAll(reader)
		_ = reader.Close()
		ended <- string(text)
	}()
	var record Record
	t.Cleanup(func() {
		_ = command.Process.Kill()
		_ = command.Wait()
		end(t, record)
	})
	within(t, "a keeper", func() bool {
		var there bool
		record, there, err = Read(dir)
		return there && err == nil
	})
	return command, record, ended
}

func TestWhoReadsTheAgentsOutputDoesNotWaitForItsKeeper(t *testing.T) {
	command, record, ended := outputAgent(t, t.TempDir())
	select {
	case text := <-ended:
		t.Fatalf("its output ends while it runs: %q", text)
	case <-time.After(100 * time.Millisecond):
	}
	// What others see of the agent is the table that it shares with its keeper.
	if to, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/2", record.Agent)); err != nil || to != "/dev/null" {
		t.Errorf("its standard error is %s, %v", to, err)
	}
	_ = command.Process.Kill() // in the middle of whatever it does
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
	file, err := os.Create(t.TempDir() + "/log")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	dir := t.TempDir()
	command := exec.Command(build(t), "output", dir)
	command.Stdout, command.Stderr = file, file
	need.Root(t, "an agent")
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	var record Record
	defer func() {
		_ = command.Process.Kill()
		_ = command.Wait()
		end(t, record)
	}()
	within(t, "a keeper", func() bool {
		var there bool
		record, there, err = Read(dir)
		return there && err == nil
	})
	if to, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/2", record.Agent)); err != nil || to != file.Name() {
		t.Errorf("its standard error is %s, %v", to, err)
	}
}

package store_test

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/farpage/farpage/internal/need"
	"github.com/farpage/farpage/store"
	"golang.org/x/sys/unix"
)

const childURL = "FARPAGE_TEST_STORE"

// beOtherAgent is an agent in a process of its own: it opens the store and stays until
// it is killed.
func beOtherAgent(url string) {
	if _, err := store.OpenURL(url); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Fprintln(os.Stderr, "open")
	select {}
}

// An agent's keeper shares its descriptors: they and their locks live on.
func TestFileIsFreeWhenItsAgentIsDeadThoughItsDescriptorsLive(t *testing.T) {
	path := filepath.Join(t.TempDir(), "slots")
	agent := exec.Command(os.Args[0])
	agent.Env = append(os.Environ(), childURL+"=file://"+path)
	out, err := agent.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := agent.Start(); err != nil {
		t.Fatal(err)
	}
	ended := false
	defer func() {
		if !ended {
			_ = agent.Process.Kill()
			_ = agent.Wait()
		}
	}()
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "open\n" {
		t.Fatalf("the other agent says %q, %v", line, err)
	}
	pid := agent.Process.Pid
	kept := takeDescriptors(t, pid, path)
	refuses(t, path, fmt.Sprintf("is in use by another agent (pid %d): stop that, or choose another path", pid))
	if err := agent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the other agent is a zombie", func() bool {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		return err == nil && strings.Contains(string(stat), ") Z ")
	})
	eventually(t, "the file is free", func() bool {
		st, err := store.OpenURL("file://" + path)
		if err != nil {
			return false
		}
		if err := st.Close(); err != nil {
			t.Error(err)
		}
		return true
	})
	ended = true
	_ = agent.Wait()
	for _, fd := range kept {
		_ = unix.Close(fd)
	}
}

// takeDescriptors does what a keeper does, for those of path.
func takeDescriptors(t *testing.T, pid int, path string) (kept []int) {
	t.Helper()
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(pidfd) }()
	folder := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(folder)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		if to, _ := os.Readlink(filepath.Join(folder, entry.Name())); to != path {
			continue
		}
		number, err := strconv.Atoi(entry.Name())
		if err != nil {
			t.Fatal(err)
		}
		fd, err := unix.PidfdGetfd(pidfd, number, 0)
		if err != nil {
			need.Skip(t, fmt.Sprintf("pidfd_getfd needs root (run `sudo make test`): %v", err))
		}
		kept = append(kept, fd)
	}
	if len(kept) == 0 {
		t.Error("the other agent has not opened the file")
	}
	return kept
}

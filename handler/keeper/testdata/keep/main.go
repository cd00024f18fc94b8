// Keep is an agent that does nothing but keep: it makes descriptors that last and
// a keeper, says so on standard output, and waits for its end.
//
//	keep publish|isolate|output|stray FOLDER
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/farpage/farpage/handler/keeper"
	"github.com/farpage/farpage/handler/target"
	"golang.org/x/sys/unix"
)

func main() {
	if err := run(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	for {
		time.Sleep(time.Hour)
	}
}

func run(how, dir string) error {
	var output io.Writer = os.Stdout
	if how == "output" {
		var err error
		if output, err = keeper.Output(); err != nil {
			return err
		}
		for _, text := range []string{"a line\n", strings.Repeat("long ", 100_000) + "\n", "the last line\n"} {
			if _, err := io.WriteString(output, text); err != nil {
				return err
			}
		}
		fmt.Println("this leads nowhere")
	}
	early, err := file("early")
	if err != nil {
		return err
	}
	if early, err = keeper.Lasting(early); err != nil {
		return err
	}
	if err := keeper.Reserve(); err != nil {
		return err
	}
	before, err := file("before")
	if err != nil {
		return err
	}
	closed, err := file("closed")
	if err != nil {
		return err
	}
	// What every agent of this folder keeps open.
	if _, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
		return err
	}
	pid, err := keeper.Spawn()
	if err != nil {
		return err
	}
	after, err := file("after")
	if err != nil {
		return err
	}
	if err := unix.Close(closed); err != nil {
		return err
	}
	record := keeper.Record{
		Pid: pid, Start: target.StartTime(pid), RootFD: before,
		Agent: os.Getpid(), AgentStart: target.StartTime(os.Getpid()),
	}
	if how == "isolate" {
		if err := keeper.Isolate(pid); err != nil {
			return err
		}
	}
	if how != "stray" {
		if err := keeper.Publish(dir, record); err != nil {
			return err
		}
	}
	if how == "output" {
		return nil
	}
	return json.NewEncoder(output).Encode(map[string]any{
		"record": record, "early": early, "before": before, "after": after, "closed": closed,
	})
}

// file makes a file in memory that holds its own name.
func file(name string) (int, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return -1, err
	}
	_, err = unix.Write(fd, []byte(name))
	return fd, err
}

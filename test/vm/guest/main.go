// Guest is the part of the test that runs inside the VM: systemd starts it at each boot,
// from the second disk, and it does the steps of package steps, tells of them on a serial
// port, and ends the VM with the last one or with the first that failed. It judges by what
// programs read back, exit statuses, /proc and cgroups, and by farpage's counters beside.
package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/farpage/farpage/test/vm/steps"
)

// dir is where the second disk is mounted; what is written there stays over a reboot.
const dir = "/run/vm"

// port is the serial port that the host reads.
const port = "/dev/ttyS1"

// These files say how far it is: that the steps have begun, and that those before the
// reboot are done.
var (
	underWay  = filepath.Join(dir, "under-way")
	goingDown = filepath.Join(dir, "going-down")
)

// beforeReboot and afterReboot are what is done, in the order of steps.Names; between
// them is the reboot, which is a step that begins before it and passes behind it.
var (
	beforeReboot = []func(*test){
		testHost, testListing, testPackage, testService, testActivation, testInstall, testCheck,
		testPlain, testDockerRun, testDockerExec, testPodmanRun, testPodmanExec, testCtr, testPages,
		testRedis, testRestart, testKill, testStop, testUpgrade,
	}
	afterReboot = []func(*test){testBoot, testCameBack, testRefusal, testUninstall, testNothingLeft}
)

func main() {
	out, err := os.OpenFile(port, os.O_WRONLY, 0)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	s := &session{out: out}
	end := "poweroff"
	reboot := len(beforeReboot)
	if !there(goingDown) {
		if there(underWay) {
			s.say(steps.Names[0], steps.Failed, "the VM has booted again by itself")
		} else if err := os.WriteFile(underWay, nil, 0o600); err != nil {
			s.say(steps.Names[0], steps.Failed, err.Error())
		} else if s.all(0, beforeReboot) && s.one(reboot, testGoingDown) {
			end = "reboot"
		}
	} else if s.one(reboot, testReboot) {
		s.all(reboot+1, afterReboot)
	}
	if out, err := exec.Command("systemctl", end).CombinedOutput(); err != nil {
		s.say(steps.Names[reboot], steps.Wrong, fmt.Sprintf("systemctl %s: %v\n%s", end, err, out))
	}
}

func there(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// session is what the steps share.
type session struct {
	out   *os.File
	redis *redisContainer // under which the agent dies
}

func (s *session) say(step string, state steps.State, text string) {
	if _, err := s.out.Write(steps.Line{Step: step, State: state, Text: text}.Encode()); err != nil {
		fmt.Fprintln(os.Stderr, "tell the host:", err)
	}
}

// all does steps until one fails.
func (s *session) all(first int, do []func(*test)) bool {
	for i, f := range do {
		if !s.one(first+i, f) {
			return false
		}
	}
	return true
}

// one does a step. One that is over before the reboot passes after it.
func (s *session) one(number int, do func(*test)) (passed bool) {
	t := &test{session: s, name: steps.Names[number], began: time.Now()}
	s.say(t.name, steps.Began, "")
	defer func() {
		if x := recover(); x != nil && x != any(stopped{}) {
			t.errorf("panic: %v", x)
		}
		if passed = !t.failed; !passed {
			s.say(t.name, steps.Failed, t.journal())
			return
		}
		if !t.goesOn {
			s.say(t.name, steps.Passed, "")
		}
	}()
	do(t)
	return true
}

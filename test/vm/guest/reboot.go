package main

import (
	"os"
	"regexp"
	"strings"
)

// testGoingDown is the first half of a step: the host goes down with a container that has
// pages far, and with one that is to come back.
func testGoingDown(t *test) {
	t.goesOn = true
	t.must(dockerRun("--detach", "--name", "stays", "--restart", "always", "--runtime", "farpage", "--annotation", annotation, image, "sleep", "100000")...)
	t.unexpected()
	boot := t.must("cat", bootID)
	if err := os.WriteFile(goingDown, []byte(boot), 0o600); err != nil {
		t.fatalf("%v", err)
	}
}

// bootID is another one after each boot (proc_sys_kernel(5), random/boot_id).
const bootID = "/proc/sys/kernel/random/boot_id"

// testReboot is the second half.
func testReboot(t *test) {
	if now, before := t.must("cat", bootID), t.must("cat", goingDown); now == before {
		t.fatalf("it is the same boot")
	}
	if state, err := t.try("systemctl", "is-system-running", "--wait"); err != nil {
		t.errorf("the system is %s\n%s", state, t.must("systemctl", "--failed", "--no-pager"))
	}
}

func testBoot(t *test) {
	for _, unit := range []string{"farpage.service", "farpage.socket"} {
		t.contains(unit, t.must("systemctl", "is-active", unit), "active")
	}
	if out, err := t.try("farpage", "check"); err != nil {
		t.errorf("farpage check: %v\n%s", err, out)
	}
	// The one without --restart has ended with the host.
	t.must("docker", "rm", "redis")
}

func testCameBack(t *test) {
	t.wait("the container is not running", func() bool {
		return t.must("docker", "inspect", "--format", "{{.State.Running}}", "stays") == "true"
	})
	id := t.must("docker", "inspect", "--format", "{{.Id}}", "stays")
	t.managed(t.stat(id).ProcessList, "sleep")
	said, seen := t.watch(id, func() string { return t.must(append([]string{"docker", "exec", "stays"}, program...)...) })
	t.contains("docker exec", said, programSays)
	t.fit("docker exec", seen, programMiB<<20)
}

func testRefusal(t *test) {
	out, err := t.try("apt-get", "--quiet", "--yes", "purge", "farpage")
	if err == nil {
		t.errorf("it is removed")
	}
	t.contains("apt-get purge", out, "farpage: 1 processes are managed (farpage ps): end their containers first")
	t.contains("dpkg --status", t.must("dpkg", "--status", "farpage"), "install ok installed")
	t.must("docker", "exec", "stays", "threads8", "16")
	t.must("docker", "rm", "--force", "stays")
	t.expectEmpty()
}

func testUninstall(t *test) {
	t.unexpected()
	for engine, file := range engines {
		t.contains("farpage uninstall "+engine, t.must("farpage", "uninstall", engine, "--restart"), file)
	}
	t.notef("%s", t.must("farpage", "uninstall", "systemd", "--restart"))
	t.must("apt-get", "--quiet", "--yes", "purge", "farpage")
	if out, err := t.try("dpkg-query", "--show", "farpage"); err == nil {
		t.errorf("dpkg still knows %s", out)
	}
	for _, engine := range []string{"docker", "containerd"} {
		t.contains(engine, t.must("systemctl", "is-active", engine), "active")
	}
	// What the test itself has made.
	t.must("docker", "rmi", image)
	t.must("podman", "rmi", image)
}

// complaint is in what the agent logs, and systemd of it, when something is not well. That a
// signal has ended the agent is no complaint: a step sends it.
var complaint = regexp.MustCompile(`level=(warn|err|fatal)|Failed (to|at)|result '(exit-code|timeout|core-dump|watchdog|resources|protocol)'|left-over|Unknown key`)

// unexpected looks for what the agent or the hook has complained of in this boot.
func (t *test) unexpected() {
	log := t.must(append([]string{"journalctl", "--no-pager", "--output", "cat", "--boot"}, ofFarpage...)...)
	for line := range strings.Lines(log) {
		if complaint.MatchString(line) {
			t.errorf("the log complains: %s", line)
		}
	}
	t.contains("the log", log, "Started farpage.service")
}

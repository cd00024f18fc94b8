package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/farpage/farpage/handler/check"
)

// testHost makes sure that this is the host that is meant, and that it is all right.
func testHost(t *test) {
	t.contains("/etc/os-release", t.must("cat", "/etc/os-release"), `VERSION_ID="13"`)
	if state, err := t.try("systemctl", "is-system-running", "--wait"); err != nil {
		t.errorf("the system is %s\n%s", state, t.must("systemctl", "--failed", "--no-pager"))
	}
	comm, err := os.ReadFile("/proc/1/comm")
	if err != nil || strings.TrimSpace(string(comm)) != "systemd" {
		t.errorf("process 1 is %q (%v)", comm, err)
	}
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err != nil {
		t.errorf("no cgroup v2: %v", err)
	}
	for _, engine := range []string{"docker", "containerd"} {
		t.contains(engine, t.must("systemctl", "is-active", engine), "active")
	}
	t.contains("docker info", t.must("docker", "info"), "Cgroup Driver: systemd", "Cgroup Version: 2", "apparmor")
	t.notef("%s; systemd %s; docker.io %s; containerd %s; podman %s; crun %s; runc %s", t.must("uname", "-sr"),
		t.version("systemd"), t.version("docker.io"), t.version("containerd"), t.version("podman"), t.version("crun"), t.version("runc"))
	// For podman and Docker; ctr takes an unpacked one.
	t.must("docker", "import", filepath.Join(dir, "rootfs.tar"), image)
	t.must("podman", "import", "--quiet", filepath.Join(dir, "rootfs.tar"), image)
}

// version is that of an installed Debian package.
func (t *test) version(name string) string {
	return t.must("dpkg-query", "--showformat", "${Version}", "--show", name)
}

func testPackage(t *test) {
	t.contains("apt-get install", t.must("apt-get", "--quiet", "--yes", "install", filepath.Join(dir, "1.0.0.deb")), "farpage install docker")
	t.contains("farpage --version", t.must("farpage", "--version"), "1.0.0")
	if out, err := t.try("systemctl", "is-active", "farpage.service"); err == nil {
		t.errorf("the package has started the agent: %s", out)
	}
}

// property is one of the agent's unit.
func (t *test) property(name string) string {
	return t.must("systemctl", "show", "--property", name, "--value", "farpage.service")
}

func testService(t *test) {
	t.notef("%s", t.must("farpage", "install", "systemd", "--restart"))
	for _, unit := range []string{"farpage.service", "farpage.socket"} {
		for _, is := range []string{"is-active", "is-enabled"} {
			if out, err := t.try("systemctl", is, unit); err != nil {
				t.fatalf("%s %s: %s (%v)\n%s", is, unit, out, err, t.must("systemctl", "status", "--no-pager", unit))
			}
		}
	}
	for name, want := range map[string]string{
		"Type": "notify", "SubState": "running", "KillMode": "process", "NoNewPrivileges": "yes", "PrivateNetwork": "yes",
		"ProtectHome": "yes", "Restart": "always", "OOMScoreAdjust": "-900", "NRestarts": "0",
	} {
		if got := t.property(name); got != want {
			t.errorf("%s is %s, want %s", name, got, want)
		}
	}
	pid := t.property("MainPID")
	status := t.must("cat", "/proc/"+pid+"/status")
	t.contains("the agent's status", status, "Name:\tfarpage", "NoNewPrivs:\t1")
	if t.must("grep", "CapEff", "/proc/"+pid+"/status") == t.must("grep", "CapEff", "/proc/1/status") {
		t.errorf("the agent has all capabilities:\n%s", status)
	}
	network := func(pid string) string { return t.must("readlink", "/proc/"+pid+"/ns/net") }
	if network(pid) == network("1") {
		t.errorf("the agent has the host's network")
	}
	t.contains("the agent's priority", t.must("chrt", "--all-tasks", "--pid", pid), "SCHED_")
}

func testActivation(t *test) {
	t.must("systemctl", "stop", "farpage.service")
	if state, _ := t.try("systemctl", "is-active", "farpage.service"); state != "inactive" {
		t.errorf("the stopped service is %s", state)
	}
	if left := named("farpage"); len(left) > 0 {
		t.errorf("stopped without a container, it leaves %q", left)
	}
	if out := t.must("farpage", "ps", "--json"); out != "[]" {
		t.errorf("farpage ps: %s", out)
	}
	t.contains("the service after a client's call", t.must("systemctl", "is-active", "farpage.service"), "active")
}

// engines are what farpage is installed in, and what the installation says of it.
var engines = map[string]string{
	"docker":     "/etc/docker/daemon.json",
	"containerd": "/etc/containerd/config.toml",
	"podman":     "/usr/share/containers/oci/hooks.d/farpage.json",
}

func testInstall(t *test) {
	for engine, file := range engines {
		t.contains("farpage install "+engine, t.must("farpage", "install", engine, "--restart"), file)
		t.contains("the second time", t.must("farpage", "install", engine, "--restart"), "nothing to change")
	}
	t.contains("docker info", t.must("docker", "info", "--format", "{{range $name, $_ := .Runtimes}}{{$name}} {{end}}"), "farpage")
	t.contains("containerd config dump", t.must("containerd", "config", "dump"), "runtimes.farpage]", "/usr/bin/farpage-runtime")
	t.wait("containerd is up again", func() bool { _, err := t.try("ctr", "version"); return err == nil })
	for _, engine := range []string{"docker", "containerd"} {
		t.contains(engine, t.must("systemctl", "is-active", engine), "active")
	}
}

func testCheck(t *test) {
	out, err := t.try("farpage", "check", "--json")
	if err != nil {
		t.errorf("farpage check: %v\n%s", err, out)
	}
	var results []check.Result
	if err := json.Unmarshal([]byte(out), &results); err != nil {
		t.fatalf("%v: %s", err, out)
	}
	for _, r := range results {
		if !r.OK {
			t.errorf("%+v", r)
		}
	}
	upstream := func(name string) string {
		version, _, _ := strings.Cut(t.version(name), "-")
		version, _, _ = strings.Cut(version, "~")
		version, _, _ = strings.Cut(version, "+")
		return version
	}
	for name, want := range map[string]string{
		"memory cgroup": "v2 at /sys/fs/cgroup",
		"kernel":        t.must("uname", "-r"),
		"Docker":        "Docker " + upstream("docker.io"),
		"containerd":    "containerd " + upstream("containerd"),
		"podman":        "podman " + upstream("podman"),
		"CRI-O":         "not installed",
		"systemd":       "systemd " + upstream("systemd"),
	} {
		i := slices.IndexFunc(results, func(r check.Result) bool { return r.Name == name })
		if i < 0 {
			t.errorf("farpage check says nothing of %s: %s", name, out)
			continue
		}
		t.contains("farpage check on "+name, results[i].Detail, want)
		if _, is := engines[strings.ToLower(name)]; is {
			t.contains("farpage check on "+name, results[i].Detail, "farpage is installed")
		}
	}
	if check.Usable(results) != (err == nil) {
		t.errorf("the exit status says something else than the results: %v", err)
	}
}

package install

import (
	"strings"
	"testing"
)

// program puts a program that says its version into a host.
func program(t *testing.T, h Host, name, says string) {
	t.Helper()
	putFile(t, h, "/usr/bin/"+name, []byte("#!/bin/sh\necho '"+says+"'\n"))
	executable(t, h, "/usr/bin/"+name)
}

func statusOf(t *testing.T, h Host, name string) Status {
	t.Helper()
	for _, s := range StatusOf(h) {
		if s.Name == name {
			return s
		}
	}
	t.Fatalf("no status of %s", name)
	return Status{}
}

func TestWhatIsNotThereNeedsNothing(t *testing.T) {
	for _, s := range StatusOf(Host{Root: t.TempDir(), Bin: "/usr/bin"}) {
		if !s.OK || s.Fix != "" || s.Detail != "not installed" && s.Detail != "not running" {
			t.Errorf("%+v", s)
		}
	}
}

func TestEachEngineIsKnownBeforeAndAfterItsInstallation(t *testing.T) {
	for _, c := range []struct {
		name, program, says, version, command string
		install                               func(Host) (Plan, error)
	}{
		{"Docker", "dockerd", "Docker version 26.1.5+dfsg1, build a72d7cd", "26.1.5+dfsg1", "docker", func(h Host) (Plan, error) { return Docker(h, DockerOptions{}) }},
		{"containerd", "containerd", "containerd github.com/containerd/containerd/v2 v2.1.4 75cb", "2.1.4", "containerd", func(h Host) (Plan, error) { return Containerd(h, ContainerdOptions{}) }},
		{"podman", "podman", "podman version 5.4.2", "5.4.2", "podman", Podman},
		{"CRI-O", "crio", "crio version 1.33.0\nVersion: 1.33.0", "1.33.0", "crio", CRIO},
	} {
		h := Host{Root: t.TempDir(), Bin: "/usr/bin"}
		program(t, h, c.program, c.says)
		want := Status{c.name, false, c.name + " " + c.version + ", farpage is not installed", "sudo farpage install " + c.command}
		if got := statusOf(t, h, c.name); got != want {
			t.Errorf("before: %+v, want %+v", got, want)
		}
		plan, err := c.install(h)
		apply(t, plan, err)
		want = Status{c.name, true, c.name + " " + c.version + ", farpage is installed", ""}
		if got := statusOf(t, h, c.name); got != want {
			t.Errorf("after: %+v, want %+v", got, want)
		}
	}
}

func TestWhatIsInTheWayIsSaid(t *testing.T) {
	h := Host{Root: t.TempDir(), Bin: "/usr/bin"}
	program(t, h, "dockerd", "Docker version 20.10.24+dfsg1, build 297e128")
	if s := statusOf(t, h, "Docker"); s.OK || !strings.Contains(s.Detail, "is there since 25") || !strings.HasPrefix(s.Fix, "install Docker 25 or newer") {
		t.Errorf("%+v", s)
	}
	program(t, h, "dockerd", "Docker version 27.0.1, build x")
	putFile(t, h, daemonJSON, []byte(`{"default-runtime": "runsc"}`))
	if s := statusOf(t, h, "Docker"); s.OK || !strings.Contains(s.Detail, "default runtime is runsc") {
		t.Errorf("%+v", s)
	}
	putFile(t, h, daemonJSON, []byte(`{`))
	if s := statusOf(t, h, "Docker"); s.OK || !strings.Contains(s.Detail, "cannot be installed") || !strings.Contains(s.Fix, "mend that") {
		t.Errorf("%+v", s)
	}
	program(t, h, "containerd", "containerd containerd.io 1.7.24 x")
	putFile(t, h, containerdConfig, []byte("version = 2\ndisabled_plugins = [\"cri\"]\n"))
	if s := statusOf(t, h, "containerd"); s.OK || !strings.Contains(s.Detail, "the CRI plugin is disabled") {
		t.Errorf("%+v", s)
	}
}

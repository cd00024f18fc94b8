package main

import (
	"slices"
	"strings"
)

// dockerRun is `docker run` of an image that has no network.
func dockerRun(args ...string) []string {
	return append([]string{"docker", "run", "--network", "none"}, args...)
}

// A container sees the same with farpage's runtime as with Docker's own.
func testPlain(t *test) {
	const look = "cat /proc/self/mountinfo | while read id parent device root point rest; do echo $root $point $rest; done; env; ls /dev /etc; " +
		"cat /proc/self/status | while read key value; do case $key in Cap*|NoNew*|Seccomp*|Uid*) echo $key $value;; esac; done; cat /proc/self/attr/current"
	see := func(runtime string) string {
		t.must(dockerRun("--hostname", "same", "--name", "plain", "--runtime", runtime, image, "sh", "-c", look)...)
		out := t.must("docker", "logs", "plain")
		id := t.must("docker", "inspect", "--format", "{{.Id}}", "plain")
		t.must("docker", "rm", "plain")
		kept := slices.DeleteFunc(strings.Split(strings.ReplaceAll(out, id, "ID"), "\n"), func(line string) bool {
			return strings.Contains(line, " overlay ") // its layers have names of their own
		})
		return strings.Join(kept, "\n")
	}
	with, without := see("farpage"), see("runc")
	if with != without {
		t.errorf("with farpage's runtime\n%s\nwith runc\n%s", with, without)
	}
	t.contains("a container without annotation", with, "/proc", "NoNewPrivs", "docker-default")
	if strings.Contains(with, "farpage") {
		t.errorf("it sees\n%s", with)
	}
}

func testDockerRun(t *test) {
	said, seen := t.watch("", func() string {
		return t.must(dockerRun(slices.Concat([]string{"--rm", "--init", "--runtime", "farpage", "--annotation", annotation, image}, program)...)...)
	})
	t.contains("docker run", said, programSays)
	t.fit("docker run", seen, programMiB<<20)
	t.contains("its cgroup", seen.cgroup, "/system.slice/docker-"+seen.container.ID)
	t.contains("its AppArmor profile", seen.confined, "docker-default (enforce)")
	t.expectEmpty()

	out, err := t.try(dockerRun("--rm", "--runtime", "farpage", "--annotation", "io.farpage.local=much", image, "true")...)
	if err == nil {
		t.errorf("a bad value starts")
	}
	t.contains("a bad value", out, `annotation io.farpage.local="much": not a size`)
}

// What an engine takes away from a program makes no difference.
func testDockerExec(t *test) {
	id := t.must(dockerRun("--detach", "--name", "locked", "--runtime", "farpage", "--annotation", annotation,
		"--read-only", "--user", "1000", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", image, "sleep", "100000")...)
	said, seen := t.watch(id, func() string { return t.must(append([]string{"docker", "exec", "locked"}, program...)...) })
	t.contains("docker exec", said, programSays)
	t.fit("docker exec", seen, programMiB<<20)
	t.managed(t.stat(id).ProcessList, "sleep")
	t.must("docker", "rm", "--force", "locked")
	t.expectEmpty()
}

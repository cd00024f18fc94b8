package main

import (
	"path/filepath"
	"slices"
	"strconv"
)

// podman's own runtime is crun, which makes the root read-only before the hooks run.
func testPodmanRun(t *test) {
	t.contains("podman info", t.must("podman", "info", "--format", "{{.Host.OCIRuntime.Name}} {{.Host.CgroupsVersion}}"), "crun v2")
	said, seen := t.watch("", func() string {
		return t.must(slices.Concat([]string{"podman", "run", "--rm", "--network", "none", "--read-only", "--annotation", annotation, image}, program)...)
	})
	t.contains("podman run", said, programSays)
	t.fit("podman run", seen, programMiB<<20)
	t.contains("its cgroup", seen.cgroup, "/machine.slice/libpod-"+seen.container.ID)
	t.expectEmpty()

	t.must("podman", "run", "--rm", "--network", "none", image, "sh", "-c", "! test -e /dev/farpage && ! test -e /etc/ld.so.preload")
	// With users of its own, too.
	out := t.must("podman", "run", "--rm", "--network", "none", "--uidmap", "0:100000:65536", "--gidmap", "0:100000:65536",
		"--annotation", annotation, image, "sh", "-c", "threads8 16 && cat /proc/self/uid_map")
	t.contains("podman run --uidmap", out, "4096 pages right", "100000")
	t.expectEmpty()
}

func testPodmanExec(t *test) {
	id := t.must("podman", "run", "--detach", "--name", "locked", "--network", "none", "--read-only", "--cap-drop", "ALL", "--user", "1000",
		"--security-opt", "no-new-privileges", "--annotation", annotation, image, "sleep", "100000")
	said, seen := t.watch(id, func() string { return t.must(append([]string{"podman", "exec", "locked"}, program...)...) })
	t.contains("podman exec", said, programSays)
	t.fit("podman exec", seen, programMiB<<20)
	t.managed(t.stat(id).ProcessList, "sleep")
	t.must("podman", "rm", "--force", "--time", "0", "locked")
	t.expectEmpty()
}

func testCtr(t *test) {
	said, seen := t.watch("", func() string {
		// Without an image there is no PATH.
		return t.must("ctr", "run", "--rm", "--runc-binary", "/usr/bin/farpage-runtime", "--annotation", annotation,
			"--rootfs", filepath.Join(dir, "rootfs"), "by-ctr", "/usr/bin/threads8", strconv.Itoa(programMiB))
	})
	t.contains("ctr run", said, programSays)
	t.fit("ctr run", seen, programMiB<<20)
	t.expectEmpty()
}

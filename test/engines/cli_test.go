package engines

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// cli is an engine with a command line like Docker's, set up by `farpage install`.
type cli struct {
	h       *host
	try     func(args ...string) (string, error)
	imports func(name, dir string)
	run     []string // what begins a run that farpage looks at
	runMusl []string // the same, of an image with musl
	without []string // names of takenAway that it does not have
}

// must calls the engine.
func (c *cli) must(args ...string) string {
	c.h.t.Helper()
	out, err := c.try(args...)
	if err != nil {
		c.h.t.Fatalf("%q: %v\n%s", args, err, out)
	}
	return strings.TrimSpace(out)
}

// runs runs a container to its end.
func (c *cli) runs(args ...string) (string, error) {
	return c.try(slices.Concat(c.run, []string{"--rm"}, args)...)
}

// images are the names of those that importImages makes, with the program in each.
var images = map[string]string{"glibc": "threads8", "musl": "musl-threads8"}

// importImages makes the images that takenAway speaks of.
func (c *cli) importImages(t *testing.T) {
	t.Helper()
	c.imports("glibc", imageOf(t, "threads8", "static-threads8"))
	c.imports("musl", imageOf(t, "musl-threads8"))
	own := imageOf(t, "threads8")
	ownLibrary(t, own)
	c.imports("own", own)
	linked := imageOf(t, "threads8")
	if err := os.Rename(filepath.Join(linked, "etc"), filepath.Join(linked, "usr/etc")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("usr/etc", filepath.Join(linked, "etc")); err != nil {
		t.Fatal(err)
	}
	c.imports("linked", linked)
}

// ownLibrary gives an image a preload file and a library of its own.
func ownLibrary(t *testing.T, image string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "gcc", "-shared", "-fPIC", "-x", "c", "-o", filepath.Join(image, "own.so"), "-")
	cmd.Stdin = strings.NewReader("#include <unistd.h>\n__attribute__((constructor)) static void own(void) { if (write(2, \"own\\n\", 4)) {} }\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("gcc: %v\n%s", err, out)
	}
	if err := os.WriteFile(filepath.Join(image, "etc/ld.so.preload"), []byte("/own.so\n"), 0o644); err != nil {
		t.Fatal(err)
	}
}

// takenAway are ways to run a container with less, or with something in farpage's way.
var takenAway = []struct {
	name, image string
	flags       []string
}{
	{"as it is", "glibc", nil},
	{"musl", "musl", nil},
	{"locked down", "glibc", []string{"--read-only", "--user", "1000", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"}},
	{"musl, locked down", "musl", []string{"--read-only", "--user", "1000", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"}},
	{"the host's processes", "glibc", []string{"--pid", "host"}},
	{"a preload of the image's", "own", nil},
	{"a preload of its environment's", "own", []string{"--env", "LD_PRELOAD=/own.so"}},
	{"/etc is a link", "linked", nil},
	{"/etc is a link, read-only", "linked", []string{"--read-only"}},
	{"an init that is static", "glibc", []string{"--init"}},
	{"a share of a memory limit", "glibc", []string{"--memory", "160m", "--annotation", "io.farpage.local=20%"}},
	{"users of its own", "glibc", []string{"--uidmap", "0:100000:65536", "--gidmap", "0:100000:65536"}},
}

func (c *cli) testPrograms(t *testing.T) {
	for _, test := range takenAway {
		if slices.Contains(c.without, test.name) {
			continue
		}
		program, run := images[test.image], c.run
		switch test.image {
		case "musl":
			run = c.runMusl
		case "own", "linked":
			program = images["glibc"]
		}
		out, err := c.try(slices.Concat(run, []string{"--rm", "--annotation", annotated}, test.flags,
			[]string{test.image, "sh", "-c", program + " 64 && cat /etc/ld.so.preload"})...)
		if err != nil {
			t.Errorf("%s: %v\n%s", test.name, err, out)
			continue
		}
		contains(t, test.name, out, "16384 pages right", "/dev/farpage/libfarpage.so\n")
		if test.image == "own" {
			contains(t, test.name, out, "own\n", "/own.so\n/dev/farpage/libfarpage.so\n")
		}
	}
	out, err := c.runs("--annotation", "io.farpage.local=much", "glibc", "threads8", "16")
	if err == nil {
		t.Error("a bad value starts")
	}
	contains(t, "a bad value", out, `annotation io.farpage.local="much": not a size`)
	c.h.expectEmpty(t)
}

// id is a container's by its name.
func (c *cli) id(name string) string {
	c.h.t.Helper()
	return c.must("inspect", "--format", "{{.Id}}", name)
}

func (c *cli) testLife(t *testing.T) {
	for image, program := range images {
		run := c.run
		if image == "musl" {
			run = c.runMusl
		}
		c.must(slices.Concat(run, []string{"--detach", "--name", "life", "--annotation", annotated, image, "sh", "-c", "echo begun; exec sleep 600"})...)
		contains(t, image+": exec", c.must("exec", "life", "/bin/"+program, "64"), "16384 pages right")
		if s := c.h.alone(t, c.id("life")); s.EvictedPages == 0 {
			t.Errorf("%s: after exec: %+v", image, s)
		}
		if diff := c.must("diff", "life"); diff != "" && diff != "C /etc\nA /etc/ld.so.preload" {
			t.Errorf("%s: diff: %q", image, diff)
		}
		c.must("commit", "life", "committed")
		if out := c.must("run", "--rm", "--network", "none", "committed", "sh", "-c", "cat /etc/ld.so.preload; ls /dev; env"); strings.Contains(out, "farpage") {
			t.Errorf("%s: the committed image has %s", image, out)
		}
		c.must("pause", "life")
		c.must("unpause", "life")
		c.must("rename", "life", "renamed")
		c.must("update", "--memory", "256m", "--memory-swap", "256m", "renamed")
		c.must("restart", "--time", "0", "renamed")
		contains(t, image+": after a restart", c.must("exec", "renamed", "/bin/"+program, "64"), "16384 pages right")
		c.must("stop", "--time", "0", "renamed")
		c.must("start", "renamed")
		contains(t, image+": after stop and start", c.must("exec", "renamed", "/bin/"+program, "64"), "16384 pages right")
		if s := c.h.alone(t, c.id("renamed")); s.EvictedPages == 0 {
			t.Errorf("%s: after stop and start: %+v", image, s)
		}
		c.must("kill", "renamed")
		contains(t, image+": logs", c.must("logs", "renamed"), "begun\nbegun\nbegun")
		c.must("rm", "--force", "renamed")
		c.must("rmi", "committed")
	}
	c.h.expectEmpty(t)
}

func (c *cli) testMany(t *testing.T) {
	const many = 20
	ended := make(chan error, many)
	for range many {
		go func() {
			out, err := c.runs("--annotation", "io.farpage.local=8Mi", "glibc", "threads8", "12")
			if err == nil && !strings.Contains(out, "3072 pages right") {
				err = fmt.Errorf("it says %q", out)
			}
			if err != nil {
				err = fmt.Errorf("%w\n%s", err, out)
			}
			ended <- err
		}()
	}
	for range many {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	c.h.expectEmpty(t)
}

// part is one of several tests that share an engine.
type part struct {
	name string
	run  func(*testing.T)
}

// inOrder does them one after the other, each as the test that the host's failures are of.
func (h *host) inOrder(t *testing.T, parts []part) {
	for _, p := range parts {
		t.Run(p.name, func(t *testing.T) {
			h.t = t
			p.run(t)
		})
	}
	h.t = t
}

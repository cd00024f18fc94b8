package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/farpage/farpage/test/container"
)

// versions of the package: the first is installed, the second replaces it.
var versions = []string{"1.0.0", "1.1.0"}

// makeDisk makes the file system that the run brings along: the packages, the program
// that does the steps, and an image for containers, packed and unpacked.
func makeDisk(ctx context.Context, dir, disk string) error {
	content := filepath.Join(dir, "content")
	if err := os.Mkdir(content, 0o755); err != nil {
		return err
	}
	for _, version := range versions {
		say("make the package of version " + version)
		if err := command(ctx, "make", "-s", "packages", "VERSION="+version); err != nil {
			return err
		}
		made, err := filepath.Glob("dist/farpage_*.deb")
		if err != nil || len(made) != 1 {
			return fmt.Errorf("`make packages` made %q (%w)", made, err)
		}
		if err := command(ctx, "cp", made[0], filepath.Join(content, version+".deb")); err != nil {
			return err
		}
	}
	// As the pages' commands find them.
	for _, folder := range []string{"dist", "docs"} {
		if err := os.Mkdir(filepath.Join(content, folder), 0o755); err != nil {
			return err
		}
	}
	if err := command(ctx, "cp", filepath.Join(content, versions[0]+".deb"), filepath.Join(content, "dist", "farpage_"+versions[0]+"_amd64.deb")); err != nil {
		return err
	}
	if err := command(ctx, "cp", "--target-directory", filepath.Join(content, "docs"), "docs/engines.md", "docs/kubernetes.md"); err != nil {
		return err
	}
	say("make the programs that the VM gets")
	cmd := []string{"env", "CGO_ENABLED=0", "go", "build", "-o", filepath.Join(content, "guest"), "./test/vm/guest"}
	if err := command(ctx, cmd...); err != nil {
		return err
	}
	guests := filepath.Join(dir, "guests")
	if err := command(ctx, "make", "-s", "-C", "test/guest", "BUILD="+guests, filepath.Join(guests, "threads8")); err != nil {
		return err
	}
	root := filepath.Join(content, "rootfs")
	err := container.WriteRootfs(root, container.Config{
		Programs: []string{"/bin/sh", "/bin/cat", "/bin/sleep", "/bin/ls", "/usr/bin/env", "redis-server"},
		Files:    map[string]string{"/usr/bin/threads8": filepath.Join(guests, "threads8")},
	})
	if err != nil {
		return err
	}
	if err := command(ctx, "tar", "-C", root, "-cf", filepath.Join(content, "rootfs.tar"), "."); err != nil {
		return err
	}
	return command(ctx, "mke2fs", "-q", "-t", "ext4", "-d", content, disk, "1G")
}

package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// debianPackages are what the VM has beside Debian's smallest base: what a host with these
// engines has, AppArmor included.
const debianPackages = "systemd,systemd-sysv,udev,dbus,procps,linux-image-cloud-amd64,apparmor,ca-certificates,iptables," +
	"docker.io,docker-cli,containerd,runc,crun,podman,tini"

// insideUnit starts the test's part inside, which is on the second disk. Without one the
// VM only boots: so it is done once when the image is made, for what a system does at its
// first boot.
const insideUnit = `[Unit]
Description=The part inside of a test

[Service]
Type=exec
ExecStart=/bin/sh -c 'if [ -b /dev/vdb ]; then mkdir /run/vm && mount /dev/vdb /run/vm && exec /run/vm/guest; fi; systemctl is-system-running --wait; systemctl poweroff'
StandardOutput=file:/dev/ttyS1
StandardError=journal+console
# Of its children none is to be ended with it: containers, engines' helpers.
KillMode=process

[Install]
WantedBy=multi-user.target
`

// bootArguments: without mitigations, which guard an emulated CPU of nothing; a kernel that
// panics boots again, and the side inside says so.
const bootArguments = "root=/dev/vda rw console=ttyS0 mitigations=off panic=1"

// imageSize is the size of the VM's disk, which is sparse.
const imageSize = "6G"

// image is a Debian 13 that can be booted.
type image struct{ disk, kernel, initrd string }

// debianImage returns the image, and makes it where there is none yet.
func debianImage(ctx context.Context, cache string) (image, error) {
	sum := sha256.Sum256([]byte(debianPackages + insideUnit + imageSize))
	dir := filepath.Join(cache, fmt.Sprintf("debian13-vm-%x", sum[:6]))
	if _, err := os.Stat(dir); err == nil {
		return imageIn(dir), nil
	}
	// Under another name until it is whole.
	unfinished := filepath.Join(cache, fmt.Sprintf(".vm-%d", os.Getpid()))
	if err := os.MkdirAll(unfinished, 0o755); err != nil {
		return image{}, err
	}
	err := makeImage(ctx, unfinished)
	if err == nil {
		err = os.Rename(unfinished, dir)
	}
	return imageIn(dir), errors.Join(err, os.RemoveAll(unfinished))
}

func imageIn(dir string) image {
	return image{disk: filepath.Join(dir, "disk.img"), kernel: filepath.Join(dir, "vmlinuz"), initrd: filepath.Join(dir, "initrd.img")}
}

func makeImage(ctx context.Context, dir string) error {
	root := filepath.Join(dir, "root")
	say("unpack a Debian 13 (once)")
	if err := command(ctx, "mmdebstrap", "--quiet", "--variant=minbase", "--include="+debianPackages, "trixie", root); err != nil {
		return err
	}
	const wants = "etc/systemd/system/multi-user.target.wants/vm-inside.service"
	for name, text := range map[string]string{
		"etc/systemd/system/vm-inside.service": insideUnit, "etc/hostname": "vm\n", "etc/hosts": "127.0.0.1 localhost vm\n",
	} {
		if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	if err := os.Symlink("../vm-inside.service", filepath.Join(root, wants)); err != nil {
		return err
	}
	i := imageIn(dir)
	for from, to := range map[string]string{"vmlinuz-*": i.kernel, "initrd.img-*": i.initrd} {
		found, err := filepath.Glob(filepath.Join(root, "boot", from))
		if err != nil || len(found) != 1 {
			return fmt.Errorf("want one /boot/%s, there are %q (%w)", from, found, err)
		}
		if err := command(ctx, "cp", found[0], to); err != nil {
			return err
		}
	}
	if err := command(ctx, "mke2fs", "-q", "-t", "ext4", "-d", root, i.disk, imageSize); err != nil {
		return err
	}
	if err := os.RemoveAll(root); err != nil {
		return err
	}
	say("boot it for the first time")
	ctx, cancel := context.WithTimeoutCause(ctx, 15*time.Minute, errors.New("the first boot does not end"))
	defer cancel()
	console := filepath.Join(dir, "console")
	err := i.run(ctx, vm{console: console, line: func([]byte) {}})
	if err != nil {
		return fmt.Errorf("%w\n%s", err, tail(console))
	}
	return os.Remove(console)
}

// command runs a command; its error has what the command said.
func command(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env = append(os.Environ(), "TMPDIR=/var/tmp", "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	out, err := cmd.CombinedOutput()
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(args[:min(len(args), 3)], " "), err, out)
	}
	return nil
}

package container

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// mount is what this package needs of a line of /proc/self/mountinfo (proc(5)).
type mount struct {
	point   string
	fstype  string
	options string // of the superblock
}

func parseMount(line string) (mount, bool) {
	before, after, found := strings.Cut(line, " - ")
	front, back := strings.Fields(before), strings.Fields(after)
	if !found || len(front) < 5 || len(back) < 3 {
		return mount{}, false
	}
	// Blanks in a mount point are written in octal; ours have none.
	return mount{point: front[4], fstype: back[0], options: back[2]}, true
}

// MountsUnder lists the mount points at or below dir in this process's mount
// namespace, the innermost first.
func MountsUnder(dir string) ([]string, error) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("look for mounts under %s: %w", dir, err)
	}
	var points []string
	for line := range strings.Lines(string(text)) {
		m, ok := parseMount(line)
		if ok && (m.point == dir || strings.HasPrefix(m.point, dir+"/")) {
			points = append(points, m.point)
		}
	}
	slices.Reverse(points)
	return points, nil
}

// RemoveTree unmounts what is mounted under dir, then removes dir. While a mount
// is left it removes nothing, or it would reach into what is mounted there.
func RemoveTree(dir string) error {
	points, err := MountsUnder(dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, point := range points {
		if err := unix.Unmount(point, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			errs = append(errs, fmt.Errorf("unmount %s: %w", point, os.NewSyscallError("umount2", err)))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove folder: %w", err)
	}
	return nil
}

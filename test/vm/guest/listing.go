package main

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// listingFile has the listing from before the installation.
var listingFile = filepath.Join(dir, "listing.json")

// leftOut are folders and files that are not listed, with the reason.
var leftOut = map[string]string{
	"/proc":                           "the kernel's",
	"/sys":                            "the kernel's",
	"/dev":                            "the kernel's and udev's, made anew at each boot",
	"/run":                            "made anew at each boot; what is in it of farpage is looked for by name",
	"/tmp":                            "made anew at each boot; looked at by name",
	"/var/tmp":                        "services get folders there at each boot; looked at by name",
	"/var/log":                        "grows by everything that is done",
	"/var/cache":                      "apt's, ldconfig's and AppArmor's, made anew when it is missing",
	"/var/lib/docker":                 "the engine's state, which the test's own containers and images change",
	"/var/lib/containerd":             "the engine's state",
	"/var/lib/containers":             "the engine's state",
	"/var/lib/systemd":                "time stamps and a random seed, written at each boot",
	"/var/lib/apt":                    "apt's notes on what it has done",
	"/var/lib/dpkg/status":            "written anew at each installation; that farpage is not in it is asked",
	"/var/lib/dpkg/status-old":        "the one before",
	"/var/lib/dpkg/lock":              "made by the first installation",
	"/var/lib/dpkg/triggers/Lock":     "made by the first installation",
	"/var/lib/dpkg/triggers/Unincorp": "made by the first installation",
}

// listing is what is in a file system: what each path is, by its name.
type listing map[string]string

// list lists a folder without what is left out. Of a folder the size and of all files the
// times are of no interest.
func list(root string, leftOut map[string]string) (listing, error) {
	files := listing{}
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if _, out := leftOut[path]; out {
			if entry.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		what, err := describe(path, entry)
		files[path] = what
		return err
	})
	return files, err
}

func describe(path string, entry fs.DirEntry) (string, error) {
	info, err := entry.Info()
	if err != nil {
		return "", err
	}
	s, _ := info.Sys().(*syscall.Stat_t)
	what := fmt.Sprintf("%v %d:%d", info.Mode(), s.Uid, s.Gid)
	switch mode := info.Mode(); {
	case mode.IsRegular():
		f, err := os.Open(path)
		if err != nil {
			return "", err
		}
		defer f.Close()
		sum := sha256.New()
		if _, err := io.Copy(sum, f); err != nil {
			return "", err
		}
		what += fmt.Sprintf(" %d bytes %x", info.Size(), sum.Sum(nil))
	case mode&fs.ModeSymlink != 0:
		target, err := os.Readlink(path)
		if err != nil {
			return "", err
		}
		what += " to " + target
	case mode&fs.ModeDevice != 0:
		what += fmt.Sprintf(" device %#x", s.Rdev)
	}
	return what, nil
}

// differences tells what is another than before.
func (l listing) differences(before listing) (found []string) {
	for path, what := range l {
		if was, there := before[path]; !there {
			found = append(found, fmt.Sprintf("%s is new: %s", path, what))
		} else if was != what {
			found = append(found, fmt.Sprintf("%s is %s, was %s", path, what, was))
		}
	}
	for path := range before {
		if _, there := l[path]; !there {
			found = append(found, path+" is gone")
		}
	}
	slices.Sort(found)
	return found
}

func testListing(t *test) {
	files, err := list("/", leftOut)
	if err != nil {
		t.fatalf("%v", err)
	}
	for path := range files {
		if strings.Contains(path, "farpage") {
			t.errorf("there is %s already", path)
		}
	}
	text, err := json.Marshal(files)
	if err := errors.Join(err, os.WriteFile(listingFile, text, 0o600)); err != nil {
		t.fatalf("%v", err)
	}
	t.notef("%d files and folders", len(files))
}

func testNothingLeft(t *test) {
	var before listing
	text, err := os.ReadFile(listingFile)
	if err := errors.Join(err, json.Unmarshal(text, &before)); err != nil {
		t.fatalf("%v", err)
	}
	after, err := list("/", leftOut)
	if err != nil {
		t.fatalf("%v", err)
	}
	if found := after.differences(before); len(found) > 0 {
		t.errorf("the file system is another one:\n%s", strings.Join(found, "\n"))
	}
	t.notef("%d files and folders, as before", len(after))
	for _, left := range leftOver() {
		t.errorf("left: %s", left)
	}
	for _, kind := range []string{"list-units", "list-unit-files", "list-timers"} {
		// Its status says whether there are any.
		if out, _ := t.try("systemctl", kind, "--all", "--no-legend", "--no-pager", "farpage*"); out != "" {
			t.errorf("systemctl %s: %s", kind, out)
		}
	}
}

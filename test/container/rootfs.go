package container

import (
	"bufio"
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// UID and GID are the user that containers run as; the rootfs names it "app".
const (
	UID = 1000
	GID = 1000
)

// rootfs is a root file system under dir, made of copies of host files.
type rootfs struct {
	dir string
}

// newRootfs lays out an empty root file system in dir, which must not exist yet.
// It is readable by everybody, whatever the umask says.
func newRootfs(dir string) (*rootfs, error) {
	r := &rootfs{dir: dir}
	for _, d := range []string{
		"", "usr", "usr/bin", "usr/sbin", "usr/lib", "usr/lib64", "etc",
		"dev", "proc", "sys", "run", "var", "home", "root",
	} {
		if err := r.mkdir(d, 0o755); err != nil {
			return nil, err
		}
	}
	if err := r.mkdir("tmp", 0o777|os.ModeSticky); err != nil {
		return nil, err
	}
	// Debian's merged /usr: a library that the loader lists as /lib/... is found
	// whichever of its two names is asked for.
	for _, d := range []string{"bin", "sbin", "lib", "lib64"} {
		if err := os.Symlink("usr/"+d, filepath.Join(dir, d)); err != nil {
			return nil, fmt.Errorf("lay out rootfs: %w", err)
		}
	}
	for name, text := range map[string]string{
		"etc/passwd":        fmt.Sprintf("root:x:0:0:root:/root:/bin/sh\napp:x:%d:%d:app:/home:/bin/sh\n", UID, GID),
		"etc/group":         fmt.Sprintf("root:x:0:\napp:x:%d:\n", GID),
		"etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
		"etc/hosts":         "127.0.0.1 localhost\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return nil, fmt.Errorf("lay out rootfs: %w", err)
		}
	}
	return r, nil
}

// mkdir makes a folder with exactly this mode, and its parents, searchable by
// everybody, where they are missing.
func (r *rootfs) mkdir(name string, mode os.FileMode) error {
	path := filepath.Join(r.dir, name)
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	if path != r.dir {
		if err := r.mkdir(filepath.Dir(name), 0o755); err != nil {
			return err
		}
	}
	if err := os.Mkdir(path, mode); err != nil {
		return fmt.Errorf("lay out rootfs: %w", err)
	}
	if err := os.Chmod(path, mode); err != nil {
		return fmt.Errorf("lay out rootfs: %w", err)
	}
	return nil
}

// put copies a host file to path inside and, when it is an ELF file, the
// libraries it needs to where its loader found them.
func (r *rootfs) put(host, path string) error {
	if err := r.copyFile(host, path); err != nil {
		return err
	}
	return r.putLibraries(host)
}

func (r *rootfs) putLibraries(host string) error {
	libs, err := libraries(host)
	if err != nil {
		return err
	}
	for _, lib := range libs {
		if _, err := os.Lstat(filepath.Join(r.dir, lib)); err == nil {
			continue
		}
		if err := r.copyFile(lib, lib); err != nil {
			return err
		}
	}
	return nil
}

// putTree copies a host folder to the same path inside, with what its shared
// objects need. Links are kept as they are, folders with a name in skip left out.
func (r *rootfs) putTree(host string, skip ...string) error {
	err := filepath.WalkDir(host, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && slices.Contains(skip, d.Name()):
			return filepath.SkipDir
		case d.IsDir():
			return r.mkdir(path, 0o755)
		case d.Type()&fs.ModeSymlink != 0:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			return os.Symlink(target, filepath.Join(r.dir, path))
		case !d.Type().IsRegular():
			return nil
		case strings.HasSuffix(path, ".so"):
			return r.put(path, path)
		}
		return r.copyFile(path, path)
	})
	if err != nil {
		return fmt.Errorf("copy %s into rootfs: %w", host, err)
	}
	return nil
}

// copyFile copies what host points to, readable and executable by everybody who
// may do so on the host's own terms.
func (r *rootfs) copyFile(host, path string) error {
	in, err := os.Open(host)
	if err != nil {
		return fmt.Errorf("copy into rootfs: %w", err)
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return fmt.Errorf("copy into rootfs: %w", err)
	}
	to := filepath.Join(r.dir, path)
	if err := r.mkdir(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("copy %s into rootfs: %w", host, err)
	}
	_, err = io.Copy(out, in)
	err = errors.Join(err, out.Chmod(info.Mode().Perm()|0o444), out.Close())
	if err != nil {
		return fmt.Errorf("copy %s into rootfs: %w", host, err)
	}
	return nil
}

// libraries lists what the loader would map for an ELF file, the loader included;
// nothing for a static program or a script.
func libraries(path string) ([]string, error) {
	loader, err := interpreter(path)
	if err != nil || loader == "" {
		return nil, err
	}
	// glibc's and musl's loaders both know --list; ldd is a script around it that
	// knows only its own libc.
	cmd := exec.Command(loader, "--list", path)
	cmd.Env = []string{"LC_ALL=C"}
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("list the libraries of %s with %s: %w", path, loader, err)
	}
	libs, err := parseList(out)
	if err != nil {
		return nil, fmt.Errorf("list the libraries of %s: %w", path, err)
	}
	return append(libs, loader), nil
}

// parseList reads lines of the forms
//
//	libm.so.6 => /lib/x86_64-linux-gnu/libm.so.6 (0x00007f...)
//	/lib64/ld-linux-x86-64.so.2 (0x00007f...)
//	linux-vdso.so.1 (0x00007f...)
func parseList(out []byte) ([]string, error) {
	var libs []string
	for sc := bufio.NewScanner(bytes.NewReader(out)); sc.Scan(); {
		line := strings.TrimSpace(sc.Text())
		name, target, found := strings.Cut(line, " => ")
		if !found {
			target = name
		}
		if target == "not found" {
			return nil, fmt.Errorf("%s is not installed", name)
		}
		if strings.HasPrefix(target, "/") {
			lib, _, _ := strings.Cut(target, " (")
			libs = append(libs, lib)
		}
	}
	return libs, nil
}

// interpreter is the loader that an ELF file asks for. A shared object names none
// and gets that of /bin/sh; "" is for what has no loader.
func interpreter(path string) (string, error) {
	f, err := elf.Open(path)
	var notELF *elf.FormatError
	if errors.As(err, &notELF) || errors.Is(err, io.EOF) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("look for the loader of %s: %w", path, err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type != elf.PT_INTERP {
			continue
		}
		name, err := io.ReadAll(p.Open())
		if err != nil {
			return "", fmt.Errorf("look for the loader of %s: %w", path, err)
		}
		return string(bytes.TrimRight(name, "\x00")), nil
	}
	if needed, err := f.ImportedLibraries(); err != nil || len(needed) == 0 {
		return "", nil
	}
	return interpreter("/bin/sh")
}

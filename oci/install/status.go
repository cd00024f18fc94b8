package install

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// Status is what there is of an engine on a host, and of farpage in it.
type Status struct {
	Name   string
	OK     bool   // nothing is to be done: farpage is in it, or there is no such engine
	Detail string // what there is, with its version
	Fix    string // what to type
}

// StatusOf looks at every engine that farpage can be installed in.
func StatusOf(h Host) []Status {
	return []Status{dockerStatus(h), containerdStatus(h), podmanStatus(h), crioStatus(h), systemdStatus(h)}
}

// programFolders are where engines have their programs.
var programFolders = []string{"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"}

// versionMax is how long a program may take to say its version.
const versionMax = 10 * time.Second

var versionText = regexp.MustCompile(`\d+\.\d+[0-9A-Za-z.+~-]*`)

// version returns a program's version, "" when it is not there and "?" when it does not
// say.
func (h Host) version(program string) string {
	for _, folder := range programFolders {
		path := h.path(filepath.Join(folder, program))
		if info, err := os.Stat(path); err != nil || info.IsDir() {
			continue
		}
		ctx, cancel := context.WithTimeout(context.Background(), versionMax)
		defer cancel()
		out, err := exec.CommandContext(ctx, path, "--version").Output()
		if found := versionText.FindString(string(out)); err == nil && found != "" {
			return found
		}
		return "?"
	}
	return ""
}

// major is the first number of a version; 0: it is not known.
func major(version string) int {
	number, _, _ := strings.Cut(version, ".")
	n, err := strconv.Atoi(number)
	if err != nil {
		return 0
	}
	return n
}

// status makes the status of an engine from the plan that would install farpage in it.
func status(name, version, command string, plan Plan, err error) Status {
	s := Status{Name: name, Detail: name + " " + version}
	switch {
	case version == "":
		s.OK, s.Detail = true, "not installed"
	case err != nil:
		s.Detail += ", farpage cannot be installed: " + err.Error()
		s.Fix = "mend that, then sudo farpage install " + command
	case len(plan.Changes) > 0 || plan.Pending:
		s.Detail += ", farpage is not installed"
		s.Fix = "sudo farpage install " + command
	default:
		s.OK = true
		s.Detail += ", farpage is installed"
	}
	return s
}

func dockerStatus(h Host) Status {
	version := h.version("dockerd")
	plan, err := Docker(h, DockerOptions{})
	s := status("Docker", version, "docker", plan, err)
	if n := major(version); n > 0 && n < 25 {
		return Status{Name: s.Name, Detail: "Docker " + version + ": `docker run --annotation` is there since 25", Fix: "install Docker 25 or newer (Debian 13 has 26)"}
	}
	if other := sandboxed(h); version != "" && other != "" {
		s.Detail += "; the default runtime is " + other + ", whose containers have a kernel of their own: farpage is not for them"
	}
	return s
}

// sandboxed names dockerd's default runtime where it is one of gVisor's or Kata's.
func sandboxed(h Host) string {
	text, err := h.read(daemonJSON)
	if err != nil {
		return ""
	}
	var config struct {
		Default string `json:"default-runtime"`
	}
	if json.Unmarshal(text, &config) != nil {
		return ""
	}
	if strings.HasPrefix(config.Default, "runsc") || strings.HasPrefix(config.Default, "kata") {
		return config.Default
	}
	return ""
}

func containerdStatus(h Host) Status {
	version := h.version("containerd")
	plan, err := Containerd(h, ContainerdOptions{})
	s := status("containerd", version, "containerd", plan, err)
	for _, note := range plan.Notes {
		s.Detail += "; " + note
	}
	return s
}

func podmanStatus(h Host) Status {
	plan, err := Podman(h)
	return status("podman", h.version("podman"), "podman", plan, err)
}

func crioStatus(h Host) Status {
	plan, err := CRIO(h)
	return status("CRI-O", h.version("crio"), "crio", plan, err)
}

func systemdStatus(h Host) Status {
	version := ""
	if _, err := os.Stat(h.path("/run/systemd/system")); err == nil {
		version = h.version("systemctl")
	}
	plan, err := Systemd(h)
	s := status("systemd", version, "systemd", plan, err)
	if version == "" {
		s.Detail = "not running"
	}
	return s
}

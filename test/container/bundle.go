package container

import (
	"encoding/json"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// writeBundle writes config.json for what cfg asks into the bundle folder; the
// root file system lies in it as "rootfs".
func writeBundle(dir, cgroupPath string, cfg Config) error {
	text, err := json.MarshalIndent(spec(cgroupPath, cfg), "", " ")
	if err != nil {
		return fmt.Errorf("write config.json: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), text, 0o644); err != nil {
		return fmt.Errorf("write config.json: %w", err)
	}
	return nil
}

func spec(cgroupPath string, cfg Config) *specs.Spec {
	s := &specs.Spec{
		Version: "1.0.2", // what Debian 12's crun still reads
		Process: &specs.Process{
			User:            specs.User{UID: UID, GID: GID},
			Args:            cfg.Args,
			Env:             append([]string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/home"}, cfg.Env...),
			Cwd:             path.Join("/", cfg.Cwd),
			Capabilities:    &specs.LinuxCapabilities{},
			NoNewPrivileges: true,
		},
		Root:        &specs.Root{Path: "rootfs", Readonly: cfg.ReadOnly},
		Hostname:    "farpage-test",
		Mounts:      mounts(cfg.Binds),
		Annotations: cfg.Annotations,
		Linux: &specs.Linux{
			CgroupsPath: cgroupPath,
			Resources: &specs.LinuxResources{
				// The runtime adds /dev/null and its kind.
				Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}},
			},
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace},
				{Type: specs.MountNamespace},
				{Type: specs.NetworkNamespace},
				{Type: specs.IPCNamespace},
				{Type: specs.UTSNamespace},
			},
			MaskedPaths:   []string{"/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"},
			ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
			Seccomp:       seccomp(),
		},
	}
	if cfg.MemoryLimitBytes > 0 {
		s.Linux.Resources.Memory = &specs.LinuxMemory{Limit: &cfg.MemoryLimitBytes}
	}
	if len(cfg.Prestart) > 0 {
		//nolint:staticcheck // deprecated, and what farpage is documented to be hooked into
		s.Hooks = &specs.Hooks{Prestart: []specs.Hook{{Path: cfg.Prestart[0], Args: hookArgs(cfg.Prestart)}}}
	}
	return s
}

// hookArgs makes args[0] the program's name, as a shell would.
func hookArgs(command []string) []string {
	args := slices.Clone(command)
	args[0] = filepath.Base(args[0])
	return args
}

func mounts(binds []Bind) []specs.Mount {
	list := []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc"},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"}},
		{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
	}
	for _, b := range binds {
		options := []string{"rbind", "rprivate", "nosuid", "nodev"}
		if b.ReadOnly {
			options = append(options, "ro")
		}
		list = append(list, specs.Mount{Destination: b.Inside, Type: "bind", Source: b.Host, Options: options})
	}
	return list
}

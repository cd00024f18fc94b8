package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/farpage/farpage/api"
	"github.com/farpage/farpage/oci/install"
	"github.com/spf13/cobra"
)

// engine is what farpage installs itself in.
type engine struct {
	name, what  string
	add, remove func(install.Host, *installFlags) (install.Plan, error)
}

// plain has a plan without options.
func plain(plan func(install.Host) (install.Plan, error)) func(install.Host, *installFlags) (install.Plan, error) {
	return func(h install.Host, _ *installFlags) (install.Plan, error) { return plan(h) }
}

var engines = []engine{
	{"docker", "Docker: the runtime `farpage` in /etc/docker/daemon.json", func(h install.Host, f *installFlags) (install.Plan, error) {
		return install.Docker(h, install.DockerOptions{Default: f.byDefault})
	}, plain(install.RemoveDocker)},
	{"containerd", "containerd: the runtime `farpage` in /etc/containerd/config.toml", func(h install.Host, f *installFlags) (install.Plan, error) {
		return install.Containerd(h, install.ContainerdOptions{NRI: f.nri})
	}, plain(install.RemoveContainerd)},
	{"podman", "podman and Buildah: hooks in /usr/share/containers/oci/hooks.d", plain(install.Podman), plain(install.RemovePodman)},
	{"crio", "CRI-O: a hook in /usr/share/containers/oci/hooks.d", plain(install.CRIO), plain(install.RemoveCRIO)},
	{"cdi", "devices farpage.io/local=SIZE for engines with CDI, in /etc/cdi", plain(install.CDI), plain(install.RemoveCDI)},
	{"systemd", "the agent as a service, with socket activation", plain(install.Systemd), plain(install.RemoveSystemd)},
}

type installFlags struct {
	dryRun, restart, byDefault, nri bool
	root, socketDir                 string
}

func installCommand() *cobra.Command {
	var f installFlags
	c := &cobra.Command{
		Use:   "install " + engineNames("|"),
		Short: "Add farpage to the configuration of a container engine, or the agent to systemd",
		Long: `Add farpage to the configuration of a container engine, or the agent to systemd.

Edits as little as it can and nothing that is there already; restarts nothing unless
--restart says so. ` + "`farpage uninstall`" + ` leaves the files as they were.

` + engineList(),
		Example: `  sudo farpage install systemd --restart
  sudo farpage install docker --dry-run
  sudo farpage install docker --restart
  docker run --runtime farpage --annotation io.farpage.local=64Mi redis`,
		Args:      oneEngine,
		ValidArgs: strings.Split(engineNames(" "), " "),
		RunE: func(c *cobra.Command, args []string) error {
			e := engineCalled(args[0])
			if f.byDefault && e.name != "docker" {
				return fmt.Errorf("--default is for docker: %s takes annotated containers by itself", e.name)
			}
			if f.nri && e.name != "containerd" {
				return fmt.Errorf("--nri is for containerd: %s has it or needs none", e.name)
			}
			return f.run(c.Context(), e.add, "is installed already")
		},
	}
	f.add(c)
	c.Flags().StringVar(&f.socketDir, "socket-dir", "", "folder of the agent's sockets, where it is not "+api.DefaultSocketDir)
	c.Flags().BoolVar(&f.byDefault, "default", false, "docker: make it the runtime of containers that name none")
	c.Flags().BoolVar(&f.nri, "nri", false, "containerd: switch NRI on too, for farpage-nri and pods of any RuntimeClass")
	return c
}

func uninstallCommand() *cobra.Command {
	var f installFlags
	c := &cobra.Command{
		Use:   "uninstall " + engineNames("|"),
		Short: "Take farpage out of the configuration of a container engine, or the agent out of systemd",
		Long: `Take farpage out of the configuration of a container engine, or the agent out of
systemd: what ` + "`farpage install`" + ` has added, and nothing else.

` + engineList(),
		Example: `  sudo farpage uninstall docker --dry-run
  sudo farpage uninstall docker --restart`,
		Args:      oneEngine,
		ValidArgs: strings.Split(engineNames(" "), " "),
		RunE: func(c *cobra.Command, args []string) error {
			return f.run(c.Context(), engineCalled(args[0]).remove, "is not installed")
		},
	}
	f.add(c)
	return c
}

func (f *installFlags) add(c *cobra.Command) {
	c.Flags().BoolVar(&f.dryRun, "dry-run", false, "print what would change, as a diff, and change nothing")
	c.Flags().BoolVar(&f.restart, "restart", false, "have the engine reload or restart afterwards")
	c.Flags().StringVar(&f.root, "root", "", "act on the system in this folder")
}

// oneEngine checks that one engine is named.
func oneEngine(c *cobra.Command, args []string) error {
	if err := cobra.ExactArgs(1)(c, args); err != nil {
		return fmt.Errorf("%w: name one of %s", err, engineNames(", "))
	}
	if !slices.ContainsFunc(engines, func(e engine) bool { return e.name == args[0] }) {
		return fmt.Errorf("%q is none of %s", args[0], engineNames(", "))
	}
	return nil
}

func engineNames(between string) string {
	var names []string
	for _, e := range engines {
		names = append(names, e.name)
	}
	return strings.Join(names, between)
}

func engineList() string {
	var b strings.Builder
	for _, e := range engines {
		fmt.Fprintf(&b, "  %-11s %s\n", e.name, e.what)
	}
	return strings.TrimRight(b.String(), "\n")
}

func engineCalled(name string) engine {
	return engines[slices.IndexFunc(engines, func(e engine) bool { return e.name == name })] // the arguments were checked
}

// run plans, shows or applies, and says what is to be done then.
func (f *installFlags) run(ctx context.Context, plan func(install.Host, *installFlags) (install.Plan, error), nothing string) error {
	bin, err := programFolder()
	if err != nil {
		return err
	}
	p, err := plan(install.Host{Root: f.root, Bin: bin, SocketDir: f.socketDir}, f)
	if err != nil {
		return err
	}
	for _, note := range p.Notes {
		fmt.Printf("note: %s\n", note)
	}
	switch {
	case len(p.Changes) == 0 && !p.Pending:
		fmt.Printf("nothing to change: farpage %s\n", nothing)
		return nil
	case f.dryRun && p.Pending:
		fmt.Printf("no file is to be changed; %s\n", p.Then)
		return nil
	case f.dryRun:
		fmt.Print(p.Diff())
		return nil
	}
	if err := p.Apply(); err != nil {
		return withRoot(err)
	}
	for _, c := range p.Changes {
		done := "changed"
		switch {
		case c.Old == nil:
			done = "made"
		case c.New == nil:
			done = "removed"
		}
		fmt.Printf("%s %s\n", done, c.Path)
	}
	if p.Command == nil || !f.restart {
		if p.Then != "" {
			fmt.Printf("%s\n", p.Then)
		}
		return nil
	}
	fmt.Printf("running %s\n", strings.TrimPrefix(strings.Join(p.Command, " "), "sh -c "))
	command := exec.CommandContext(ctx, p.Command[0], p.Command[1:]...)
	command.Stdout, command.Stderr = os.Stdout, os.Stderr
	if err := command.Run(); err != nil {
		return fmt.Errorf("the configuration is changed, and %s failed: %w", strings.Join(p.Command, " "), err)
	}
	return nil
}

// programFolder is where this program and those that were installed with it are.
func programFolder() (string, error) {
	self, err := os.Executable()
	if err != nil { // no /proc, as in a chroot that an image is made in
		if self, err = exec.LookPath(os.Args[0]); err == nil {
			self, err = filepath.Abs(self)
		}
	}
	return filepath.Dir(self), err
}

// withRoot says what helps where a file may not be written.
func withRoot(err error) error {
	if os.IsPermission(err) || os.Geteuid() != 0 {
		return fmt.Errorf("%w: run this with sudo", err)
	}
	return err
}

package wrapper

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/farpage/farpage/api"
	"github.com/farpage/farpage/oci/policy"
)

const usage = `usage: farpage-runtime [--farpage-runtime PATH] [--farpage-hook PATH]
           [--farpage-socket-dir DIR] [--farpage-annotation KEY=VALUE]...
           ARGUMENTS OF THE RUNTIME...

An OCI runtime: adds farpage's hook to containers with io.farpage.* annotations, then
becomes the runtime that does the work, which gets all other arguments.

  --farpage-runtime PATH     the runtime that does the work (runc)
  --farpage-hook PATH        farpage's hook (farpage-hook beside this program)
  --farpage-socket-dir DIR   the agent's socket folder (` + api.DefaultSocketDir + `)
  --farpage-annotation KEY=VALUE
                             an annotation of containers that do not have KEY themselves, for
                             engines that hand over none; may be given again
  --farpage-version          print the version and exit
  --farpage-help             print this and exit
`

// statusFailed is the exit status of a runtime that has failed.
const statusFailed = 1

// Main is farpage-runtime. It returns, with the exit status, only if it did not become
// the runtime.
func Main(version string, args []string, stdout, stderr io.Writer) int {
	o := Options{Runtime: "runc", Hook: hookBeside(), Annotations: map[string]string{}}
	ours := map[string]*string{
		"--farpage-runtime": &o.Runtime, "--farpage-hook": &o.Hook, "--farpage-socket-dir": &o.SocketDir, "--farpage-annotation": new(string),
	}
	for len(args) > 0 && strings.HasPrefix(args[0], "--farpage-") {
		name, value, has := strings.Cut(args[0], "=")
		if name == "--farpage-version" {
			fmt.Fprintf(stdout, "farpage-runtime %s\n", version)
			return 0
		}
		if name == "--farpage-help" {
			fmt.Fprint(stdout, usage)
			return 0
		}
		option := ours[name]
		if option == nil {
			fmt.Fprintf(stderr, "farpage-runtime: unknown option %s\n%s", name, usage)
			return statusFailed
		}
		args = args[1:]
		if !has {
			if len(args) == 0 {
				fmt.Fprintf(stderr, "farpage-runtime: %s: a value is missing\n%s", name, usage)
				return statusFailed
			}
			value, args = args[0], args[1:]
		}
		*option = value
		if name == "--farpage-annotation" {
			key, value, ok := strings.Cut(value, "=")
			if !ok || !strings.HasPrefix(key, policy.Prefix) {
				fmt.Fprintf(stderr, "farpage-runtime: %s %q: want %sKEY=VALUE\n%s", name, *option, policy.Prefix, usage)
				return statusFailed
			}
			o.Annotations[key] = value
		}
	}
	if len(args) == 0 {
		fmt.Fprint(stderr, usage)
		return statusFailed
	}
	return Run(o, args, stderr)
}

// hookBeside is the hook that was installed with this program.
func hookBeside() string {
	self, err := os.Executable()
	if err != nil {
		return "/usr/bin/farpage-hook"
	}
	return filepath.Join(filepath.Dir(self), "farpage-hook")
}

package hook

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"strings"

	"github.com/farpage/farpage/api"
	"github.com/farpage/farpage/internal/syslog"
)

// usage is what --help prints.
const usage = `usage: farpage-hook [--socket-dir DIR] [--annotation KEY=VALUE] prestart|createRuntime < state.json
       farpage-hook precreate < config.json

An OCI hook: container runtimes call it while they create a container. Containers
without io.farpage.* annotations are not touched.

`

// Main is the program farpage-hook: it parses arguments, runs the hook and returns the
// exit status. 1 means that the container must not start.
//
// A command line that it does not understand gives a warning and 0: the engine's
// configuration may be newer than this program, and then every container of the host,
// farpage's or not, would fail to start.
func Main(version string, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("farpage-hook", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	o := Options{SyslogSocket: syslog.Socket}
	flags.StringVar(&o.SocketDir, "socket-dir", api.DefaultSocketDir, "the agent's socket `folder`")
	flags.Func("annotation", "`KEY=VALUE` of a container that does not say KEY itself; may be given again", func(text string) error {
		key, value, ok := strings.Cut(text, "=")
		if !ok {
			return fmt.Errorf("%q is no KEY=VALUE", text)
		}
		if o.Annotations == nil {
			o.Annotations = map[string]string{}
		}
		o.Annotations[key] = value
		return nil
	})
	showVersion := flags.Bool("version", false, "print the version and exit")

	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(stdout, usage)
		flags.SetOutput(stdout)
		flags.PrintDefaults()
		return 0
	case err != nil:
		return skip(stderr, err.Error())
	case *showVersion:
		fmt.Fprintf(stdout, "farpage-hook %s\n", version)
		return 0
	case flags.NArg() != 1:
		return skip(stderr, fmt.Sprintf("one argument is expected, prestart, createRuntime or precreate, not %d", flags.NArg()))
	}
	switch stage := flags.Arg(0); stage {
	case "prestart", "createRuntime":
		return Run(context.Background(), o, stdin, stderr)
	case "precreate":
		return Precreate(stdin, stdout, stderr)
	default:
		return skip(stderr, fmt.Sprintf("%q is not a stage that it knows: prestart, createRuntime or precreate", stage))
	}
}

// skip says why the hook does nothing.
func skip(stderr io.Writer, why string) int {
	fmt.Fprintf(stderr, "farpage-hook: %s; nothing is done (does the engine's configuration belong to another version of farpage?)\n", why)
	return 0
}

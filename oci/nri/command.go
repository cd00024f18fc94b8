package nri

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"

	"github.com/farpage/farpage/api"
	"github.com/sirupsen/logrus"
)

const usage = `usage: farpage-nri [--socket-dir DIR] [--nri-socket PATH] [--index NN]

An NRI plugin for containerd and CRI-O: containers of pods with io.farpage.* annotations
get farpage's folder and the preload of its library, whatever their RuntimeClass. It waits
for the engine, and connects again when that has restarted.

`

// Main is the program farpage-nri. It runs until ctx is done and returns the exit status.
func Main(ctx context.Context, version string, args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("farpage-nri", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	o := Options{Log: logrus.New()}
	o.Log.SetOutput(stderr)
	flags.StringVar(&o.SocketDir, "socket-dir", api.DefaultSocketDir, "the agent's socket `folder`")
	flags.StringVar(&o.Socket, "nri-socket", DefaultSocket, "the engine's NRI socket, a `path`")
	flags.StringVar(&o.Index, "index", "50", "its place among the engine's plugins, two `digits`")
	showVersion := flags.Bool("version", false, "print the version and exit")
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(stdout, usage)
		flags.SetOutput(stdout)
		flags.PrintDefaults()
		return 0
	case err == nil && flags.NArg() > 0:
		err = fmt.Errorf("unexpected argument %q", flags.Arg(0))
		fallthrough
	case err != nil:
		fmt.Fprintf(stderr, "farpage-nri: %v; farpage-nri --help says what there is\n", err)
		return 2
	case *showVersion:
		fmt.Fprintf(stdout, "farpage-nri %s\n", version)
		return 0
	}
	if err := Run(ctx, o); err != nil {
		fmt.Fprintf(stderr, "farpage-nri: %v\n", err)
		return 1
	}
	return 0
}

// Command farpage-nri is farpage's NRI plugin for containerd and CRI-O. See package nri.
package main

import (
	"context"
	"os"
	"os/signal"

	"github.com/farpage/farpage/oci/nri"
	"golang.org/x/sys/unix"
)

// version is set by the linker: -X main.version=VERSION.
var version = "development"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	status := nri.Main(ctx, version, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(status)
}

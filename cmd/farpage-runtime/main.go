// Command farpage-runtime is farpage's OCI runtime: it prepares containers that are opted
// in and becomes runc, crun or another runtime. See package wrapper.
package main

import (
	"os"

	"github.com/farpage/farpage/oci/wrapper"
)

// version is set by the linker: -X main.version=VERSION.
var version = "development"

func main() {
	os.Exit(wrapper.Main(version, os.Args[1:], os.Stdout, os.Stderr))
}

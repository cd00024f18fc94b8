// Command farpage-hook is the OCI hook of farpage, for the stages prestart and
// createRuntime. See package hook.
package main

import (
	"os"

	"github.com/farpage/farpage/hook"
)

// version is set by the linker: -X main.version=VERSION.
var version = "development"

func main() {
	os.Exit(hook.Main(version, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

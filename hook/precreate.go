package hook

import (
	"bytes"
	"fmt"
	"io"

	"github.com/farpage/farpage/oci/bundle"
	"github.com/farpage/farpage/oci/policy"
)

// Precreate is the hook of podman's stage of that name (oci-hooks(5)): it gets a
// container's configuration before the runtime does, and writes what it shall be. Programs
// of an image with musl, whose loader reads no /etc/ld.so.preload, are made to preload
// farpage's library by their environment. What it cannot read it passes on.
func Precreate(stdin io.Reader, stdout, stderr io.Writer) int {
	text, err := io.ReadAll(io.LimitReader(stdin, bundle.MaxBytes+1))
	if err == nil {
		var edited []byte
		if edited, err = preloaded(text); edited != nil {
			text = edited
		}
	}
	if err != nil {
		fmt.Fprintf(stderr, "farpage: the container's configuration: %v; it is passed on as it is\n", err)
	}
	// What is too large was not read to its end.
	if _, err := io.Copy(stdout, io.MultiReader(bytes.NewReader(text), stdin)); err != nil {
		fmt.Fprintf(stderr, "farpage: passing on the container's configuration: %v\n", err)
		return 1
	}
	return 0
}

// preloaded returns the configuration with the preload; nil: it stays as it is.
func preloaded(text []byte) ([]byte, error) {
	config, err := bundle.Parse("standard input", text)
	if err != nil {
		return nil, err
	}
	annotations := policy.PodOf(config.Annotations()).AnnotationsFor(config.Annotations())
	process := config.Process()
	root, err := config.Root("/")
	if annotations[policy.KeyLocal] == "" || process == nil || err != nil || !bundle.HasMusl(root) || !process.Preload(libraryPath) {
		return nil, err
	}
	return config.Encode()
}

package hook

import (
	"bytes"
	"strings"

	"github.com/farpage/farpage/oci/policy"
)

// libraryName is the shim's file name in the container's folder.
const libraryName = "libfarpage.so"

// libraryPath is where a container's programs find the shim.
const libraryPath = policy.Library

// mergePreload returns the content of an /etc/ld.so.preload that loads everything an
// image's own does, in its order, and farpage's library last. added is false when the
// library is in it already; the content is the image's then.
func mergePreload(image []byte) (merged []byte, added bool) {
	for _, name := range preloads(image) {
		if name == libraryPath {
			return image, false
		}
	}
	merged = bytes.Clone(image)
	if len(merged) > 0 && merged[len(merged)-1] != '\n' {
		merged = append(merged, '\n')
	}
	return append(merged, libraryPath+"\n"...), true
}

// preloads returns the libraries that a preload file names: separated by white space
// or colons, and # starts a comment (glibc, elf/rtld.c).
func preloads(content []byte) []string {
	var names []string
	for line := range strings.Lines(string(content)) {
		line, _, _ = strings.Cut(line, "#")
		names = append(names, strings.FieldsFunc(line, func(r rune) bool { return strings.ContainsRune(" \t\n:", r) })...)
	}
	return names
}

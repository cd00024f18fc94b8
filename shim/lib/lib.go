// Package lib holds libfarpage.so, the library that is preloaded into the
// programs of a container, built from the C sources in the folder above.
package lib

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
)

//go:embed libfarpage.so
var library []byte

// dirMark stands before the folder's path in the library (FP_DIR_MARK in
// state.h), in a field of dirField bytes.
const (
	dirMark  = "FARPAGE-DIR="
	dirField = 120
)

// maxDir is the longest folder: the socket's path in it must fit sun_path.
const maxDir = 100

// Library returns libfarpage.so as it belongs into dir, the folder (as the
// programs see it) that holds the library, the bell and the hand-off socket.
func Library(dir string) ([]byte, error) {
	if len(dir) > maxDir {
		return nil, fmt.Errorf("folder %q is longer than %d bytes: choose a shorter --socket-dir", dir, maxDir)
	}
	at := bytes.Index(library, []byte(dirMark))
	if at < 0 || at+dirField > len(library) {
		return nil, errors.New("libfarpage.so has no place for its folder's path: build it again")
	}
	out := bytes.Clone(library)
	field := out[at+len(dirMark) : at+dirField]
	clear(field)
	copy(field, dir)
	return out, nil
}

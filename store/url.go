package store

import (
	"fmt"
	"strings"
)

// allowedURLs is what OpenURL's errors say may be asked for.
const allowedURLs = "allowed are mem: (compressed RAM) and file:///path (a slot file)"

// OpenURL opens the store that url names.
func OpenURL(url string) (Store, error) {
	scheme, rest, found := strings.Cut(url, ":")
	switch {
	case !found:
		return nil, fmt.Errorf("store %q has no scheme; %s", url, allowedURLs)
	case scheme == "mem" && rest == "":
		return NewMem(), nil
	case scheme == "mem":
		return nil, fmt.Errorf("store %q: mem: takes nothing behind the colon", url)
	case scheme == "file":
		return nil, fmt.Errorf("store %q: file stores are not part of this version yet, use mem: instead", url)
	}
	return nil, fmt.Errorf("store %q: unknown scheme %q; %s", url, scheme, allowedURLs)
}

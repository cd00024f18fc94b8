package store

import (
	"fmt"
	"strings"
)

// allowedURLs is what OpenURL's errors say may be asked for.
const allowedURLs = "allowed are mem: (compressed RAM) and file:///path or file:///path?max=SIZE (a slot file)"

// OpenURL opens the store that url names. Store.Recovered is to be called on it, see
// there. Its errors name the URL and say what is allowed or to be done.
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
		f, err := OpenFile(url)
		if err != nil {
			return nil, err // a nil *File is no nil Store
		}
		return f, nil
	}
	return nil, fmt.Errorf("store %q: unknown scheme %q; %s", url, scheme, allowedURLs)
}

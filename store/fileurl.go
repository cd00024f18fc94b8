package store

import (
	"errors"
	"fmt"
	"math"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"
)

// fileForm is how file stores are to be written.
const fileForm = "write file:///path or file:///path?max=SIZE"

// fileSpec is what a file store's URL says.
type fileSpec struct {
	url       string
	path      string // absolute and clean
	maxBlocks int64  // 0: as many as the disk takes
}

// parseFileURL reads file:///path?max=SIZE.
func parseFileURL(text string) (fileSpec, error) {
	fail := func(format string, args ...any) (fileSpec, error) {
		return fileSpec{}, fmt.Errorf("store %q: "+format, append([]any{text}, args...)...)
	}
	u, err := url.Parse(text)
	if err != nil {
		var inner *url.Error
		if errors.As(err, &inner) {
			err = inner.Err
		}
		return fail("%w; %s", err, fileForm)
	}
	path := u.Path
	switch {
	case u.Scheme != "file":
		return fail("scheme %q; %s", u.Scheme, fileForm)
	case u.Host != "" || u.User != nil:
		return fail("%q stands where a host would: a path begins with a third slash; %s", u.Host, fileForm)
	case u.Opaque != "":
		return fail("the path %q is relative; %s", u.Opaque, fileForm)
	case !strings.HasPrefix(text, "file:///"):
		return fail("no path; %s", fileForm)
	case strings.Contains(text, "#"):
		return fail("# begins a fragment, which a store has not: write %%23 for a # in the path")
	case strings.ContainsRune(path, 0):
		return fail("the path contains a zero byte")
	case strings.HasSuffix(path, "/"):
		return fail("%s names a folder: give the path of a file, such as file://%s", path, filepath.Join(path, "slots"))
	}
	spec := fileSpec{url: text, path: filepath.Clean(path)}
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return fail("%w; %s", err, fileForm)
	}
	for key, values := range query {
		switch {
		case key != "max":
			return fail("unknown key %q; allowed is max", key)
		case len(values) > 1:
			return fail("max is given %d times", len(values))
		}
		maxBytes, problem := readSize(values[0])
		if problem == "" && maxBytes < PageSize {
			problem = fmt.Sprintf("less than a page of %d bytes", PageSize)
		}
		if problem != "" {
			return fail("max=%s: %s; allowed: %s", values[0], problem, sizeForms)
		}
		spec.maxBlocks = maxBytes / PageSize
	}
	return spec, nil
}

// sizeForms says in an error message which sizes are allowed.
const sizeForms = "a whole number of bytes, or one with K, M, G, T (powers of 1000) or Ki, Mi, Gi, Ti (powers of 1024), such as 16Gi"

// sizeUnits are the suffixes that annotations have, too.
var sizeUnits = map[string]int64{
	"":  1,
	"k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12,
	"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40,
}

// readSize returns a size in bytes, or what is wrong with it.
func readSize(text string) (bytes int64, problem string) {
	suffix := strings.TrimLeft(text, "0123456789")
	unit, known := sizeUnits[suffix]
	digits := strings.TrimSuffix(text, suffix)
	if digits == "" || !known {
		return 0, "not a size"
	}
	number, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || number > math.MaxInt64/unit {
		return 0, fmt.Sprintf("more than %d bytes", int64(math.MaxInt64))
	}
	return number * unit, ""
}

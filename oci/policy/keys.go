package policy

import (
	"slices"
	"strings"
)

// Prefix is what every annotation of farpage begins with.
const Prefix = "io.farpage."

// The annotations. Parse checks what they may hold.
const (
	KeyLocal     = Prefix + "local" // its presence opts the container in
	KeyFar       = Prefix + "far"
	KeyStore     = Prefix + "store"
	KeyLow       = Prefix + "low"
	KeyHigh      = Prefix + "high"
	KeyRegions   = Prefix + "regions"
	KeyOnFailure = Prefix + "on-failure"
)

// keys are all annotations, in the order in which they are documented and checked.
var keys = []string{KeyLocal, KeyFar, KeyStore, KeyLow, KeyHigh, KeyRegions, KeyOnFailure}

// ForContainer returns the annotations that hold for one container of a Kubernetes
// pod. A pod's annotations reach all of its containers; io.farpage.local/app is for
// the container app only and stands above io.farpage.local there. Keys for other
// containers are left out; annotations that are not farpage's are kept.
//
// A key that does not exist, and one with nothing after the slash, stays as it was
// written, so that Parse refuses it by the name its author will look for.
func ForContainer(annotations map[string]string, container string) map[string]string {
	merged := make(map[string]string, len(annotations))
	for key, value := range annotations {
		base, name, suffixed := strings.Cut(key, "/")
		switch {
		case !suffixed || !strings.HasPrefix(key, Prefix) || name == "":
			if _, overridden := merged[key]; !overridden {
				merged[key] = value
			}
		case name != container:
		case known(base):
			merged[base] = value
		default:
			merged[key] = value
		}
	}
	return merged
}

// known tells whether key is an annotation of farpage.
func known(key string) bool {
	return slices.Contains(keys, key)
}

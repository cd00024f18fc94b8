package proc

import "strings"

// Mount is one line of mountinfo.
type Mount struct {
	Device       string // MAJOR:MINOR
	Root         string
	Point        string
	FSType       string
	SuperOptions []string
}

// ParseMount reads a line of mountinfo; false: it is none.
func ParseMount(line string) (Mount, bool) {
	left, right, ok := strings.Cut(strings.TrimSuffix(line, "\n"), " - ")
	before, after := strings.Fields(left), strings.Fields(right)
	if !ok || len(before) < 6 || len(after) < 3 {
		return Mount{}, false
	}
	return Mount{
		Device:       before[2],
		Root:         unescape.Replace(before[3]),
		Point:        unescape.Replace(before[4]),
		FSType:       after[0],
		SuperOptions: strings.Split(after[2], ","),
	}, true
}

// unescape undoes what the kernel does to white space and backslashes in mountinfo
// (mangle in fs/proc_namespace.c and seq_path).
var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`, `\043`, "#")

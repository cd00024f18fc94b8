package wrapper

import (
	"slices"
	"strings"
)

// The command line of a runtime: global options, a command, its options, its arguments.
// runc, crun, youki and runsc have these options with a value before the command; an
// unknown one without "=" is taken to have none.
var globalValues = []string{
	"--log", "--log-format", "--log-level", "--root", "--criu", "--rootless", "--cgroup-manager", "--debug-log",
}

// indexOf returns where the command is among the arguments, their number if there is none.
func indexOf(args []string) int {
	for i := 0; i < len(args); i++ {
		if !strings.HasPrefix(args[i], "-") {
			return i
		}
		if slices.Contains(globalValues, long(args[i])) {
			i++
		}
	}
	return len(args)
}

// commandOf returns the command; empty: there is none, as with --version.
func commandOf(args []string) string {
	if i := indexOf(args); i < len(args) {
		return args[i]
	}
	return ""
}

// valueOf returns the value of an option that has one of these names: the last one, as
// the runtimes take it. Empty: it is not there.
func valueOf(args []string, names ...string) (value string) {
	for i, arg := range args {
		if arg == "--" {
			break
		}
		name, with, has := strings.Cut(arg, "=")
		switch {
		case !slices.Contains(names, long(name)) && !slices.Contains(names, name):
		case has:
			value = with
		case i+1 < len(args):
			value = args[i+1]
		}
	}
	return value
}

// long writes an option with two dashes, as runc takes it with one too.
func long(option string) string {
	if strings.HasPrefix(option, "--") || len(option) == 2 {
		return option
	}
	return "-" + option
}

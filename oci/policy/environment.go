package policy

import "strings"

// EnvironmentPrefix is what variables begin with that count as annotations where the
// operator has switched that on: FARPAGE_LOCAL is io.farpage.local, FARPAGE_ON_FAILURE
// io.farpage.on-failure.
const EnvironmentPrefix = "FARPAGE_"

// FromEnvironment returns the annotations that a container's environment
// ("NAME=value") stands for. The last one of a name holds, as it does for most
// programs. Variables that are none of farpage's are left out; one that only looks
// like it stays, so that Parse refuses it.
func FromEnvironment(environment []string) map[string]string {
	annotations := map[string]string{}
	for _, variable := range environment {
		name, value, ok := strings.Cut(variable, "=")
		suffix, ours := strings.CutPrefix(name, EnvironmentPrefix)
		if !ok || !ours || suffix == "" {
			continue
		}
		annotations[Prefix+strings.ReplaceAll(strings.ToLower(suffix), "_", "-")] = value
	}
	return annotations
}

package deps

import "testing"

// testOnly are modules that tests check against, and programs must not be linked with.
var testOnly = []string{"k8s.io/api", "k8s.io/apimachinery", "k8s.io/cri-api", "sigs.k8s.io/yaml", "pgregory.net/rapid", "go.uber.org/goleak"}

func TestProgramsAreLinkedWithoutWhatIsForTests(t *testing.T) {
	programs := 0
	for _, one := range list(t) {
		if !under(one.name(), "cmd") {
			continue
		}
		programs++
		for _, path := range one.Deps {
			if underOneOf(path, testOnly) {
				t.Errorf("%s is linked with %s, which is for tests", one.name(), path)
			}
		}
	}
	if programs == 0 {
		t.Error("there is no program")
	}
}

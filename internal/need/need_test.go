package need

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

const askVariable = "FARPAGE_TEST_SKIP"

// wanting is the test that lacks something; TestMain leaves nothing else when it is asked
// for.
func wanting(t *testing.T) { Skip(t, "it lacks a thing: install it") }

func TestMain(m *testing.M) {
	if os.Getenv(askVariable) != "" {
		testing.Main(func(string, string) (bool, error) { return true, nil },
			[]testing.InternalTest{{Name: "TestWanting", F: wanting}}, nil, nil)
	}
	os.Exit(m.Run())
}

func TestASkipFailsWhereEverythingMustRun(t *testing.T) {
	for _, c := range []struct {
		environment string
		fails       bool
	}{{"CI=", false}, {"CI=true", true}, {"FARPAGE_REQUIRE=1", true}} {
		inner := exec.Command(os.Args[0], "-test.v")
		inner.Env = []string{askVariable + "=1", c.environment}
		out, err := inner.CombinedOutput()
		if (err != nil) != c.fails || !strings.Contains(string(out), "it lacks a thing: install it") {
			t.Errorf("%s: %v, want a failure: %v, with the reason in:\n%s", c.environment, err, c.fails, out)
		}
	}
}

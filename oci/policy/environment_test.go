package policy

import (
	"maps"
	"testing"
)

func TestVariablesStandForAnnotations(t *testing.T) {
	got := FromEnvironment([]string{
		"PATH=/bin", "FARPAGE_LOCAL=1Mi", "FARPAGE_LOCAL=64Mi", "FARPAGE_ON_FAILURE=closed", "FARPAGE_", "FARPAGE_LOCL=1",
		"XFARPAGE_FAR=1", "FARPAGE_FAR",
	})
	want := map[string]string{KeyLocal: "64Mi", KeyOnFailure: "closed", "io.farpage.locl": "1"}
	if !maps.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if _, _, err := Parse(got, 0); err == nil {
		t.Error("a misspelt variable was taken")
	}
}

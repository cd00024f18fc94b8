package install

import (
	"encoding/json"
	"regexp"
	"strings"
	"testing"

	"github.com/farpage/farpage/oci/policy"
)

func TestDevicesHaveNamesThatCDIAllowsAndBudgetsThatFarpageDoes(t *testing.T) {
	h := hostWith(t, cdiFile, nil)
	plan, err := CDI(h)
	apply(t, plan, err)
	var spec struct {
		CDIVersion string
		Kind       string
		Devices    []struct {
			Name           string
			ContainerEdits struct {
				Hooks []struct {
					HookName, Path string
					Args           []string
				}
			}
		}
	}
	if err := json.Unmarshal([]byte(mustRead(t, h, cdiFile)), &spec); err != nil {
		t.Fatal(err)
	}
	if spec.CDIVersion != "0.5.0" || spec.Kind != "farpage.io/local" || len(spec.Devices) < 10 {
		t.Errorf("%+v", spec)
	}
	name := regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.:-]*[A-Za-z0-9]$`) // cdi, SPEC.md
	for _, d := range spec.Devices {
		if !name.MatchString(d.Name) || len(d.ContainerEdits.Hooks) != 1 {
			t.Errorf("%+v", d)
			continue
		}
		hook := d.ContainerEdits.Hooks[0]
		if hook.HookName != "createRuntime" || hook.Path != "/usr/bin/farpage-hook" || strings.Join(hook.Args, " ") != "farpage-hook --annotation io.farpage.local="+d.Name+" createRuntime" {
			t.Errorf("%s: %+v", d.Name, hook)
		}
		if _, _, err := policy.Parse(map[string]string{policy.KeyLocal: d.Name}, 0); err != nil {
			t.Errorf("%s: %v", d.Name, err)
		}
	}
	plan, err = RemoveCDI(h)
	apply(t, plan, err)
	if got := mustRead(t, h, cdiFile); got != "(none)" {
		t.Errorf("left: %s", got)
	}
}

package install

import (
	"path/filepath"
	"strings"
	"testing"
)

// enable makes the links that `systemctl enable` makes.
func enable(t *testing.T, h Host) {
	t.Helper()
	for _, link := range []string{"multi-user.target.wants/farpage.service", "sockets.target.wants/farpage.socket", "paths.target.wants/farpage-nri.path"} {
		putFile(t, h, filepath.Join(unitsDir, link), nil)
	}
}

// A package brings the units and leaves it to the user to enable them.
func TestPackagedUnitsAreStillToBeEnabled(t *testing.T) {
	h := Host{Root: t.TempDir(), Bin: "/usr/bin"}
	for name, text := range Units(h.Bin) {
		putFile(t, h, filepath.Join(packagedUnits, name), text)
	}
	program(t, h, "systemctl", "systemd 257 (257.13-1)")
	putFile(t, h, "/run/systemd/system/x", nil)
	for _, c := range []struct {
		what              string
		do                func()
		installs, removes bool
		status            string
	}{
		{"packaged", func() {}, true, false, "systemd 257.13-1, farpage is not installed"},
		{"enabled", func() { enable(t, h) }, false, true, "systemd 257.13-1, farpage is installed"},
	} {
		c.do()
		plan, err := Systemd(h)
		if err != nil || len(plan.Changes) > 0 || plan.Pending != c.installs || !strings.Contains(plan.Then, "systemctl enable --now") {
			t.Errorf("%s: the installation is %+v (%v)", c.what, plan, err)
		}
		plan, err = RemoveSystemd(h)
		if err != nil || len(plan.Changes) > 0 || plan.Pending != c.removes || !strings.Contains(plan.Then, "systemctl disable --now") {
			t.Errorf("%s: the removal is %+v (%v)", c.what, plan, err)
		}
		if s := statusOf(t, h, "systemd"); s.Detail != c.status || s.OK == c.installs {
			t.Errorf("%s: %+v", c.what, s)
		}
	}
}

func TestUnitsOfNoPackageAreMadeAndRemoved(t *testing.T) {
	h := Host{Root: t.TempDir(), Bin: "/opt/farpage"}
	plan, err := Systemd(h)
	if len(plan.Changes) != len(Units(h.Bin)) || plan.Pending {
		t.Errorf("%+v", plan)
	}
	apply(t, plan, err)
	enable(t, h)
	if plan, err = Systemd(h); err != nil || len(plan.Changes) > 0 || plan.Pending {
		t.Errorf("the second time: %+v (%v)", plan, err)
	}
	plan, err = RemoveSystemd(h)
	if len(plan.Changes) != len(Units(h.Bin)) || plan.Pending {
		t.Errorf("%+v", plan)
	}
	apply(t, plan, err)
}

package install

import (
	"bytes"
	_ "embed"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// The units, with the folder of the programs to be filled in.
var (
	//go:embed units/farpage.service
	serviceUnit []byte
	//go:embed units/farpage.socket
	socketUnit []byte
	//go:embed units/farpage-nri.service
	nriUnit []byte
	//go:embed units/farpage-nri.path
	nriPathUnit []byte
)

// enabledUnits are those that start at boot: the NRI plugin when there is an engine with NRI.
const enabledUnits = "farpage.socket farpage.service farpage-nri.path"

// packagedUnits is where a package puts units, unitsDir where an administrator does
// (systemd.unit(5)).
const (
	packagedUnits = "/usr/lib/systemd/system"
	unitsDir      = "/etc/systemd/system"
)

// Units returns farpage's units by their names, for programs in bin.
func Units(bin string) map[string][]byte {
	units := map[string][]byte{
		"farpage.service": serviceUnit, "farpage.socket": socketUnit,
		"farpage-nri.service": nriUnit, "farpage-nri.path": nriPathUnit,
	}
	for name, text := range units {
		units[name] = bytes.ReplaceAll(text, []byte("@BIN@"), []byte(bin))
	}
	return units
}

// Systemd adds the agent's units, where no package has.
func Systemd(h Host) (Plan, error) {
	const start = "systemctl daemon-reload && systemctl enable --now " + enabledUnits
	plan := Plan{
		Then:    "systemd reads the units anew, and the agent starts now and at each boot: " + start,
		Command: []string{"sh", "-c", start},
	}
	files := map[string][]byte{}
	for name, content := range Units(h.Bin) {
		packaged, err := h.read(filepath.Join(packagedUnits, name))
		if err != nil {
			return plan, err
		}
		if packaged == nil {
			files[filepath.Join(unitsDir, name)] = content
		}
	}
	plan, err := dropIns(h, plan, files)
	if err != nil {
		return plan, err
	}
	enabled, err := enablings(h)
	plan.Pending = len(plan.Changes) == 0 && slices.Contains(enabled, false)
	return plan, err
}

// RemoveSystemd takes them away. The agent is to be stopped first: what it serves is left
// to its keeper, and waits.
func RemoveSystemd(h Host) (Plan, error) {
	files := map[string][]byte{}
	for name := range Units(h.Bin) {
		files[filepath.Join(unitsDir, name)] = nil
	}
	const end = "systemctl disable --now " + enabledUnits + "; systemctl stop farpage-nri.service; systemctl daemon-reload"
	plan, err := removeDropIns(h, Plan{Then: "systemd forgets the units: " + end, Command: []string{"sh", "-c", end}}, files)
	if err != nil {
		return plan, err
	}
	enabled, err := enablings(h)
	plan.Pending = len(plan.Changes) == 0 && slices.Contains(enabled, true)
	return plan, err
}

// enablings says of each unit that starts at boot whether it does: `systemctl enable` makes
// a link for what the unit's WantedBy= names (systemd.unit(5)).
func enablings(h Host) ([]bool, error) {
	var enabled []bool
	for name, text := range Units(h.Bin) {
		for line := range strings.Lines(string(text)) {
			target, found := strings.CutPrefix(line, "WantedBy=")
			if !found {
				continue
			}
			_, err := os.Lstat(h.path(filepath.Join(unitsDir, strings.TrimSpace(target)+".wants", name)))
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return nil, err
			}
			enabled = append(enabled, err == nil)
		}
	}
	return enabled, nil
}

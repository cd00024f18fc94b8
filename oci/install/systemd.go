package install

import (
	"bytes"
	_ "embed"
	"path/filepath"
)

// The units, with the folder of the programs to be filled in.
var (
	//go:embed units/farpage.service
	serviceUnit []byte
	//go:embed units/farpage.socket
	socketUnit []byte
)

// packagedUnits is where a package puts units, unitsDir where an administrator does
// (systemd.unit(5)).
const (
	packagedUnits = "/usr/lib/systemd/system"
	unitsDir      = "/etc/systemd/system"
)

// Units returns farpage's units by their names, for programs in bin.
func Units(bin string) map[string][]byte {
	return map[string][]byte{
		"farpage.service": bytes.ReplaceAll(serviceUnit, []byte("@BIN@"), []byte(bin)),
		"farpage.socket":  socketUnit,
	}
}

// Systemd adds the agent's units, where no package has.
func Systemd(h Host) (Plan, error) {
	plan := Plan{
		Then:    "systemd reads the units anew, and the agent starts now and at each boot: systemctl daemon-reload && systemctl enable --now farpage.socket farpage.service",
		Command: []string{"sh", "-c", "systemctl daemon-reload && systemctl enable --now farpage.socket farpage.service"},
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
	return dropIns(h, plan, files)
}

// RemoveSystemd takes them away. The agent is to be stopped first: what it serves is left
// to its keeper, and waits.
func RemoveSystemd(h Host) (Plan, error) {
	files := map[string][]byte{}
	for name := range Units(h.Bin) {
		files[filepath.Join(unitsDir, name)] = nil
	}
	return removeDropIns(h, Plan{
		Then:    "systemd forgets the units: systemctl disable --now farpage.socket farpage.service; systemctl daemon-reload",
		Command: []string{"sh", "-c", "systemctl disable --now farpage.socket farpage.service; systemctl daemon-reload"},
	}, files)
}

package bundle

import (
	"io/fs"
	"os"
	"syscall"
)

// chownAs gives a file the owner that another one has.
func chownAs(f *os.File, as fs.FileInfo) error {
	stat, ok := as.Sys().(*syscall.Stat_t)
	if !ok {
		return nil
	}
	return f.Chown(int(stat.Uid), int(stat.Gid))
}

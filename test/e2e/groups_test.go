package e2e

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/farpage/farpage/internal/need"
	"github.com/farpage/farpage/test/group"
)

// openGroups are those whose processes may still live.
type openGroups struct {
	mu  sync.Mutex
	all map[*group.Group]bool // guarded by mu
}

var groups = openGroups{all: map[*group.Group]bool{}}

// open makes a group that is closed, and its processes ended, with the test.
func (o *openGroups) open(t *testing.T) *group.Group {
	t.Helper()
	g, err := group.New()
	if errors.Is(err, group.ErrNoCgroup) {
		need.Skip(t, err.Error())
	}
	if err != nil {
		t.Fatal(err)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.all[g] = true
	t.Cleanup(func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		delete(o.all, g)
		if err := end(g); err != nil {
			t.Error(err)
		}
	})
	return g
}

// end kills what lives on in a group. A private agent that is killed cannot
// remove its folder itself, so that is done for it.
func end(g *group.Group) error {
	pids, err := g.Pids()
	if errors.Is(err, fs.ErrNotExist) {
		return nil // has been ended before
	}
	if err != nil {
		return err
	}
	dirs := privateDirs(pids)
	err = g.Close()
	for _, dir := range dirs {
		err = errors.Join(err, os.RemoveAll(dir))
	}
	return err
}

// privateDirs are the folders of the `farpage run` agents among these processes.
func privateDirs(pids []int) []string {
	var dirs []string
	for _, pid := range pids {
		environment, _ := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
		for variable := range strings.SplitSeq(string(environment), "\x00") {
			if dir, found := strings.CutPrefix(variable, "FARPAGE_PRIVATE_DIR="); found {
				dirs = append(dirs, dir)
			}
		}
	}
	return dirs
}

// closeAll is for the end of the whole program. It keeps the lock: no test goes
// on to open another.
func (o *openGroups) closeAll() {
	o.mu.Lock()
	for _, g := range slices.Collect(maps.Keys(o.all)) {
		if err := end(g); err != nil {
			fmt.Fprintln(os.Stderr, "FAIL:", err)
		}
	}
}

package target

import (
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/farpage/farpage/internal/need"
)

func TestMmapsTellsWhatAChildOfTheWatchedProcessMaps(t *testing.T) {
	need.Root(t, "perf_event_open of another process")
	c := exec.Command("sh", "-c", "read x; sh -c 'true'; read y")
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = in.Close()
		_ = c.Wait()
	}()
	m, err := WatchMmaps(c.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if _, err := in.Write([]byte("go\n")); err != nil {
		t.Fatal(err)
	}
	child, anonymous := int32(0), false
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end) && !anonymous; time.Sleep(time.Millisecond) {
		if m.Read(func(r Mapping) {
			if r.Pid == int32(c.Process.Pid) {
				return // it may be on its way through its own start still
			}
			child = r.Pid
			anonymous = anonymous || r.Anonymous && r.Private
		}) {
			t.Fatal("records were lost")
		}
	}
	if child == 0 || !anonymous {
		t.Errorf("a child's mappings were not told (child: %d, anonymous: %v)", child, anonymous)
	}
}

func TestMalformedRecordsAreNotTaken(t *testing.T) {
	for _, b := range []string{"\x0a\x00\x00\x00\x00\x00\x08\x00", "\x0a\x00\x00\x00\x00\x00\x20\x00" + strings.Repeat("\xff", 24)} {
		if _, ok, lost := parseRecord([]byte(b)); ok || !lost {
			t.Errorf("%q: ok %v, lost %v", b, ok, lost)
		}
	}
}

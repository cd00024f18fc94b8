package engines

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/farpage/farpage/api"
	"github.com/farpage/farpage/internal/need"
	"github.com/farpage/farpage/oci/policy"
	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// nriPlugin is a running farpage-nri.
type nriPlugin struct {
	k   *kubelet
	log string
	cmd *exec.Cmd
}

// startNRI starts a containerd with NRI whose pods have its own runtime, and the plugin.
func startNRI(t *testing.T, h *host) (*kubelet, *nriPlugin) {
	t.Helper()
	k := startCRI(t, h, "--nri")
	k.handler = ""
	p := &nriPlugin{k: k, log: filepath.Join(t.TempDir(), "nri.log")}
	p.start(t)
	t.Cleanup(func() {
		p.stop(t)
		if t.Failed() {
			text, _ := os.ReadFile(p.log)
			t.Logf("the plugin's log:\n%s", text)
		}
	})
	return k, p
}

// start starts the plugin and waits until it is connected.
func (p *nriPlugin) start(t *testing.T) {
	t.Helper()
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	before := p.connections(t)
	// With what its unit leaves it.
	if capabilities := unitSetting(t, "farpage-nri.service", "CapabilityBoundingSet"); capabilities != "" {
		t.Fatalf("its unit leaves it %s: this test is about another one", capabilities)
	}
	p.cmd = exec.Command(need.Program(t, "setpriv"), "--bounding-set", "-all", "--no-new-privs",
		filepath.Join(p.k.bin, "farpage-nri"), "--socket-dir", p.k.SocketDir(), "--nri-socket", p.k.root+nriFolder+"/nri.sock")
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.SysProcAttr = p.k.group.Attributes()
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p.connected(t, before)
}

// stop ends the plugin, which must end well.
func (p *nriPlugin) stop(t *testing.T) {
	t.Helper()
	_ = p.cmd.Process.Signal(unix.SIGTERM)
	if err := p.cmd.Wait(); err != nil {
		t.Errorf("farpage-nri: %v", err)
	}
}

// connections is how often the plugin has connected to the engine.
func (p *nriPlugin) connections(t *testing.T) int {
	t.Helper()
	text, err := os.ReadFile(p.log)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(text), "connected to the engine")
}

// connected waits until it has connected once more than before.
func (p *nriPlugin) connected(t *testing.T, before int) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); p.connections(t) <= before; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the plugin does not connect")
		}
	}
}

// restartContainerd kills containerd; the containers go on.
func (k *kubelet) restartContainerd(t *testing.T) {
	t.Helper()
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", k.supervisor.Pid))
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(children)))
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
}

// remove removes a container.
func (k *kubelet) remove(t *testing.T, id string) {
	t.Helper()
	if _, err := k.runtime.StopContainer(t.Context(), &cri.StopContainerRequest{ContainerId: id}); err != nil {
		t.Error(err)
	}
	if _, err := k.runtime.RemoveContainer(t.Context(), &cri.RemoveContainerRequest{ContainerId: id}); err != nil {
		t.Error(err)
	}
}

// expectUnmanaged waits until the agent lists a container as unmanaged, with a reason.
func (h *host) expectUnmanaged(t *testing.T, id, reason string) {
	t.Helper()
	var last []api.Container
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		last, _ = h.List(context.WithoutCancel(t.Context()))
		for _, c := range last {
			if c.ID == id && len(c.ProcessList) > 0 && c.ProcessList[0].State == "unmanaged" {
				contains(t, "the reason", c.ProcessList[0].Reason, reason)
				return
			}
		}
	}
	t.Errorf("container %s is not listed as unmanaged: %+v", id, last)
}

// snapshot is where containerd has a container's layers, which is another place each time.
var snapshot = regexp.MustCompile(`(/\S*)?snapshots/\d+\S*`)

// expectNoFolders says what is left of the containers' folders.
func (h *host) expectNoFolders(t *testing.T) {
	t.Helper()
	var left []os.DirEntry
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		var err error
		if left, err = os.ReadDir(filepath.Join(h.SocketDir(), "c")); err != nil {
			t.Fatal(err)
		}
		if len(left) == 0 {
			return
		}
	}
	t.Errorf("folders are left: %v", left)
}

func variable(name, value string) *cri.KeyValue {
	return &cri.KeyValue{Key: name, Value: []byte(value)}
}

func TestNRITakesInPodsOfAnyRuntimeClass(t *testing.T) {
	h := startHost(t)
	k, _ := startNRI(t, h)
	pod, config := k.pod(t, "cache-0", map[string]string{"io.farpage.local": "64Mi", "io.farpage.local/app": "32Mi"})
	var ids []string
	for name, image := range map[string]string{"app": "glibc", "second": "musl"} {
		id, err := k.container(t, pod, config, name, image, variable("BEFORE", "1"), variable("LD_PRELOAD", "/own.so"), variable("AFTER", "2"))
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, id)
		program, budget := "/bin/threads8", int64(32<<20)
		if name == "second" {
			program, budget = "/bin/musl-threads8", 64<<20
		}
		contains(t, name, k.exec(t, id, program, "64"), "16384 pages right")
		s := h.alone(t, "shop/cache-0/"+name)
		if s.ID != id || s.BudgetBytes != budget || s.EvictedPages == 0 {
			t.Errorf("%s: %+v", name, s)
		}
		contains(t, "its environment", k.exec(t, id, "/bin/sh", "-c", "env"), "BEFORE=1\n", "AFTER=2\n", "LD_PRELOAD=/own.so:/dev/farpage/libfarpage.so\n")
		contains(t, "its mounts", k.exec(t, id, "/bin/sh", "-c", "cat /proc/self/mountinfo"), " /dev/farpage ro,nosuid,nodev")
	}
	for _, id := range ids {
		k.remove(t, id)
	}
	h.expectEmpty(t)
	h.expectNoFolders(t)
}

func TestNRILeavesOtherPodsAlone(t *testing.T) {
	h := startHost(t)
	k, p := startNRI(t, h)
	seen := func(name string) string {
		pod, config := k.pod(t, name, map[string]string{"example.com/io.farpage.local": "64Mi"})
		id, err := k.container(t, pod, config, "app", "glibc")
		if err != nil {
			t.Fatal(err)
		}
		defer k.remove(t, id)
		out := k.exec(t, id, "/bin/sh", "-c", "env; ls /dev /etc; cat /proc/self/mountinfo | while read a b c d e f; do echo $e $f; done")
		for _, own := range []string{id, pod} {
			out = strings.ReplaceAll(out, own, "ID")
		}
		return snapshot.ReplaceAllString(out, "snapshot")
	}
	with := seen("with")
	p.stop(t)
	without := seen("without")
	p.start(t)
	same(t, "a pod without annotation", strings.ReplaceAll(with, "HOSTNAME=with", "HOSTNAME="), strings.ReplaceAll(without, "HOSTNAME=without", "HOSTNAME="))

	pod, config := k.pod(t, "typo", map[string]string{"io.farpage.locl": "64Mi"})
	if id, err := k.container(t, pod, config, "app", "glibc"); err == nil {
		t.Errorf("a typo starts: %s", id)
	} else {
		contains(t, "a typo", err.Error(), `annotation io.farpage.locl="64Mi": there is no such annotation`)
	}
	h.expectNoFolders(t)
}

func TestNRIIsBackAfterTheEngineAndNamesWhatSlippedThrough(t *testing.T) {
	h := startHost(t)
	k, p := startNRI(t, h)
	annotations := map[string]string{"io.farpage.local": "32Mi"}
	pod, config := k.pod(t, "long", annotations)
	long, err := k.container(t, pod, config, "app", "glibc")
	if err != nil {
		t.Fatal(err)
	}
	p.stop(t)
	pod, config = k.pod(t, "slipped", annotations)
	slipped, err := k.container(t, pod, config, "app", "glibc")
	if err != nil {
		t.Fatal(err)
	}
	p.start(t)
	h.expectUnmanaged(t, slipped, "it was created while farpage-nri was not connected to the engine: create it anew")
	contains(t, "a container that slipped through", k.exec(t, slipped, "/bin/threads8", "16"), "4096 pages right")

	before := p.connections(t)
	k.restartContainerd(t)
	p.connected(t, before)
	k.ready(t)
	pod, config = k.pod(t, "after", annotations)
	after, err := k.container(t, pod, config, "app", "glibc")
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{long, after} {
		contains(t, "a container", k.exec(t, id, "/bin/threads8", "64"), "16384 pages right")
		if s := h.alone(t, id); s.EvictedPages == 0 {
			t.Errorf("%+v", s)
		}
	}
}

func TestNRIWithoutAnAgent(t *testing.T) {
	h := startHost(t)
	k, _ := startNRI(t, h)
	if err := h.Kill(); err != nil {
		t.Fatal(err)
	}
	pod, config := k.pod(t, "closed", map[string]string{"io.farpage.local": "32Mi", "io.farpage.on-failure": "closed"})
	if id, err := k.container(t, pod, config, "app", "glibc"); err == nil {
		t.Errorf("%s starts", id)
	} else {
		contains(t, "the error", err.Error(), "io.farpage.on-failure is closed", "did not answer in time")
	}
	pod, config = k.pod(t, "open", map[string]string{"io.farpage.local": "32Mi"})
	open, err := k.container(t, pod, config, "app", "glibc")
	if err != nil {
		t.Fatal(err)
	}
	contains(t, "a container", k.exec(t, open, "/bin/threads8", "16"), "4096 pages right")
	if err := h.Again(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.expectUnmanaged(t, open, "the agent did not answer when it was created: create it anew")
}

// Between its creation and its start a container is a folder only.
func TestNRIContainerThatIsCreatedAndWaits(t *testing.T) {
	h := startHost(t)
	k, _ := startNRI(t, h)
	pod, config := k.pod(t, "waits", map[string]string{"io.farpage.local": "32Mi"})
	never, err := k.create(t, pod, config, "never", "glibc")
	if err != nil {
		t.Fatal(err)
	}
	later, err := k.create(t, pod, config, "later", "glibc")
	if err != nil {
		t.Fatal(err)
	}
	folder := func(id string) error {
		_, err := os.Stat(filepath.Join(h.SocketDir(), "c", id, "libfarpage.so"))
		return err
	}
	if err := errors.Join(folder(never), folder(later)); err != nil {
		t.Error(err)
	}
	k.remove(t, never)
	if err := folder(never); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the folder of a container that was removed: %v", err)
	}
	if err := h.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := h.Again(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := k.runtime.StartContainer(t.Context(), &cri.StartContainerRequest{ContainerId: later}); err != nil {
		t.Fatal(err)
	}
	contains(t, "a container", k.exec(t, later, "/bin/threads8", "64"), "16384 pages right")
	if s := h.alone(t, later); s.EvictedPages == 0 {
		t.Errorf("%+v", s)
	}
}

func TestFoldersOfContainersThatNeverCameAreRemoved(t *testing.T) {
	h := startHost(t)
	client := api.NewClientIn(h.SocketDir())
	defer client.Close()
	prepare := func(id string) string {
		t.Helper()
		reply, err := client.Prepare(t.Context(), id, api.PrepareRequest{Policy: policy.Policy{LocalBytes: 32 << 20, FarBytes: policy.Unlimited}})
		if err != nil {
			t.Fatal(err)
		}
		return reply.Dir
	}
	old, young := prepare("old"), prepare("young")
	long := time.Now().Add(-api.PreparedMax - time.Minute)
	if err := os.Chtimes(filepath.Join(old, "prepared"), long, long); err != nil {
		t.Fatal(err)
	}
	prepare("next")
	if _, err := os.Stat(old); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the old one: %v", err)
	}
	if _, err := os.Stat(young); err != nil {
		t.Error(err)
	}
	_, err := client.Add(t.Context(), api.AddRequest{ID: "old", Pid: os.Getpid(), Policy: policy.Policy{LocalBytes: 32 << 20}, Prepared: true})
	if err == nil || !strings.Contains(err.Error(), "the folder that was prepared for it is gone") {
		t.Errorf("it comes after all: %v", err)
	}
	for _, id := range []string{"young", "next"} {
		if err := client.GiveUp(t.Context(), id); err != nil {
			t.Error(err)
		}
	}
	h.expectNoFolders(t)
}

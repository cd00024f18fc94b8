package nri

import (
	"bytes"
	"context"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/nri/pkg/api"
	"github.com/farpage/farpage/oci/policy"
)

func TestWhatAContainerAsksFor(t *testing.T) {
	pod := &api.PodSandbox{Name: "cache-0", Namespace: "shop", Annotations: map[string]string{
		"io.farpage.local": "64Mi", "io.farpage.local/app": "32Mi", "io.farpage.local/half": "50%", "io.farpage.local/bad": "much",
	}}
	limited := &api.LinuxContainer{Resources: &api.LinuxResources{Memory: &api.LinuxMemory{Limit: &api.OptionalInt64{Value: 256 << 20}}}}
	for _, c := range []struct {
		name       string
		pod        *api.PodSandbox
		container  *api.Container
		localBytes int64
		err        string
	}{
		{"the pod's", pod, &api.Container{Name: "other"}, 64 << 20, ""},
		{"the container's own", pod, &api.Container{Name: "app"}, 32 << 20, ""},
		{"a share of its limit", pod, &api.Container{Name: "half", Linux: limited}, 128 << 20, ""},
		{"a bad one", pod, &api.Container{Name: "bad"}, 0, `io.farpage.local="much"`},
		{"of the container, above the pod's", pod, &api.Container{Name: "other", Annotations: map[string]string{"io.farpage.local": "48Mi"}}, 48 << 20, ""},
		{"none", &api.PodSandbox{Name: "p"}, &api.Container{Name: "app", Env: []string{"FARPAGE_X=1"}}, 0, ""},
		{"of the image", &api.PodSandbox{Name: "p"}, &api.Container{Name: "app", Env: []string{"FARPAGE_LOCAL=96Mi"}}, 96 << 20, ""},
		{"no pod at all", nil, &api.Container{Name: "app"}, 0, ""},
	} {
		w, err := wishOf(c.pod, c.container)
		switch {
		case c.err != "":
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%s: %v", c.name, err)
			}
		case err != nil || w.optedIn != (c.localBytes > 0) || w.optedIn && w.policy.LocalBytes != c.localBytes:
			t.Errorf("%s: %+v, %v", c.name, w, err)
		}
		if ofImage := c.name == "of the image"; w.fromImage != ofImage {
			t.Errorf("%s: from the image: %v", c.name, w.fromImage)
		}
	}
	if w, _ := wishOf(pod, &api.Container{Name: "app"}); w.name != "shop/cache-0/app" {
		t.Errorf("it is called %q", w.name)
	}
}

func TestRuntimesWithAKernelOfTheirOwnAreRefused(t *testing.T) {
	for handler, refused := range map[string]bool{"": false, "runc": false, "crun": false, "farpage": false, "kata-qemu": true, "runsc": true, "gVisor": true} {
		if why := ownKernel(handler); (why != "") != refused {
			t.Errorf("%s: %q", handler, why)
		}
	}
}

func TestTheEngineIsAskedForAMountAndThePreload(t *testing.T) {
	a := adjustment(&api.Container{Env: []string{"A=1", "LD_PRELOAD=/own.so", "B=2"}}, "/run/farpage/c/x")
	if len(a.Mounts) != 1 || a.Mounts[0].Source != "/run/farpage/c/x" || a.Mounts[0].Destination != policy.MountPoint || !slices.Contains(a.Mounts[0].Options, "ro") {
		t.Errorf("mounts: %v", a.Mounts)
	}
	last := a.Env[len(a.Env)-1]
	if last.Key != "LD_PRELOAD" || last.Value != "/own.so:"+policy.Library {
		t.Errorf("environment: %v", a.Env)
	}
	if a.Hooks != nil || a.Linux != nil {
		t.Errorf("more than mounts and environment: %v", a)
	}
	if !mounted(&api.Container{Mounts: a.Mounts}) || mounted(&api.Container{}) {
		t.Error("what is mounted is not seen")
	}
}

func TestCommandLine(t *testing.T) {
	for _, c := range []struct {
		args   []string
		status int
		says   string
	}{
		{[]string{"--version"}, 0, "farpage-nri 1.2.3\n"},
		{[]string{"--help"}, 0, "usage: farpage-nri"},
		{[]string{"--soket-dir", "/x"}, 2, "flag provided but not defined"},
		{[]string{"x"}, 2, `unexpected argument "x"`},
		{[]string{"--index", "5"}, 1, "two digits are wanted"},
	} {
		var out bytes.Buffer
		if status := Main(context.Background(), "1.2.3", c.args, &out, &out); status != c.status || !strings.Contains(out.String(), c.says) {
			t.Errorf("%q: %d\n%s", c.args, status, out.String())
		}
	}
}

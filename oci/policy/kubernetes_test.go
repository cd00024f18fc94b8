package policy

import "testing"

func TestThePodIsReadFromBothImplementations(t *testing.T) {
	cases := map[string]struct {
		annotations map[string]string
		want        Pod
		name        string
	}{
		"containerd": {map[string]string{
			"io.kubernetes.cri.container-name": "redis", "io.kubernetes.cri.container-type": "container",
			"io.kubernetes.cri.sandbox-name": "cache-0", "io.kubernetes.cri.sandbox-namespace": "shop",
		}, Pod{Namespace: "shop", Name: "cache-0", Container: "redis"}, "shop/cache-0/redis"},
		"containerd's pause": {map[string]string{
			"io.kubernetes.cri.container-type": "sandbox", "io.kubernetes.cri.sandbox-name": "cache-0", "io.kubernetes.cri.sandbox-namespace": "shop",
		}, Pod{Namespace: "shop", Name: "cache-0", Sandbox: true}, ""},
		"CRI-O": {map[string]string{
			"io.kubernetes.container.name": "redis", "io.kubernetes.cri-o.ContainerType": "container",
			"io.kubernetes.pod.name": "cache-0", "io.kubernetes.pod.namespace": "shop",
		}, Pod{Namespace: "shop", Name: "cache-0", Container: "redis"}, "shop/cache-0/redis"},
		"CRI-O's pause": {map[string]string{
			"io.kubernetes.container.name": "POD", "io.kubernetes.cri-o.ContainerType": "sandbox",
		}, Pod{Container: "POD", Sandbox: true}, ""},
		"no pod": {map[string]string{"io.farpage.local": "1G"}, Pod{}, ""},
	}
	for name, c := range cases {
		if got := PodOf(c.annotations); got != c.want || got.DisplayName() != c.name {
			t.Errorf("%s: %+v, %q", name, got, got.DisplayName())
		}
	}
}

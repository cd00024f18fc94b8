package hook

import "github.com/farpage/farpage/oci/policy"

// pod is what the CRI implementations write into a container's annotations about the
// pod that it belongs to. All is empty outside of Kubernetes.
type pod struct {
	namespace, name, container string
	sandbox                    bool
}

// podOf reads containerd's annotations (its internal/cri/annotations) and CRI-O's (its
// ContainerType; the other three are labels of the kubelet, pkg/types/labels.go in
// kubernetes, which CRI-O hands on as annotations).
func podOf(annotations map[string]string) pod {
	first := func(keys ...string) string {
		for _, key := range keys {
			if value := annotations[key]; value != "" {
				return value
			}
		}
		return ""
	}
	return pod{
		namespace: first("io.kubernetes.cri.sandbox-namespace", "io.kubernetes.pod.namespace"),
		name:      first("io.kubernetes.cri.sandbox-name", "io.kubernetes.pod.name"),
		container: first("io.kubernetes.cri.container-name", "io.kubernetes.container.name"),
		sandbox:   first("io.kubernetes.cri.container-type", "io.kubernetes.cri-o.ContainerType") == "sandbox",
	}
}

// displayName is how people call the container: namespace/pod/container, or empty when
// it is not of a pod.
func (p pod) displayName() string {
	if p.name == "" || p.container == "" {
		return ""
	}
	return p.namespace + "/" + p.name + "/" + p.container
}

// annotationsFor returns the annotations that count for the container of this pod.
func (p pod) annotationsFor(annotations map[string]string) map[string]string {
	if p.container == "" {
		return annotations
	}
	return policy.ForContainer(annotations, p.container)
}

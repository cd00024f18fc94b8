package policy

// Pod is what the CRI implementations write into a container's annotations about the
// pod that it belongs to. All is empty outside of Kubernetes.
type Pod struct {
	Namespace, Name, Container string
	Sandbox                    bool // its pause process, not a container of the user's
}

// PodOf reads containerd's annotations (its internal/cri/annotations) and CRI-O's (its
// ContainerType; the other three are labels of the kubelet, pkg/types/labels.go in
// kubernetes, which CRI-O hands on as annotations).
func PodOf(annotations map[string]string) Pod {
	first := func(keys ...string) string {
		for _, key := range keys {
			if value := annotations[key]; value != "" {
				return value
			}
		}
		return ""
	}
	return Pod{
		Namespace: first("io.kubernetes.cri.sandbox-namespace", "io.kubernetes.pod.namespace"),
		Name:      first("io.kubernetes.cri.sandbox-name", "io.kubernetes.pod.name"),
		Container: first("io.kubernetes.cri.container-name", "io.kubernetes.container.name"),
		Sandbox:   first("io.kubernetes.cri.container-type", "io.kubernetes.cri-o.ContainerType") == "sandbox",
	}
}

// DisplayName is how people call the container: namespace/pod/container, or empty when
// it is not of a pod.
func (p Pod) DisplayName() string {
	if p.Name == "" || p.Container == "" {
		return ""
	}
	return p.Namespace + "/" + p.Name + "/" + p.Container
}

// AnnotationsFor returns the annotations that count for the container of this pod.
func (p Pod) AnnotationsFor(annotations map[string]string) map[string]string {
	if p.Container == "" {
		return annotations
	}
	return ForContainer(annotations, p.Container)
}

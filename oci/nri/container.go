package nri

import (
	"maps"
	"strings"

	"github.com/containerd/nri/pkg/api"
	"github.com/farpage/farpage/oci/bundle"
	"github.com/farpage/farpage/oci/policy"
)

// wish is what a container asks for.
type wish struct {
	id, name   string // name: as people call it
	pid        int
	policy     policy.Policy
	optedIn    bool
	fromImage  bool   // by its environment, which counts only if the agent says so
	mounted    bool   // it was set up when it was created
	impossible string // why it cannot be set up, whoever tries
}

// closed says that the container must not start when it cannot be set up.
func (w wish) closed() bool { return w.policy.OnFailure == policy.OnFailureClosed }

// wishOf reads a container and its pod. The error is about what was asked for: the
// container must not start.
func wishOf(pod *api.PodSandbox, c *api.Container) (wish, error) {
	w := wish{id: c.GetId(), pid: int(c.GetPid()), mounted: mounted(c), impossible: ownKernel(pod.GetRuntimeHandler())}
	w.name = policy.Pod{Namespace: pod.GetNamespace(), Name: pod.GetName(), Container: c.GetName()}.DisplayName()
	annotations := map[string]string{}
	maps.Copy(annotations, pod.GetAnnotations())
	maps.Copy(annotations, c.GetAnnotations())
	limitBytes := max(0, c.GetLinux().GetResources().GetMemory().GetLimit().GetValue())
	var err error
	w.policy, w.optedIn, err = policy.Parse(policy.ForContainer(annotations, c.GetName()), limitBytes)
	if err != nil || w.optedIn {
		return w, err
	}
	environment := policy.FromEnvironment(c.GetEnv())
	if environment[policy.KeyLocal] == "" {
		return w, nil
	}
	w.fromImage = true
	w.policy, w.optedIn, err = policy.Parse(environment, limitBytes)
	return w, err
}

// mounted says whether a container has farpage's folder.
func mounted(c *api.Container) bool {
	for _, m := range c.GetMounts() {
		if m.GetDestination() == policy.MountPoint {
			return true
		}
	}
	return false
}

// ownKernel says why a runtime's containers cannot be managed, by what its handler is
// called everywhere.
func ownKernel(handler string) string {
	for _, name := range []string{"kata", "runsc", "gvisor", "firecracker"} {
		if strings.Contains(strings.ToLower(handler), name) {
			return "its runtime, " + handler + ", runs it on a kernel of its own: farpage is for runc and crun"
		}
	}
	return ""
}

// adjustment has the engine mount a folder and preload the library in it.
func adjustment(c *api.Container, dir string) *api.ContainerAdjustment {
	a := &api.ContainerAdjustment{}
	a.AddMount(&api.Mount{
		Destination: policy.MountPoint, Type: "bind", Source: dir,
		Options: []string{"bind", "ro", "nosuid", "nodev", "exec", "rprivate"}, // a host's /run often is noexec
	})
	const name = "LD_PRELOAD"
	environment, _ := bundle.Preload(c.GetEnv(), policy.Library)
	for _, variable := range environment {
		if value, found := strings.CutPrefix(variable, name+"="); found && strings.Contains(value, policy.Library) {
			a.RemoveEnv(name) // containerd 2.3.0 drops the new one otherwise (its issue 13432)
			a.AddEnv(name, value)
		}
	}
	return a
}

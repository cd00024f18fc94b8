package oci_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	containerd "github.com/containerd/containerd/v2/pkg/oci"
	"github.com/farpage/farpage/oci"
	"github.com/farpage/farpage/oci/policy"
)

// specOf is what containerd.NewContainer would make of the options.
func specOf(opts ...containerd.SpecOpts) (*containerd.Spec, error) {
	ctx := namespaces.WithNamespace(context.Background(), "example")
	return containerd.GenerateSpec(ctx, nil, &containers.Container{ID: "redis"}, opts...)
}

func ExampleWithLocalBudget() {
	spec, err := specOf(
		containerd.WithProcessArgs("redis-server"),
		oci.WithLocalBudget(256<<20, oci.WithAnnotation(policy.KeyFar, "1Gi")),
	)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(spec.Annotations)
	fmt.Println(spec.Hooks.CreateRuntime[0].Path, spec.Hooks.CreateRuntime[0].Args)
	// Output:
	// map[io.farpage.far:1Gi io.farpage.local:268435456]
	// /usr/bin/farpage-hook [farpage-hook createRuntime]
}

func TestTheRuntimeNeedsNoHookAndMuslAPreload(t *testing.T) {
	spec, err := specOf(containerd.WithEnv([]string{"LD_PRELOAD=/own.so"}), oci.WithLocalBudget(64<<20, oci.WithHook(""), oci.WithPreload()))
	if err != nil {
		t.Fatal(err)
	}
	if spec.Hooks != nil {
		t.Errorf("hooks: %+v", spec.Hooks)
	}
	if env := strings.Join(spec.Process.Env, " "); !strings.Contains(env, "LD_PRELOAD=/own.so:/dev/farpage/libfarpage.so") {
		t.Errorf("environment: %s", env)
	}
}

func TestWhatWouldStopTheContainerIsAnErrorWhenItIsMade(t *testing.T) {
	_, err := specOf(containerd.WithMemoryLimit(128<<20), oci.WithLocalBudget(120<<20))
	if err == nil || !strings.Contains(err.Error(), policy.KeyLocal) {
		t.Errorf("more than 90 %% of the limit: %v", err)
	}
	_, err = specOf(oci.WithLocalBudget(64<<20, oci.WithAnnotation("io.farpage.fra", "1Gi")))
	if err == nil || !strings.Contains(err.Error(), "there is no such annotation") {
		t.Errorf("a typo: %v", err)
	}
}

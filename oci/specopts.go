// Package oci is farpage for programs that start containers with containerd's Go client.
package oci

import (
	"context"
	"maps"
	"strconv"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/farpage/farpage/oci/bundle"
	"github.com/farpage/farpage/oci/policy"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// DefaultHook is where packages put farpage's hook.
const DefaultHook = "/usr/bin/farpage-hook"

// Option changes what WithLocalBudget asks for.
type Option func(*options)

type options struct {
	hook        string
	annotations map[string]string
	preload     bool
}

// WithAnnotation sets one more of farpage's annotations, for instance policy.KeyFar.
func WithAnnotation(key, value string) Option {
	return func(o *options) { o.annotations[key] = value }
}

// WithHook names the hook's program, an absolute path on the host. Empty: none is added,
// because the container is run by farpage-runtime.
func WithHook(path string) Option { return func(o *options) { o.hook = path } }

// WithPreload has the container's process preload farpage's library by its environment,
// which images with musl need: their loader reads no /etc/ld.so.preload. Programs of
// glibc complain about it on standard error if the container could not be set up.
func WithPreload() Option { return func(o *options) { o.preload = true } }

// WithLocalBudget is a SpecOpts that has a container keep at most so many bytes of private
// memory local. It is for runc and crun on a host with a running agent.
func WithLocalBudget(localBytes int64, opts ...Option) oci.SpecOpts {
	o := options{hook: DefaultHook, annotations: map[string]string{policy.KeyLocal: strconv.FormatInt(localBytes, 10)}}
	for _, opt := range opts {
		opt(&o)
	}
	return func(_ context.Context, _ oci.Client, _ *containers.Container, s *specs.Spec) error {
		if s.Annotations == nil {
			s.Annotations = map[string]string{}
		}
		maps.Copy(s.Annotations, o.annotations)
		var limitBytes int64
		if s.Linux != nil && s.Linux.Resources != nil && s.Linux.Resources.Memory != nil && s.Linux.Resources.Memory.Limit != nil {
			limitBytes = max(0, *s.Linux.Resources.Memory.Limit)
		}
		if _, _, err := policy.Parse(s.Annotations, limitBytes); err != nil {
			return err // now, and not when the container is started
		}
		if o.preload && s.Process != nil {
			s.Process.Env, _ = bundle.Preload(s.Process.Env, policy.Library)
		}
		if o.hook != "" {
			if s.Hooks == nil {
				s.Hooks = &specs.Hooks{}
			}
			s.Hooks.CreateRuntime = append(s.Hooks.CreateRuntime, specs.Hook{Path: o.hook, Args: []string{"farpage-hook", "createRuntime"}})
		}
		return nil
	}
}

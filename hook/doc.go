// Package hook is what farpage-hook does when an OCI runtime calls it while it
// creates a container (runtime-spec, config.md, "POSIX-platform Hooks": prestart and
// createRuntime). At that moment the container's mounts are made, its root is not yet
// pivoted, and its first process waits.
//
// Run is the story: read the container, its policy and its memory cgroup, tell the
// agent, then put two read-only mounts into the container's root: the agent's folder
// for it at policy.MountPoint, and an /etc/ld.so.preload that names the library in it.
//
// Three rules hold whatever happens. A container without annotations is not touched.
// A wrong annotation stops the container with a message for its author. Everything
// else that goes wrong is a reason: the container starts unmanaged and the agent is
// told why, or, with on-failure=closed, it does not start.
//
// Nothing the image holds is trusted: its paths are resolved inside its root
// (openat2(2), RESOLVE_IN_ROOT), and mounts are made by descriptor, never by path. The
// newest call in use is mount_setattr(2), Linux 5.12.
package hook

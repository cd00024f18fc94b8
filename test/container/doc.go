// Package container runs host programs in containers of their own for the
// end-to-end tests and the demo, with runc and without any engine, image or
// registry.
//
// The root file system is a copy of the programs and of the libraries that their
// loader lists. The bundle is as strict as the engines' defaults: no capability,
// noNewPrivileges, namespaces of its own (network too, so clients talk over a unix
// socket in a bind-mounted folder), and a seccomp profile that refuses
// userfaultfd. Of farpage it holds what the caller asks for, annotations and a
// prestart hook, and nothing else.
//
// Watch samples what the container keeps resident, from outside: the sum of
// Pss_Anon over its processes.
//
// Close removes all that Start made, also when Start or the container failed.
package container

// VM tests farpage in a stock Debian 13 under qemu: systemd as PID 1, its kernel, cgroup v2,
// docker, podman and containerd as Debian has them. It installs the package and takes it
// away again as a user would, and reboots in between.
//
// The image of the Debian is made once and kept (image.go); a run writes to a copy that
// vanishes with it. What a run brings along, the packages of two versions and programs to
// be run in containers, is on a second disk (disk.go). The program in guest/ is started by
// systemd inside, does the steps of package steps and tells of them line by line over a
// serial port. Here they are printed and held against the list (report.go): a VM that
// ends early, or that leaves a step out, has failed.
//
// The CPU is emulated and many times slower than the host's: no times are asserted.
// It needs root, qemu, mmdebstrap and what farpage is built with. Whatever happens, the VM
// is ended and nothing is left but the image.
package main

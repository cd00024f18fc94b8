package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
)

// vm is how an image is run.
type vm struct {
	disk    string       // the second one; empty: none, and what is written to the image stays
	tmp     string       // folder for what is written to the image otherwise; it has no name there
	console string       // file that gets what the kernel and systemd say
	line    func([]byte) // gets each line of the side inside
}

// run boots the image and returns when the VM has powered itself off, or was ended with
// the context. The VM may reboot meanwhile.
func (i image) run(ctx context.Context, v vm) error {
	snapshot := "off"
	if v.disk != "" {
		snapshot = "on"
	}
	args := []string{
		// One CPU: of several, emulated by a thread each, one may still execute what another
		// has patched in the kernel (an int3 of its text_poke(), and the kernel panics).
		// A fifth level of page tables would be one more that the emulation walks.
		"-accel", "tcg", "-cpu", "max,la57=off", "-smp", "1", "-m", "2G",
		"-nodefaults", "-display", "none", "-nic", "none",
		"-kernel", i.kernel, "-initrd", i.initrd, "-append", bootArguments,
		"-drive", "file=" + i.disk + ",format=raw,if=virtio,cache=unsafe,snapshot=" + snapshot,
		"-serial", "file:" + v.console,
		"-serial", "file:/dev/fd/3",
	}
	if v.disk != "" {
		args = append(args, "-drive", "file="+v.disk+",format=raw,if=virtio,cache=unsafe")
	}
	read, write, err := os.Pipe()
	if err != nil {
		return err
	}
	defer read.Close()
	defer write.Close()
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", args...)
	cmd.Env = append(os.Environ(), "TMPDIR="+v.tmp)
	cmd.ExtraFiles = []*os.File{write}
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL} // a terminal's interrupt is for us
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the VM: %w", err)
	}
	_ = write.Close()
	lines := bufio.NewScanner(read)
	lines.Buffer(nil, 4<<20)
	for lines.Scan() {
		v.line(lines.Bytes())
	}
	err = errors.Join(lines.Err(), cmd.Wait())
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		return fmt.Errorf("the VM: %w", err)
	}
	return nil
}

// Package syslog writes to the host's log: what hooks and runtimes print is seen only when
// they fail.
package syslog

import (
	"context"
	"fmt"
	"net"
	"os"
	"strings"
	"time"
)

// Socket is where syslog daemons and systemd's journal listen (syslog(3)).
const Socket = "/dev/log"

// timeout bounds what a container's start waits for a log that is full.
const timeout = 100 * time.Millisecond

// warning is facility daemon (3), severity warning (4) (RFC 3164, 4.1.1).
const warning = 3<<3 | 4

// Warn writes one message to a log socket, in a program's name. Engines show what a hook printed
// only when it failed, and crun not even then (unless the annotation
// run.oci.hooks.stderr names a file): `journalctl -t farpage-hook` always has it. A host
// without a log daemon is no error.
func Warn(socket, program, message string) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "unixgram", socket)
	if err != nil {
		return
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(timeout)); err != nil {
		return
	}
	// One datagram is one message; a line end would begin another in some daemons.
	message = strings.ReplaceAll(message, "\n", " ")
	fmt.Fprintf(conn, "<%d>%s %s[%d]: %s", warning, time.Now().Format(time.Stamp), program, os.Getpid(), message)
}

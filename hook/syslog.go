package hook

import (
	"context"
	"fmt"
	"net"
	"os"
	"strings"
	"time"
)

// syslogSocket is where syslog daemons and systemd's journal listen (syslog(3)).
const syslogSocket = "/dev/log"

// syslogTimeout bounds what a container's start waits for a log that is full.
const syslogTimeout = 100 * time.Millisecond

// syslogWarning is facility daemon (3), severity warning (4) (RFC 3164, 4.1.1).
const syslogWarning = 3<<3 | 4

// logToSyslog writes one message to the host's log. Engines show what a hook printed
// only when it failed, and crun not even then (unless the annotation
// run.oci.hooks.stderr names a file): `journalctl -t farpage-hook` always has it. A host
// without a log daemon is no error.
func logToSyslog(socket, message string) {
	ctx, cancel := context.WithTimeout(context.Background(), syslogTimeout)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "unixgram", socket)
	if err != nil {
		return
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(syslogTimeout)); err != nil {
		return
	}
	// One datagram is one message; a line end would begin another in some daemons.
	message = strings.ReplaceAll(message, "\n", " ")
	fmt.Fprintf(conn, "<%d>%s farpage-hook[%d]: %s", syslogWarning, time.Now().Format(time.Stamp), os.Getpid(), message)
}

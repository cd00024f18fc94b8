#!/bin/sh
# After a removal or a purge.
set -e

if [ -d /run/systemd/system ]; then
	systemctl daemon-reload
fi
# Debian's purge: what the agent has made, unless somebody has put something there.
if [ "$1" = purge ]; then
	rm -f /etc/farpage/config.toml
	rmdir /etc/farpage /var/lib/farpage /run/farpage 2>/dev/null || true
fi

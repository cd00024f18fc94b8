#!/bin/sh
# After an installation or an upgrade. With an upgrade the agent is started anew: it
# takes over what the old one served.
set -e

if [ -d /run/systemd/system ]; then
	systemctl daemon-reload
	if systemctl is-enabled --quiet farpage.service 2>/dev/null; then
		systemctl try-restart farpage.service farpage-nri.service
	fi
fi
case $1 in
configure)
	# Debian: $2 is the version that was there before.
	[ -n "$2" ] && exit 0
	;;
1) ;; # RPM: the first installation
*) exit 0 ;;
esac
echo "farpage: the agent and an engine are set up by"
echo "  farpage install systemd --restart"
echo "  farpage install docker    (or containerd, podman, crio)"

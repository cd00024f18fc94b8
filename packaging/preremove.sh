#!/bin/sh
# Before a removal; an upgrade removes nothing.
set -e

case $1 in
remove | 0) ;;
*) exit 0 ;;
esac

# Without an agent the pages of a managed container could not come back.
managed=$(farpage ps --json 2>/dev/null | grep -c '"state": *"managed"' || true)
if [ "${managed:-0}" -gt 0 ]; then
	echo "farpage: $managed processes are managed (farpage ps): end their containers first" >&2
	exit 1
fi
for engine in docker containerd podman crio cdi; do
	farpage uninstall "$engine" || echo "farpage: $engine: its configuration still names farpage" >&2
done
if [ -d /run/systemd/system ]; then
	systemctl disable --now farpage-nri.path farpage.socket farpage.service 2>/dev/null || true
	systemctl stop farpage-nri.service 2>/dev/null || true
fi

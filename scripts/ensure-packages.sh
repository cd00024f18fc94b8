#!/bin/bash
# Installs what a purpose needs and is not there yet, and says so.
#
#   scripts/ensure-packages.sh build|test|lint|demo|vm...
#
# Knows Debian and its kin; elsewhere it says which commands are missing.
set -euo pipefail

declare -A package_of=(
	[gcc]=gcc [make]=make [python3]=python3 [redis-server]=redis-server
	[xz]=xz-utils [runc]=runc [crun]=crun [mke2fs]=e2fsprogs [mount]=mount [podman]=podman
	[containerd]=containerd [catatonit]=catatonit [buildah]=buildah [mmdebstrap]=mmdebstrap [qemu-system-x86_64]=qemu-system-x86 [rpm]=rpm [shellcheck]=shellcheck [musl-gcc]=musl-tools
	[/usr/include/stdio.h]=libc6-dev
)

needed_for() {
	case $1 in
	build) echo gcc make /usr/include/stdio.h ;;
	test) echo gcc make /usr/include/stdio.h python3 redis-server xz runc crun musl-gcc mke2fs mount \
		podman buildah catatonit containerd mmdebstrap rpm ;;
	lint) echo gcc make /usr/include/stdio.h musl-gcc shellcheck ;;
	demo) echo gcc make /usr/include/stdio.h redis-server runc ;;
	vm) echo gcc make /usr/include/stdio.h redis-server mke2fs mmdebstrap qemu-system-x86_64 ;;
	*)
		echo "ensure-packages: unknown purpose \"$1\": want build, test, lint, demo or vm" >&2
		return 2
		;;
	esac
}

is_there() {
	case $1 in
	/*) [[ -e $1 ]] ;;
	# sbin may not be in an ordinary user's PATH.
	*) PATH=$PATH:/usr/sbin:/sbin command -v "$1" >/dev/null ;;
	esac
}

missing=()
for purpose in "$@"; do
	needs=$(needed_for "$purpose")
	for need in $needs; do
		is_there "$need" || missing+=("${package_of[$need]}")
	done
done
((${#missing[@]})) || exit 0
mapfile -t missing < <(printf '%s\n' "${missing[@]}" | sort -u)

if ! command -v apt-get >/dev/null; then
	echo "ensure-packages: please install what Debian calls: ${missing[*]}" >&2
	exit 1
fi
if ((EUID != 0)); then
	echo "ensure-packages: missing: ${missing[*]}; run: sudo apt-get install ${missing[*]}" >&2
	exit 1
fi
echo "ensure-packages: installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq

# The tests start their own redis: the package's service must not start beside
# them, nor at the next boot. policy-rc.d is Debian's way to say so.
policy=/usr/sbin/policy-rc.d
if [[ ! -e $policy ]]; then
	trap 'rm -f "$policy"' EXIT
	printf '#!/bin/sh\nexit 101\n' >"$policy"
	chmod +x "$policy"
fi
apt-get install -y -qq --no-install-recommends "${missing[@]}"
if [[ " ${missing[*]} " == *" redis-server "* && -d /run/systemd/system ]]; then
	systemctl disable --quiet redis-server
fi

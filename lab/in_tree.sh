#!/bin/bash
# in_tree.sh RELEASE nobody|root DIRECTORY COMMAND...: runs a command in a Debian of that release, which has no
# compilers, no network and nothing of this checkout. DIRECTORY is /given there, read-only; what is written is
# forgotten.
set -euo pipefail
lab=$(dirname "$(readlink -f "$0")")
release=$1 user=$2 given=$(readlink -f "$3")
# shellcheck source-path=SCRIPTDIR
. "$lab/layers.sh"
shift 3

layer "$tree" "unpacking Debian $release with kernel, Docker, containerd and Podman (about 40 s)" \
    "$lab/tree.sh" "$suite" "$only"
# In this script's own mount namespace: it goes with it.
place=$CIMA_CACHE/in-tree
mkdir -p "$place"
mount -t tmpfs -o mode=0755 tmpfs "$place"
compose "$place" "$CIMA_CACHE/$tree"
show "$place" "$given" /given
trap - EXIT
as=()
[ "$user" = root ] || as=(setpriv --reuid="$user" --regid=65534 --clear-groups)
unshare --net chroot "$place/root" "${as[@]}" \
    env -i HOME=/tmp LC_ALL=C.UTF-8 PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$@"

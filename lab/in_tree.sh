#!/bin/bash
# in_tree.sh RELEASE DIRECTORY COMMAND...: runs a command as nobody in a Debian of that release, which has no
# compilers, no network and nothing of this checkout. DIRECTORY is /given there, read-only; what is written is
# forgotten.
set -euo pipefail
lab=$(dirname "$(readlink -f "$0")")
release=$1 given=$(readlink -f "$2")
# shellcheck source-path=SCRIPTDIR
. "$lab/layers.sh"
shift 2

layer "$tree" "unpacking Debian $release with kernel, Docker, containerd and Podman (about 40 s)" \
    "$lab/tree.sh" "$suite" "$only"
# In this script's own mount namespace: it goes with it.
place=$CIMA_CACHE/in-tree
mkdir -p "$place"
mount -t tmpfs -o mode=0755 tmpfs "$place"
compose "$place" "$CIMA_CACHE/$tree"
show "$place" "$given" /given
trap - EXIT
unshare --net chroot "$place/root" setpriv --reuid=65534 --regid=65534 --clear-groups \
    env -i HOME=/tmp LC_ALL=C.UTF-8 PATH=/usr/local/bin:/usr/bin:/bin "$@"

#!/bin/bash
# image.sh 12|13 release|backports: prints the directory with the disk (root.ext4) and the kernel (vmlinuz)
# of a Debian guest in which this checkout is installed; the kernel is the release's own, or the newest
# that there is for it.
#
# Everything is cached in layers, each under the hash of what it is made from:
#   tree     Debian, the engines and the kernel (tree.sh)
#   tools    over tree: compilers
#   wheels   over tools: the dependencies, built
#   kernel   over tree: the backported kernel, where that is wanted
#   deps     over tree: install.sh has run once, so the dependencies are there
#   image    over deps: install.sh has run with this checkout; made into a disk
# A layer is made in NAME.new and renamed when it is whole, under a lock, in namespaces of its own: what
# is mounted and running there ends with this script, however it ends.
set -euo pipefail
umask 022
lab=$(dirname "$(readlink -f "$0")")
checkout=$(dirname "$lab")
release=$1 kernel=$2
export CIMA_CACHE=${CIMA_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/cima-runc}
python=$checkout/.venv/bin/python
[ -x "$python" ] || python=/usr/bin/python3

if [ -z "${pip_files+set}" ]; then
    mkdir -p "$CIMA_CACHE"
    settings=$("$python" "$lab/pip_settings.py")
    eval "$settings"
    as_root=()
    [ "$(id -u)" = 0 ] || as_root=(sudo --preserve-env)
    exec "${as_root[@]}" unshare --mount --propagation private --pid --fork --kill-child --mount-proc "$0" "$@"
fi

say() { echo "lab: [Debian $release] $*" >&2; }
key() { sha256sum | cut -c1-16; }

# layer NAME WHAT COMMAND...: make the layer with the command, which gets its directory, unless it is there.
layer() {
    local what=$2 directory=$CIMA_CACHE/$1 lock start=$SECONDS
    shift 2
    exec {lock}>"$directory.lock"
    flock --nonblock "$lock" || { say "waiting for another build of the same"; flock "$lock"; }
    if [ ! -d "$directory" ]; then
        say "$what"
        rm -rf "$directory.new"
        mkdir "$directory.new"
        # Beside the layer: some commands take an empty directory only.
        log=$directory.log
        "$@" "$directory.new" >"$log" 2>&1
        mv "$directory.new" "$directory"
        rm -f "$log"
        log=/dev/null
        say "  done in $((SECONDS - start)) s"
    fi
    touch "$directory"
    exec {lock}>&-
}

log=/dev/null
trap '[ $? = 0 ] || { tail -n 40 "$log" >&2; say "failed; all of it is in $log"; }' EXIT

# compose DIRECTORY LOWER...: mount an overlay at DIRECTORY/root that is written to DIRECTORY/upper.
compose() {
    local directory=$1 IFS=:
    shift
    mkdir -p "$directory"/{root,upper,work}
    mount -t overlay overlay -o "lowerdir=$*,upperdir=$directory/upper,workdir=$directory/work" "$directory/root"
    mount -t proc proc "$directory/root/proc"
    mount --rbind /dev "$directory/root/dev"
}

# show DIRECTORY PATH [AS]: show a file or directory of this machine inside a composed root, read-only.
show() {
    local place=$1/root${3:-$2}
    if [ -d "$2" ]; then mkdir -p "$place"; else mkdir -p "$(dirname "$place")"; touch "$place"; fi
    mount --bind -o ro "$2" "$place"
}

# inside DIRECTORY COMMAND...: run a command in a composed root.
inside() {
    local root=$1/root
    shift
    chroot "$root" env HOME=/root TMPDIR=/tmp LC_ALL=C.UTF-8 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore \
        PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$@"
}

decompose() {
    umount --recursive "$1/root"
    rm -rf "${1:?}"/{root,work}
}

# reach_out DIRECTORY: let apt and pip in a composed root use the network as this machine's do.
reach_out() {
    local file
    show "$1" "$(readlink -f /etc/resolv.conf)" /etc/resolv.conf
    [ ! -d /etc/apt/mirrors ] || show "$1" /etc/apt/mirrors
    for file in $pip_files; do show "$1" "$file"; done
}

# install_packages DIRECTORY PACKAGE...: with apt, in a composed root. INITRD=No: as in tree.sh.
install_packages() {
    local directory=$1
    shift
    inside "$directory" apt-get -q update
    inside "$directory" env DEBIAN_FRONTEND=noninteractive INITRD=No apt-get -q install -y --no-install-recommends \
        -o Dpkg::Options::=--force-unsafe-io "$@"
}

make_tools() {
    compose "$1" "$CIMA_CACHE/$tree"
    reach_out "$1"
    # shellcheck disable=SC2086  # one package a word
    install_packages "$1" $build_packages
    inside "$1" python3 -m venv /opt/build
    decompose "$1"
}

# pip keeps what it built: a dependency more does not build all the others again.
make_wheels() {
    compose "$1" "$CIMA_CACHE/$tools/upper" "$CIMA_CACHE/$tree"
    reach_out "$1"
    mkdir -p "$CIMA_CACHE/pip-$release" "$1/root/pip"
    mount --bind "$CIMA_CACHE/pip-$release" "$1/root/pip"
    # shellcheck disable=SC2086  # one requirement a word
    inside "$1" env PIP_CACHE_DIR=/pip /opt/build/bin/pip wheel --wheel-dir /wheels $requirements
    inside "$1" /opt/build/bin/pip install --no-index --find-links /wheels hatchling
    decompose "$1"
}

make_kernel() {
    local list=etc/apt/sources.list suite
    compose "$1" "$CIMA_CACHE/$tree"
    reach_out "$1"
    sed -n 's/^\(deb [^ ]* \)\([a-z]*\) main$/\1\2-backports main/p' "$1/root/$list" >"$1/root/$list.d/backports.list"
    suite=$(sed -n 's/^deb [^ ]* \([a-z]*-backports\) main$/\1/p' "$1/root/$list.d/backports.list")
    install_packages "$1" linux-image-cloud-amd64/"$suite"
    decompose "$1"
}

# Wheels only: the guest is never a place to compile in.
install_wheel() {
    show "$1" "$checkout/examples" /mnt
    show "$1" "$CIMA_CACHE/$wheels/upper/wheels" /wheels
    inside "$1" env PIP_NO_CACHE_DIR=1 PIP_NO_INDEX=1 PIP_FIND_LINKS=/wheels /mnt/install.sh "/wheel/$(ls "$1/root/wheel")"
}

build_wheel() {
    local build=$1/build
    compose "$build" "$CIMA_CACHE/$wheels/upper" "$CIMA_CACHE/$tools/upper" "$CIMA_CACHE/$tree"
    mkdir "$build/root/src"
    source_archive | tar -x -C "$build/root/src"
    inside "$build" sh -c 'cd /src && /opt/build/bin/hatchling build --target wheel'
    cp -R "$build/root/src/dist" "$1/root/wheel"
    umount --recursive "$build/root"
    rm -rf "$build"
}

make_deps() {
    compose "$1" "$CIMA_CACHE/$tree"
    build_wheel "$1"
    install_wheel "$1"
    inside "$1" env PIP_NO_CACHE_DIR=1 PIP_NO_INDEX=1 PIP_FIND_LINKS=/wheels \
        /opt/cima/bin/pip install 'cima-runc[https]'
    inside "$1" python3 -m venv --without-pip /opt/cima-test
    # shellcheck disable=SC2086  # one package a word
    inside "$1" env PIP_NO_CACHE_DIR=1 PIP_NO_INDEX=1 PIP_FIND_LINKS=/wheels \
        /opt/cima/bin/pip --python /opt/cima-test/bin/python install $test_packages
    # shellcheck disable=SC2016  # the inner shell expands it
    inside "$1" sh -c 'echo /opt/cima/lib/python3*/site-packages >"$(echo /opt/cima-test/lib/python3*/site-packages)/cima.pth"'
    rm -rf "$1/root/wheel"
    decompose "$1"
}

make_image() {
    local etc=$1/root/etc
    compose "$1" "$CIMA_CACHE/$deps/upper" ${newer:+"$CIMA_CACHE/$newer/upper"} "$CIMA_CACHE/$tree"
    build_wheel "$1"
    install_wheel "$1"
    umount "$1/root/mnt" "$1/root/wheels"
    # For whoever tries an upgrade in the guest.
    mv "$1/root/wheel" "$1/root/opt/cima-test/wheel"
    rm -rf "$1/root/wheels"
    cp -R "$lab"/rootfs/* "$1/root/"
    install -D -m 0644 "$checkout/examples/docker/daemon.json" "$etc/docker/daemon.json"
    install -D -m 0644 "$checkout/examples/containerd/config.toml" "$etc/containerd/config.toml"
    install -D -m 0644 "$checkout/examples/podman/containers.conf" "$etc/containers/containers.conf.d/cima-runc.conf"
    umount --recursive "$1/root/proc" "$1/root/dev"
    # As after an update: systemd rebuilds no caches at boot.
    touch "$1"/root/{etc,var}/.updated
    cp "$(printf '%s\n' "$1"/root/boot/vmlinuz-* | sort -V | tail -n 1)" "$1/vmlinuz"
    # No journal: the disk is never written to, a guest writes to a snapshot that goes with it.
    mke2fs -q -t ext4 -O ^has_journal -E lazy_itable_init=1 -d "$1/root" "$1/root.ext4" 8G
    umount "$1/root"
    rm -rf "${1:?}"/{root,work,upper}
}

# What the wheel and the installation are made from: all but what only developers need.
source_archive() {
    local part parts=()
    for part in "$checkout"/*; do
        part=${part##*/}
        case $part in build | dev | dist | docs | lab | tests) ;; *) parts+=("$part") ;; esac
    done
    tar_of "$checkout" "${parts[@]}"
}

# tar_of DIRECTORY PART...: the same bytes for the same files.
tar_of() {
    tar -C "$1" --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner \
        --exclude=__pycache__ --exclude='*.o' -c "${@:2}"
}

# grpcio: containerd's CRI is spoken to directly, Debian has no crictl.
test_packages="pytest hypothesis grpcio"
requirements=$(cd "$checkout" && "$python" - <<END
import tomllib
file = tomllib.load(open("pyproject.toml", "rb"))
project = file["project"]
https = project["optional-dependencies"]["https"]
print(*file["build-system"]["requires"], *project["dependencies"], *https, *"$test_packages".split())
END
)
build_packages="gcc libc6-dev musl-tools pkg-config python3-dev libtss2-dev clang libbpf-dev"

tree=tree-$release-$(key <"$lab/tree.sh")
tools=tools-$release-$(echo "$tree $build_packages" | key)
wheels=wheels-$release-$(echo "$tools $requirements" | key)
deps=deps-$release-$({ echo "$wheels"; cat "$checkout/examples/install.sh"; } | key)
newer=
[ "$kernel" = release ] || newer=kernel-$release-$({ echo "$tree"; declare -f make_kernel; } | key)
image=image-$release-$({ echo "$deps $newer"; cat "$lab/image.sh"; source_archive; tar_of "$lab" rootfs; } | key)

layer "$tree" "unpacking Debian $release with kernel, Docker, containerd and Podman (about 40 s)" \
    "$lab/tree.sh" "$release"
layer "$tools" "installing compilers beside it (about 20 s)" make_tools
layer "$wheels" "building the dependencies (about 30 s)" make_wheels
layer "$deps" "installing the dependencies (about 10 s)" make_deps
[ -z "$newer" ] || layer "$newer" "installing the backported kernel (about 20 s)" make_kernel
layer "$image" "installing this checkout and writing the disk (about 10 s)" make_image

# Several checkouts share the cache. What nobody used for two hours goes, but for the newest few.
prune() {
    local directory
    find "$CIMA_CACHE" -maxdepth 1 -type d -name "$1-$release-*" -printf '%T@ %p\n' | sort -rn |
        cut -d' ' -f2- | tail -n "+$(($2 + 1))" | while read -r directory; do
        [ -n "$(find "$directory" -maxdepth 0 -mmin +120)" ] || continue
        rm -rf "$directory" "$directory.lock"
    done
}
prune image 4
prune kernel 1
prune deps 1
prune wheels 1
prune tools 1
prune tree 1
echo "$CIMA_CACHE/$image"

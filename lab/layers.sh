# shellcheck shell=bash disable=SC2154  # lab and release are the caller's
# Layers of Debian guests, to be sourced with `release` set: trees, compilers, wheels, and how more are made
# over them.
#
# Everything is cached, each layer under the hash of what it is made from:
#   tree     Debian, the engines and the kernel (tree.sh)
#   tools    over tree: compilers
#   wheels   over tools: the dependencies, built
# A layer is made in NAME.new and renamed when it is whole, under a lock, in namespaces of its own: what
# is mounted and running there ends with the script that sources this, however it ends.
set -euo pipefail
umask 022
checkout=$(dirname "$lab")
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
    local what=$2 directory=$CIMA_CACHE/$1 lock='' start=$SECONDS
    shift 2
    # Who held it may have removed it (cache.py): then another one would hold what was made there since.
    until [ -n "$lock" ] && [ "$directory.lock" -ef "/proc/self/fd/$lock" ]; do
        [ -z "$lock" ] || exec {lock}>&-
        exec {lock}>"$directory.lock"
        flock --nonblock "$lock" || { say "waiting for another build of the same"; flock "$lock"; }
    done
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

# prune NAME COUNT...: of each name of layers, keep this many of the release's, and what was used lately.
prune() { "$python" "$lab/cache.py" "$release" "$@"; }

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

# What the wheel and the installation are made from: all but what only developers need.
source_archive() {
    local part parts=()
    for part in "$checkout"/*; do
        part=${part##*/}
        case $part in build | dev | dist | docs | lab | packaging | tests) ;; *) parts+=("$part") ;; esac
    done
    tar_of "$checkout" "${parts[@]}"
}

# tar_of DIRECTORY PART...: the same bytes for the same files.
tar_of() {
    tar -C "$1" --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner \
        --exclude=__pycache__ --exclude='*.o' -c "${@:2}"
}

# grpcio: containerd's CRI is spoken to directly, Debian has no crictl.
test_packages="pytest hypothesis grpcio coverage"
# listed NAME...: requirements in pyproject.toml, to build, to run, or of an extra.
listed() {
    (cd "$checkout" && "$python" - "$@") <<'END'
import sys, tomllib
file = tomllib.load(open("pyproject.toml", "rb"))
project = file["project"]
by_name = {"build": file["build-system"]["requires"], "run": project["dependencies"]}
by_name |= project["optional-dependencies"]
print(*(one for name in sys.argv[1:] for one in by_name[name]))
END
}
fleet_packages=$(listed fleet)
requirements="$(listed build run host https) $fleet_packages $test_packages"
build_packages="gcc libc6-dev musl-tools pkg-config python3-dev libtss2-dev clang libbpf-dev"

known=$(sed -n "s/^$release  *//p" "$lab/releases")
[ -n "$known" ] || { say "there is no such guest; $lab/releases lists those that there are"; exit 2; }
read -r suite only <<<"$known"
tree=tree-$release-$({ cat "$lab/tree.sh"; echo "$known"; } | key)
tools=tools-$release-$(echo "$tree $build_packages" | key)
wheels=wheels-$release-$(echo "$tools $requirements" | key)

# The layers that all others lie over.
make_base_layers() {
    layer "$tree" "unpacking Debian $release with kernel, Docker, containerd and Podman (about 40 s)" \
        "$lab/tree.sh" "$suite" "$only"
    layer "$tools" "installing compilers beside it (about 20 s)" make_tools
    layer "$wheels" "building the dependencies (about 30 s)" make_wheels
}

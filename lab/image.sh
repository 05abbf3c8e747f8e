#!/bin/bash
# image.sh RELEASE release|backports installed|packages [PACKAGE...]: prints the directory with the disk (root.ext4), the kernel
# (vmlinuz) and the initramfs of a Debian guest in which this checkout is installed. The release is one of those in
# the file releases, the kernel its own, or the newest that there is for it; the packages are Debian's, more than
# others need. Over the layers of layers.sh lie
#   kernel   over tree: the backported kernel, where that is wanted
#   more     over tree and kernel: more of Debian's packages, where they are wanted
#   deps     over tree: install.sh has run once, so the dependencies are there
#   image    over deps: install.sh has run with this checkout; made into a disk
# or, with "packages", over tree alone: pytest, and in /root/packages what installs this checkout and a
# later version of it.
set -euo pipefail
lab=$(dirname "$(readlink -f "$0")")
release=$1 kernel=$2 what=$3
more_packages=${*:4}
# shellcheck source-path=SCRIPTDIR
. "$lab/layers.sh"

make_kernel() {
    local list=etc/apt/sources.list pocket
    compose "$1" "$CIMA_CACHE/$tree"
    reach_out "$1"
    sed -n 's/^\(deb [^ ]* \)\([a-z]*\) main$/\1\2-backports main/p' "$1/root/$list" >"$1/root/$list.d/backports.list"
    pocket=$(sed -n 's/^deb [^ ]* \([a-z]*-backports\) main$/\1/p' "$1/root/$list.d/backports.list")
    install_packages "$1" linux-image-cloud-amd64/"$pocket"
    decompose "$1"
}

make_more() {
    compose "$1" ${newer:+"$CIMA_CACHE/$newer/upper"} "$CIMA_CACHE/$tree"
    reach_out "$1"
    # shellcheck disable=SC2086  # one package a word
    install_packages "$1" $more_packages
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
    inside "$1" python3 -m venv --without-pip /opt/cima-test
    # shellcheck disable=SC2086  # one package a word
    inside "$1" env PIP_NO_CACHE_DIR=1 PIP_NO_INDEX=1 PIP_FIND_LINKS=/wheels \
        /opt/cima/bin/pip --python /opt/cima-test/bin/python install $test_packages
    # shellcheck disable=SC2016  # the inner shell expands it
    inside "$1" sh -c 'echo /opt/cima/lib/python3*/site-packages >"$(echo /opt/cima-test/lib/python3*/site-packages)/cima.pth"'
    # The fleet's service has an environment of its own: what tests import at once does not grow by it.
    inside "$1" python3 -m venv --without-pip /opt/cima-test/fleet
    # shellcheck disable=SC2016  # the inner shell expands it
    inside "$1" sh -c 'echo /opt/cima/lib/python3*/site-packages >"$(echo /opt/cima-test/fleet/lib/python3*/site-packages)/cima.pth"'
    # shellcheck disable=SC2086  # one package a word
    inside "$1" env PIP_NO_CACHE_DIR=1 PIP_NO_INDEX=1 PIP_FIND_LINKS=/wheels \
        /opt/cima/bin/pip --python /opt/cima-test/fleet/bin/python install $fleet_packages
    rm -rf "$1/root/wheel"
    decompose "$1"
}

make_image() {
    local etc=$1/root/etc uuid
    compose "$1" "$CIMA_CACHE/$deps/upper" ${more:+"$CIMA_CACHE/$more/upper"} ${newer:+"$CIMA_CACHE/$newer/upper"} "$CIMA_CACHE/$tree"
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
    # install.sh saw this machine's file system, not the guest's.
    uuid=$(cat /proc/sys/kernel/random/uuid)
    sed -i "s/ fsuuid=[^ ]*//; s/ fowner=[0-9]*/& fsuuid=$uuid/" "$etc/ima/ima-policy"
    make_disk "$1" "$uuid"
}

# What is to be tried are the packages: nothing here is configured for them, and pytest alone is beside them.
make_packages_image() {
    local version site
    for version in now later; do
        mkdir -p "$1/$version"
        CIMA_VERSION=$([ "$version" = now ] || echo 99.0) "$checkout/packaging/build.sh" "$release" "$1/$version"
    done
    compose "$1" "$CIMA_CACHE/$tree"
    mkdir "$1/root/root/packages"
    mv "$1"/{now,later} "$1/root/root/packages/"
    inside "$1" python3 -m venv --without-pip /opt/cima-test
    site=$(echo "$1"/root/opt/cima-test/lib/python3*/site-packages)
    python3 - "$CIMA_CACHE/$wheels/upper/wheels" "$site" <<'END'
import pathlib, sys, zipfile
wheels, site = map(pathlib.Path, sys.argv[1:])
for name in ("pytest", "pluggy", "iniconfig", "packaging", "pygments", "hypothesis", "sortedcontainers"):
    [wheel] = wheels.glob(f"{name}-*.whl")
    zipfile.ZipFile(wheel).extractall(site)
END
    cp -R "$lab"/rootfs/* "$1/root/"
    make_disk "$1" "$(cat /proc/sys/kernel/random/uuid)"
}

# make_disk DIRECTORY UUID: of what is composed.
make_disk() {
    local kernel uuid=$2
    umount --recursive "$1/root/proc" "$1/root/dev"
    # As after an update: systemd rebuilds no caches at boot.
    touch "$1"/root/{etc,var}/.updated
    kernel=$(printf '%s\n' "$1"/root/boot/vmlinuz-* | sort -V | tail -n 1)
    cp "$kernel" "$1/vmlinuz"
    "$lab/initramfs.sh" "$1/root" "${kernel##*/vmlinuz-}" "$1/initramfs"
    # No journal: the disk is never written to, a guest writes to a snapshot that goes with it.
    mke2fs -q -t ext4 -U "$uuid" -O ^has_journal -E lazy_itable_init=1 -d "$1/root" "$1/root.ext4" 8G
    umount "$1/root"
    rm -rf "${1:?}"/{root,work,upper}
}

deps=deps-$release-$({ echo "$wheels"; cat "$checkout/examples/install.sh"; } | key)
newer=
[ "$kernel" = release ] || newer=kernel-$release-$({ echo "$tree"; declare -f make_kernel; } | key)
more=
[ -z "$more_packages" ] || more=more-$release-$({ echo "$tree $newer $more_packages"; declare -f make_more; } | key)
image=image-$release-$({ echo "$deps $newer${more:+ $more}"; cat "$lab/image.sh" "$lab/layers.sh" "$lab/initramfs.sh"; source_archive; tar_of "$lab" rootfs; } | key)

make_base_layers
if [ "$what" = packages ]; then
    image=packaged-$release-$({ echo "$wheels"; cat "$lab"/{image,layers,initramfs}.sh "$checkout/packaging/build.sh"; source_archive; tar_of "$lab" rootfs; tar_of "$checkout" packaging; } | key)
    layer "$image" "making packages, and a disk that holds them (some minutes)" make_packages_image
    prune packaged 1 packages 2 debtools 1
    echo "$CIMA_CACHE/$image"
    exit
fi
layer "$deps" "installing the dependencies (about 10 s)" make_deps
[ -z "$newer" ] || layer "$newer" "installing the backported kernel (about 20 s)" make_kernel
[ -z "$more" ] || layer "$more" "installing $more_packages" make_more
layer "$image" "installing this checkout and writing the disk (about 10 s)" make_image

prune image 4 kernel 1 more 1 deps 1 packaged 1 packages 2 debtools 1 wheels 1 tools 1 tree 1
echo "$CIMA_CACHE/$image"

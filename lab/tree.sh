#!/bin/sh
# tree.sh SUITE PACKAGES DIRECTORY: unpacks a Debian guest with its kernel, engines and TPM tools, and with the
# packages that this suite alone needs. It holds nothing of this checkout, so it is made once and cached.
set -eu
umask 022
suite=$1 only=$2 tree=$3

packages="linux-image-cloud-amd64 systemd systemd-sysv dbus udev kmod procps util-linux iproute2
 docker.io rootlesskit containerd runc crun podman conmon netavark aardvark-dns iptables nftables apparmor
 docker-compose catatonit fuse-overlayfs uidmap e2fsprogs xfsprogs btrfs-progs dbus-user-session slirp4netns umoci
 python3 python3-venv libbpf1 tpm2-tools busybox-static jq strace ca-certificates file $only"

# The machine's own package sources, with the guest's release in place of the machine's.
sources() {
    # shellcheck disable=SC1091
    own=$(. /etc/os-release && echo "$VERSION_CODENAME")
    # shellcheck disable=SC2016  # the fields are apt's
    apt-get indextargets --format '$(CODENAME) $(REPO_URI)' 'Created-By: Packages' | sort -u |
        while read -r codename uri; do
            case $uri in cdrom:*) continue ;; esac
            case $codename in
                "$own" | "$own-updates" | "$own-security")
                    echo "deb $uri $suite${codename#"$own"} main" ;;
            esac
        done
}
lines=$(sources)
[ -n "$lines" ] || { apt-get -q update >&2; lines=$(sources); }
[ -n "$lines" ] || { echo "lab: apt knows no Debian package source; see /etc/apt/sources.list.d" >&2; exit 1; }

# How the machine's apt reaches the network (proxies, for instance) holds for the guest's as well.
options=$(mktemp)
trap 'rm -f "$options"' EXIT
# A suite that is still tested changes daily, and a mirror of it may be days behind: its signature still holds.
printf 'Acquire::Languages "none";\nAcquire::Check-Valid-Until "false";\n' >"$options"
apt-config dump | grep -E '^Acquire::(http|https)::' >>"$options" || true

# INITRD=No: the kernel boots without an initramfs, so none is made.
echo "$lines" | INITRD=No mmdebstrap --quiet --mode=root --variant=minbase \
    --include="$(echo "$packages" | tr -s ' \n' ',')" \
    --aptopt="$options" --dpkgopt=force-unsafe-io \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/info/*' \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    "$suite" "$tree" -

echo lab >"$tree/etc/hostname"
printf '127.0.0.1 localhost lab\n::1 localhost\n' >"$tree/etc/hosts"
echo 6ca1ab00000000000000000000000001 >"$tree/etc/machine-id"
: >"$tree/etc/fstab"
: >"$tree/etc/resolv.conf"
passwd --root "$tree" --delete root >/dev/null

# Nothing in the background makes timings or the kernel's log unsteady, and what a guest with one disk
# and no login does not need, it does not wait for: udev alone costs it seconds under emulation.
systemctl --root="$tree" --quiet mask apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer \
    e2scrub_all.timer e2scrub_reap.service fstrim.timer systemd-tmpfiles-clean.timer \
    podman-auto-update.timer podman-auto-update.service podman-restart.service podman.service \
    netavark-dhcp-proxy.socket netavark-dhcp-proxy.service apparmor.service \
    systemd-udevd.service systemd-udevd-kernel.socket systemd-udevd-control.socket \
    systemd-udev-trigger.service systemd-logind.service getty.target getty-static.service \
    systemd-firstboot.service systemd-pstore.service systemd-update-utmp.service \
    systemd-update-utmp-runlevel.service systemd-binfmt.service systemd-random-seed.service \
    proc-sys-fs-binfmt_misc.automount sys-kernel-config.mount sys-fs-fuse-connections.mount
systemctl --root="$tree" --quiet set-default multi-user.target

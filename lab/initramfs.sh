#!/bin/bash
# initramfs.sh ROOT KERNEL FILE: writes the first program of a guest: it loads the driver of the disk, mounts
# it and hands over. Debian's cloud kernel has NVMe built in and virtio as modules, but QEMU can freeze no
# guest that has NVMe (7.2, 10.0).
set -euo pipefail
root=$1 kernel=$2 file=$3
made=$file.d
mkdir -p "$made"/{bin,dev,proc,root,modules}
cp "$root/bin/busybox" "$made/bin/busybox"

# In the order in which they need each other; a kernel may have some of them built in.
for module in virtio/{virtio_ring,virtio,virtio_pci_legacy_dev,virtio_pci_modern_dev,virtio_pci} block/virtio_blk; do
    source=$root/lib/modules/$kernel/kernel/drivers/$module.ko target=$made/modules/${module##*/}.ko
    if [ -e "$source" ]; then cp "$source" "$target"; fi
    if [ -e "$source.xz" ]; then xz -dc "$source.xz" >"$target"; fi
    if [ -e "$target" ]; then echo "${target##*/}" >>"$made/modules/order"; fi
done

# cima.probe: asked only whether a guest runs on this machine at all.
cat >"$made/init" <<'END'
#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
if /bin/busybox grep -qw cima.probe /proc/cmdline; then
    echo cima-lab: init runs
    /bin/busybox poweroff -f
fi
/bin/busybox mount -t devtmpfs dev /dev
while read -r module; do /bin/busybox insmod "/modules/$module"; done </modules/order
init=$(/bin/busybox tr ' ' '\n' </proc/cmdline | /bin/busybox sed -n 's/^init=//p')
/bin/busybox mount -t ext4 -o rw,noatime /dev/vdb /root
/bin/busybox umount /proc
/bin/busybox mount -o move /dev /root/dev
exec /bin/busybox switch_root /root "${init:-/sbin/init}"
END
chmod 0755 "$made/init"
bsdtar --format=newc --uid 0 --gid 0 -C "$made" -cf "$file" .
rm -r "$made"

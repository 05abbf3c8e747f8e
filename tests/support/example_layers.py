"""Layers with all that a layer can have, as archives."""

import struct

from tests.support.oci import archive, directory, member

CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)
ACL = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", tag, permissions, own)
    for tag, permissions, own in (
        (0x01, 7, 0xFFFFFFFF),
        (0x02, 4, 1000),
        (0x04, 5, 0xFFFFFFFF),
        (0x10, 5, 0xFFFFFFFF),
        (0x20, 5, 0xFFFFFFFF),
    )
)

BOTTOM = archive(
    directory("./", 0o700, uid=5),
    directory("bin"),
    member("bin/sh", b"#!shell", mode=0o755),
    member("bin/cap", b"cap", mode=0o755, xattrs={"security.capability": CAPABILITY}),
    member("bin/acl", b"acl", mode=0o755, xattrs={"system.posix_acl_access": ACL}),
    member("bin/su", b"setuid", mode=0o4755),
    member("bin/sg", b"setgid", mode=0o2755, uid=3, gid=4),
    member("bin/link", kind=b"2", link="sh", mode=0o644),
    member("bin/to nowhere\n", kind=b"2", link="/a b\\c#d", uid=7, gid=8),
    directory("tmp", 0o1777),
    directory("home/user", 0o750, uid=1000, gid=1000),
    member("home/user/file", b"x", uid=1000, gid=1000, mode=0o600),
    directory("dev"),
    member("dev/null", kind=b"3", device=(1, 3), mode=0o666),
    member("dev/sda", kind=b"4", device=(8, 0), mode=0o660, gid=6),
    member("run/fifo", kind=b"6", mode=0o622),
    directory("etc"),
    member("etc/a b\n#*?[\\=\"'\t", b"hostile name"),
    member(b"etc/\xff\xfe", b"not UTF-8"),
    member("etc/passwd", b"root"),
    member("etc/group", b"group"),
    directory("var/cache"),
    member("var/cache/1", b"1"),
    member("var/cache/2", b"2"),
    member("d" * 90 + "/" + "f" * 200, b"long name"),
    directory("big"),
    member("big/file", bytes(3 * 1024 * 1024 + 5)),
    member("big/hard link", kind=b"1", link="big/file"),
    directory("srv", 0o711, uid=9, gid=9),
    member("srv/old", b"old"),
)

TOP = archive(
    directory("etc"),
    member("etc/.wh.passwd"),
    member("etc/group", b"changed"),
    directory("var"),
    directory("var/cache"),
    member("var/cache/.wh..wh..opq"),
    member("var/cache/3", b"3"),
    member("bin/.wh.su", uid=77, gid=88),
    member("home/user/new", b"in a directory that is not listed", uid=1000, gid=1000),
    member(".wh.run"),
    member("srv", b"a file where a directory was"),
    member("new/not/listed/file", b"f"),
    directory("empty"),
)

LINKED = archive(
    directory("usr/lib"),
    member("lib", kind=b"2", link="usr/lib"),
    member("lib/through", b"a symbolic link of this layer"),
    member("usr/lib/again", kind=b"1", link="lib/through"),
)
"""Paths through a symbolic link, which bsdtar refuses and engines follow."""

RELINKED = archive(
    member("file", b"x", mode=0o600),
    member("again", kind=b"1", link="file", mode=0o751, uid=7),
    member("cap", b"x", mode=0o755, xattrs={"security.capability": CAPABILITY}),
    member("cap2", kind=b"1", link="cap", mode=0o755),
    member("cap3", b"x", mode=0o755, xattrs={"security.capability": CAPABILITY}),
    member("cap4", kind=b"1", link="cap3", mode=0o755, uid=1),
    member("cap5", b"x", mode=0o755, xattrs={"security.capability": CAPABILITY}),
    member("cap6", kind=b"1", link="cap5", mode=0o755, xattrs={"security.capability": CAPABILITY}),
)
"""Hard links whose headers say something else than the file's: engines obey the link's."""

"""From a container's root mount to the directories of its layers.

An overlay's layers are known from its mount options, which /proc/PID/mountinfo shows as they were
given: absolute, or relative to a directory that the engine was in and that nobody wrote down.

========================  =====================================================================
Docker (overlay2)         ``…/overlay2/l/SHORT`` links to ``…/overlay2/ID/diff``; relative to
                          ``overlay2`` where a page would not hold the options. The topmost lower
                          is ``ID-init/diff``, made by the engine (/etc/hosts, /.dockerenv, …)
containerd, CRI           ``…/snapshots/N/fs``; relative to ``snapshots`` where they are too long.
                          With a user namespace ``…/ovl-idmappedX/N/fs``, a mount that is gone
Docker on containerd's    as containerd, mounted at ``ROOT/rootfs/SNAPSHOTTER/ID``; the topmost
image store (Docker 29's  lower is the snapshot ``ID-init``, made by the engine
default)
Podman, CRI-O             as Docker, without the init layer. With a user namespace
                          ``…/overlay/ID/mapped/0/l/SHORT``, a mount that is gone; since Podman 5.8
                      ``…/overlay/ID/mapped/N/diff``
fuse-overlayfs            its options are in its command line only
========================  =====================================================================

Formats: proc(5) on mountinfo; Documentation/filesystems/overlayfs.rst; fs/overlayfs/params.c and
fs/overlayfs/super.c for the escapes in `lowerdir`, `lowerdir+` and `datadir+`.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from cima_runc.base import limits
from cima_runc.base.bounded import read_bounded
from cima_runc.base.errors import CimaError
from cima_runc.base.text import printable
from cima_runc.measure.command_line import command_line
from cima_runc.measure.idmap import IdMap, parse_id_maps
from cima_runc.measure.outside import has_our_root, in_our_pid_namespace

Kind = Literal["overlay", "fuse-overlayfs", "tree"]
Role = Literal["data", "lower", "init", "upper", "tree"]


class OverlayError(CimaError):
    """The mount of a root filesystem cannot be made sense of."""


@dataclass(frozen=True, slots=True)
class LayerForm:
    """How a layer's directory stands for whiteouts and opaque directories."""

    overlay: str | None
    """The prefix of the extended attributes that the mount obeys, or None: an ordinary tree, in
    which a device 0:0 is a device."""
    wh_files: bool = False
    """Whether `.wh.NAME` stands for a whiteout, as fuse-overlayfs has it."""


TREE = LayerForm(None)
OVERLAY = LayerForm("trusted.overlay.")
OVERLAY_USERXATTR = LayerForm("user.overlay.")
FUSE_OVERLAYFS = LayerForm("trusted.overlay.", wh_files=True)


@dataclass(frozen=True, slots=True)
class LayerDirectory:
    """One directory to measure."""

    path: Path
    """Absolute, without symbolic links."""
    role: Role
    form: LayerForm
    is_idmapped: bool = False
    """Whether the mount shifts the owners, so that they lie unshifted in the directory."""


@dataclass(frozen=True, slots=True)
class RootFilesystem:
    """A container's root filesystem, as directories of the host."""

    kind: Kind
    path: Path
    """Where it is mounted."""
    layers: tuple[LayerDirectory, ...]
    """Bottom to top; the upper directory, where there is one, is the last."""
    reason: str = ""
    """Why an overlay is taken as one tree: its layers' directories were not found."""
    ids: IdMap | None = None
    """The ids of the process that serves the filesystem, where they count and not the
    container's."""

    @property
    def upper(self) -> LayerDirectory | None:
        """The directory that the container writes into."""
        return next((layer for layer in self.layers if layer.role == "upper"), None)


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of /proc/PID/mountinfo."""

    device: tuple[int, int]
    """Major and minor number of the filesystem."""
    root: bytes
    """The directory of the filesystem that is mounted; `/` unless it is a bind mount."""
    point: bytes
    fstype: bytes
    source: bytes
    options: tuple[tuple[bytes, bytes | None], ...]
    """The filesystem's own options, in order, with their escapes undone."""


@dataclass(frozen=True, slots=True)
class FuseCommand:
    """A running fuse-overlayfs."""

    argv: tuple[bytes, ...]
    cwd: bytes
    ids: IdMap


def read_rootfs(
    path: Path,
    mountinfo: bytes,
    fuse_commands: Callable[[], Iterable[FuseCommand]] = tuple,
) -> RootFilesystem:
    """Return the layers of the root filesystem that is mounted at ``path``.

    ``path`` is `root.path` of the bundle's config.json, made absolute; ``mountinfo`` the content
    of /proc/PID/mountinfo of the container's first process, before it pivots into its root.
    Looks for the layers' directories in the caller's mount namespace. What is not an overlay, or
    an overlay whose layers cannot be found there, is one tree, with the reason.
    Raises :class:`OverlayError` where ``mountinfo`` is not the kernel's.
    """
    real = Path(os.path.realpath(path))
    mount = find_mount(parse_mountinfo(mountinfo), os.fsencode(real))
    if mount is None or mount.point != os.fsencode(real) or mount.root != b"/":
        return _tree(real)
    try:
        if mount.fstype == b"overlay":
            options = _read_options(mount.options)
            return RootFilesystem("overlay", real, tuple(_directories(options, real)))
        if mount.fstype == b"fuse.fuse-overlayfs":
            return _fuse_overlayfs(real, fuse_commands())
    except OverlayError as error:
        return _tree(real, error.what)
    return _tree(real)


def _tree(path: Path, reason: str = "") -> RootFilesystem:
    return RootFilesystem("tree", path, (LayerDirectory(path, "tree", TREE),), reason)


def parse_mountinfo(data: bytes) -> list[Mount]:
    """Return the mounts of a mount namespace, in the kernel's order. Raises OverlayError."""
    if len(data) > limits.MOUNTINFO:
        raise OverlayError(f"mountinfo has more than {limits.MOUNTINFO} bytes")
    return [_parse_mount(line) for line in data.split(b"\n") if line]


_DEVICE: Final = re.compile(rb"([0-9]{1,10}):([0-9]{1,10})")


def _parse_mount(line: bytes) -> Mount:
    before, found, after = line.partition(b" - ")
    words, (fstype, source, options) = before.split(b" "), (after.split(b" ") + [b""] * 3)[:3]
    device = _DEVICE.fullmatch(words[2]) if len(words) > 2 else None
    if not found or len(words) < 6 or not fstype or device is None:
        raise OverlayError(f"not a line of mountinfo: {printable(line[:200])}")
    return Mount(
        device=(int(device[1]), int(device[2])),
        root=_octal(words[3]),
        point=_octal(words[4]),
        fstype=_octal(fstype),
        source=_octal(source),
        options=tuple(_option(option) for option in options.split(b",") if option),
    )


def _option(text: bytes) -> tuple[bytes, bytes | None]:
    name, found, value = text.partition(b"=")
    return _octal(name), _octal(value) if found else None


def _octal(text: bytes) -> bytes:
    r"""Undo the kernel's \NNN (seq_escape in fs/seq_file.c)."""
    if b"\\" not in text:
        return text
    return re.sub(rb"\\([0-3][0-7][0-7])", lambda match: bytes([int(match[1], 8)]), text)


def find_mount(mounts: Iterable[Mount], path: bytes) -> Mount | None:
    """Return the mount that ``path`` lies in: the longest mount point, and the last of those."""
    best = None
    for mount in mounts:
        inside = mount.point in {b"/", path} or path.startswith(mount.point + b"/")
        if inside and (best is None or len(mount.point) >= len(best.point)):
            best = mount
    return best


@dataclass(slots=True)
class _Options:
    """The directories that an overlay's options name, lower ones topmost first."""

    lowers: list[bytes] = field(default_factory=list)
    data: list[bytes] = field(default_factory=list)
    upper: bytes | None = None
    work: bytes | None = None
    form: LayerForm = OVERLAY


def _read_options(options: Iterable[tuple[bytes, bytes | None]]) -> _Options:
    read = _Options()
    for name, value in options:
        if name == b"userxattr":
            read.form = OVERLAY_USERXATTR
        elif value is None:
            continue
        elif name == b"lowerdir":
            read.lowers, read.data = split_lowerdir(value)
        elif name == b"lowerdir+":
            read.lowers.append(value)
        elif name == b"datadir+":
            read.data.append(value)
        elif name == b"upperdir":
            read.upper = _unescape(value)
        elif name == b"workdir":
            read.work = _unescape(value)
    return read


def split_lowerdir(value: bytes) -> tuple[list[bytes], list[bytes]]:
    r"""Return the lower directories and the data-only ones of the option `lowerdir`, topmost first.

    Directories are separated by `:`, data-only ones follow a `::`; `\` takes the next byte as it
    is (ovl_parse_param_split_lowerdirs in fs/overlayfs/params.c).
    """
    parts = [b""]
    bytes_of = iter(value)
    for byte in bytes_of:
        if byte == 0x3A:
            parts.append(b"")
        else:
            parts[-1] += bytes([next(bytes_of, byte) if byte == 0x5C else byte])
    if b"" not in parts:
        return parts, []
    first = parts.index(b"")
    return parts[:first], [part for part in parts[first:] if part]


def _unescape(value: bytes) -> bytes:
    return re.sub(rb"\\(.)", rb"\1", value, flags=re.DOTALL)


_GONE = re.compile(rb".*/(?:mapped/[0-9]+(?=/l/)|ovl-idmapped[^/]*)/(.+)", re.DOTALL)
"""Where Podman and containerd mount the layers with shifted owners, while they mount the overlay:
what follows is relative to the directory that holds the layers."""
_NUMBERED = re.compile(rb"(.*)/mapped/([0-9]{1,4})/diff", re.DOTALL)
"""The same since Podman 5.8: each layer's directory is mounted by itself, under its number among
the container's lower layers, topmost first."""


def _directories(
    options: _Options, point: Path, cwd: bytes | None = None
) -> Iterator[LayerDirectory]:
    """Yield the layers bottom to top. Raises :class:`OverlayError`."""
    names = [*reversed(options.data), *reversed(options.lowers)]
    if not options.lowers or len(names) > limits.LAYERS:
        raise OverlayError(f"the overlay has {len(names)} lower layers")
    gone = {
        name: match[1]
        for name in names
        if (match := _GONE.fullmatch(name)) and not Path(os.fsdecode(name)).is_dir()
    }
    gone |= _numbered(names, options)
    names = [gone.get(name, name) for name in names]
    upper = options.upper
    relative = [name for name in [*names, upper] if name and not name.startswith(b"/")]
    for name in [*names, upper or b""]:
        if name.startswith(b"/proc/"):
            raise OverlayError(f"the layer {printable(name)} is a descriptor of who mounted it")
    base = b""
    if relative:
        near = [cwd] if cwd else []
        for known in (upper, options.work, os.fsencode(point)):
            if known and known.startswith(b"/"):
                near += _ancestors(known)
        base = _common_base(relative, near)
    above = _directory(base, upper) if upper else None
    for number, name in enumerate(names):
        real = _directory(base, name)
        if real == above:
            raise OverlayError(f"the layer {printable(name)} is the container's own directory")
        role: Role = "data" if number < len(options.data) else "lower"
        if number == len(names) - 1 and upper and _is_init(os.fsencode(real), os.fsencode(point)):
            role = "init"
        yield LayerDirectory(real, role, options.form, is_idmapped=name in gone.values())
    if above is not None:
        yield LayerDirectory(above, "upper", options.form)


_SNAPSHOT = re.compile(rb".*/snapshots/[0-9]+/fs", re.DOTALL)
_DOCKER_POINT = re.compile(rb".*/rootfs/[^/]+/[0-9a-f]{64}", re.DOTALL)
"""Where Docker mounts a container's snapshot (moby, daemon/snapshotter/mount.go)."""


def _is_init(topmost: bytes, point: bytes) -> bool:
    """Whether the topmost lower layer is the one that Docker makes of its own for each container.

    One that is taken for it is judged entry by entry, and is missed among the image's layers.
    """
    if _DOCKER_POINT.fullmatch(point):
        return _SNAPSHOT.fullmatch(topmost) is not None
    return topmost.endswith(b"-init/diff")


def _numbered(names: list[bytes], options: _Options) -> dict[bytes, bytes]:
    """Return the directories of layers that were mounted by number, by what the store itself says.

    The file ``lower`` beside the container's upper directory holds its lower layers, topmost first,
    as links relative to the directory of all layers (containers/storage, drivers/overlay).
    """
    numbered = {
        name: match
        for name in names
        if (match := _NUMBERED.fullmatch(name)) and not Path(os.fsdecode(name)).is_dir()
    }
    if not numbered:
        return {}
    own = {match[1] for match in numbered.values()}
    if len(own) != 1 or options.upper != (directory := own.pop()) + b"/diff":
        raise OverlayError("the lower layers are mapped, and not beside the container's own")
    home = Path(os.fsdecode(directory))
    try:
        links = read_bounded(home / "lower", limits.MIB).split(b":")
        real = [os.path.realpath(os.fsencode(home.parent) + b"/" + link) for link in links]
    except OSError as error:
        raise OverlayError(f"what the lower layers are is not known: {error}") from error
    layers = list(dict.fromkeys(real))
    if len(links) != len(options.lowers):
        raise OverlayError("the store names another number of lower layers than are mounted")
    found = {}
    for name, match in numbered.items():
        number = int(match[2])
        if number >= len(layers) or not layers[number].endswith(b"/diff"):
            raise OverlayError(f"what the layer {printable(name)} is is not known")
        found[name] = layers[number]
    return found


def _ancestors(path: bytes) -> list[bytes]:
    return [os.fsencode(parent) for parent in Path(os.fsdecode(path)).parents]


def _common_base(relative: list[bytes], near: list[bytes]) -> bytes:
    """Return the first directory in which all of ``relative`` are directories."""
    for base in near:
        # Docker's and Podman's links are two a layer: a few hundred look-ups at most.
        if all(Path(os.fsdecode(base), os.fsdecode(name)).is_dir() for name in relative):
            return base
    raise OverlayError(f"the directory that {printable(relative[0])} is relative to was not found")


def _directory(base: bytes, name: bytes) -> Path:
    path = Path(os.fsdecode(base), os.fsdecode(name))
    if not path.is_dir():
        raise OverlayError(f"the layer {printable(name)} was not found on this host")
    return Path(os.path.realpath(path))


def _fuse_overlayfs(path: Path, commands: Iterable[FuseCommand]) -> RootFilesystem:
    for command in commands:
        arguments, point = _fuse_arguments(command.argv)
        if point is None:
            continue
        if os.path.realpath(Path(os.fsdecode(command.cwd), os.fsdecode(point))) != str(path):
            continue
        options = _read_options(arguments)
        options.form = FUSE_OVERLAYFS
        layers = tuple(_directories(options, path, command.cwd))
        return RootFilesystem("fuse-overlayfs", path, layers, ids=command.ids)
    raise OverlayError("the fuse-overlayfs that serves it was not found among the processes")


def _fuse_arguments(
    argv: tuple[bytes, ...],
) -> tuple[list[tuple[bytes, bytes | None]], bytes | None]:
    """Return the options and the mount point of a fuse-overlayfs command line."""
    options: list[tuple[bytes, bytes | None]] = []
    point = None
    words = iter(argv[1:])
    for word in words:
        if word.startswith(b"-o"):
            text = word[2:] or next(words, b"")
            for option in re.findall(rb"((?:\\.|[^,\\])+)", text, flags=re.DOTALL):
                name, found, value = option.partition(b"=")
                options.append((name, value if found else None))
        elif not word.startswith(b"-"):
            point = word
    return options, point


def fuse_overlayfs_commands(uid: int = 0) -> Iterator[FuseCommand]:
    """Yield the fuse-overlayfs processes of the user ``uid``, from /proc. Takes root.

    Anybody may call a program so, and say that it serves another's container: of other users none
    counts, and none that is in a container, where root has the user's own number.
    """
    wanted = b"Uid:" + b"\t%d" % uid * 4
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        try:
            if wanted not in (process / "status").read_bytes().splitlines():
                continue
            pid = int(process.name)
            if not (in_our_pid_namespace(pid) and has_our_root(pid)):
                continue
            argv = tuple(map(os.fsencode, command_line(pid)))
            if argv[0].rpartition(b"/")[2] != b"fuse-overlayfs":
                continue
            yield FuseCommand(
                argv,
                os.fsencode((process / "cwd").readlink()),
                parse_id_maps(
                    (process / "uid_map").read_bytes(), (process / "gid_map").read_bytes()
                ),
            )
        except OSError:
            continue  # it ended meanwhile

"""Measure one layer's directory: walk it, hash its files, give its canonical manifest.

Nothing of the layer is trusted. Directories and files are opened by name in an open directory and
without following a symbolic link; only what lstat(2) just called a regular file is opened for
reading, and looked at again once it is open; devices, FIFOs and sockets never are. What is mounted
inside the layer is not looked at, as overlayfs does not (it clones the layer's own mount).

The walk goes in the manifest's order and keeps one directory a level. Files are hashed by a pool
of threads in chunks of a few (hashlib and read(2) let go of the interpreter lock), and their lines
are written in order, so that memory does not grow with the tree.
"""

import ctypes
import errno
import hashlib
import os
import stat
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from cima_runc.base import limits
from cima_runc.base.errors import CimaError
from cima_runc.base.text import printable
from cima_runc.measure.idmap import IDENTITY, IdMap
from cima_runc.measure.metacopy import (
    LowerData,
    LowerDataError,
    is_metacopy,
    without_metacopy,
)
from cima_runc.measure.mtree import (
    HEADER,
    Entry,
    Type,
    escape,
    format_keywords,
    format_mode,
    unescape,
    whiteout,
)
from cima_runc.measure.overlay import LayerDirectory, LayerForm, parse_mountinfo
from cima_runc.measure.override import NAMES as OVERRIDE_NAMES
from cima_runc.measure.override import parse_override
from cima_runc.measure.xattrs import OPAQUE, SECURITY, XattrError, canonical, is_wanted

Check = Callable[[], None]
"""Called now and then from any thread; raises what is to end the work."""

CHANGED_KEPT = 100
"""How many paths of files that changed meanwhile are kept; more are only counted."""

_BUFFER = 1 * limits.MIB
_CHECK_EVERY = 16 * limits.MIB
_THREADS = 8
"""More threads than this only wait for the interpreter lock."""
_JOBS = 16
"""Files in a chunk: enough that handing it to a thread costs little."""
_ITEMS = 256
_DIRECTORIES = 8
_CHUNKS = 16
"""Chunks on their way; together with the directories in each, what bounds open files."""

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
_LIST = os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY | os.O_CLOEXEC
_S_IFMT = 0o170000
_SPECIAL: dict[int, Type] = {
    stat.S_IFCHR: "char",
    stat.S_IFBLK: "block",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}
_WHITEOUT = format_keywords(whiteout(b""))
_WH_OPAQUE = ".wh..wh..opq"
_WH_OPAQUE_BESIDE = ".wh..opq"
"""What fuse-overlayfs leaves beside it: a whiteout where nothing of lower layers is seen anyhow."""
_FUSE_OPAQUE = ("trusted.overlay.opaque", "user.overlay.opaque", "user.fuseoverlayfs.opaque")


class LayerError(CimaError):
    """A layer's directory cannot be measured."""


@dataclass(slots=True)
class LayerScan:
    """What a walk through a layer found, beside the manifest itself."""

    digest: str
    """`sha256:` and hex of the manifest's bytes."""
    entries: int
    """Lines of the manifest for anything but the root."""
    files: int
    """Regular files."""
    bytes: int
    """Bytes of all regular files."""
    changed: list[str]
    """Escaped paths of what changed while it was measured; at most CHANGED_KEPT of them."""
    changed_count: int
    borrows: bool = False
    """Whether data of files came from layers below (metacopy), so that the layer's own tree does
    not say whether it is unchanged."""


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Whether a layer is unchanged, without a look into its files."""

    digest: str
    """Hex SHA-256 over each entry's name, inode, mode, owner, size, device, mtime and ctime."""
    newest: int
    """The latest mtime or ctime in the tree, in nanoseconds since the epoch."""


def no_check() -> None:
    """Let the walk go on for as long as it takes."""


@contextmanager
def open_layer(path: Path) -> Iterator[int]:
    """Yield a file descriptor of a layer's directory, with nothing mounted inside.

    With CAP_SYS_ADMIN it is a private copy of the mount (open_tree(2), Linux 5.2), as overlayfs
    itself takes one. Without, the layer must have no mount points. Raises :class:`LayerError`.
    """
    try:
        tree = _open_tree(path)
        try:
            root = os.open(".", _LIST, dir_fd=tree)
        except OSError:
            os.close(tree)
            raise
    except OSError as error:
        if isinstance(error, NotADirectoryError | FileNotFoundError):
            raise LayerError(f"{printable(str(path))}: {error.strerror}") from None
        tree, root = -1, _open_plain(path)
    try:
        yield root
    finally:
        os.close(root)
        if tree >= 0:
            os.close(tree)


_SYS_OPEN_TREE = 428  # the same on every architecture (include/uapi/asm-generic/unistd.h)
_OPEN_TREE_CLONE = 1
_AT_SYMLINK_NOFOLLOW = 0x100


def _open_tree(path: Path) -> int:
    flags = _OPEN_TREE_CLONE | _AT_SYMLINK_NOFOLLOW | os.O_CLOEXEC
    libc = ctypes.CDLL(None, use_errno=True)
    fd = int(libc.syscall(_SYS_OPEN_TREE, -100, os.fsencode(path), flags))
    if fd < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return fd


def _open_plain(path: Path) -> int:
    below = os.fsencode(os.path.realpath(path)).rstrip(b"/") + b"/"
    for mount in parse_mountinfo(Path("/proc/self/mountinfo").read_bytes()):
        if mount.point.startswith(below):
            raise LayerError(
                f"{printable(mount.point)} is mounted inside the layer {printable(str(path))}",
                hint="measure as root, or unmount it",
            )
    try:
        return os.open(path, _LIST)
    except OSError as error:
        raise LayerError(f"{printable(str(path))}: {error.strerror}") from None


def ids_of(root: int, directory: LayerDirectory, ids: IdMap) -> IdMap:
    """Return how the owners in a layer's directory are to be read.

    Engines store a layer plain and shift it in the mount, or store it shifted, its root too.
    """
    if directory.is_idmapped or ids.is_identity or not ids.has_uid(os.fstat(root).st_uid):
        return IDENTITY
    return ids


_STAT = struct.Struct("<xHQQIIIqqq")
"""Depth, inode, device number, mode, uid, gid, size, mtime, ctime; the pad byte ends the name."""


def fingerprint(root: int, check: Check = no_check) -> Fingerprint:
    """Return the fingerprint of the layer in an open directory. Raises :class:`LayerError`."""
    hasher = hashlib.sha256()
    budget = _Budget()
    newest = 0

    def describe(st: os.stat_result, depth: int) -> bytes:
        nonlocal newest
        mtime, ctime = st.st_mtime_ns, st.st_ctime_ns
        if mtime > newest or ctime > newest:
            newest = max(newest, mtime, ctime)
        return _STAT.pack(
            depth,
            st.st_ino,
            st.st_rdev,
            st.st_mode,
            st.st_uid,
            st.st_gid,
            st.st_size,
            mtime,
            ctime,
        )

    def scan(fd: int, depth: int) -> None:
        check()
        names, held = budget.list(fd, depth)
        parts: list[bytes] = []
        for name in names:
            st = os.stat(name, dir_fd=fd, follow_symlinks=False)
            parts.append(name.encode("utf-8", "surrogateescape"))
            parts.append(describe(st, depth))
            if st.st_mode & _S_IFMT == stat.S_IFDIR:
                hasher.update(b"".join(parts))
                parts.clear()
                child = os.open(name, _LIST, dir_fd=fd)
                try:
                    scan(child, depth + 1)
                finally:
                    os.close(child)
        hasher.update(b"".join(parts))
        budget.held -= held

    try:
        hasher.update(describe(os.fstat(root), 0))
        scan(root, 1)
    except OSError as error:
        raise LayerError(f"a layer cannot be walked: {error}") from None
    return Fingerprint(hasher.hexdigest(), newest)


@dataclass(slots=True)
class _Budget:
    """How much one walk may still see."""

    entries: int = limits.LAYER_ENTRIES
    held: int = 0

    def list(self, fd: int, depth: int) -> tuple[list[str], int]:
        """Return a directory's names in the manifest's order, and the memory that they take."""
        names: list[str] = []
        held = 0
        with os.scandir(fd) as listing:
            for entry in listing:
                names.append(entry.name)
                held += 64 + len(entry.name)
                if self.held + held > limits.LAYER_NAMES:
                    raise LayerError(
                        f"a layer's directories have names of {limits.LAYER_NAMES} bytes"
                    )
        self.held += held
        self.entries -= len(names)
        if self.entries < 0:
            raise LayerError(f"a layer has more than {limits.LAYER_ENTRIES} entries")
        if depth > limits.LAYER_DEPTH + 1:
            raise LayerError(f"a layer has more than {limits.LAYER_DEPTH} levels of directories")
        # Text sorts as its bytes do where it is ASCII; elsewhere surrogates would come out wrong.
        names.sort(key=None if all(map(str.isascii, names)) else os.fsencode)
        return names, held


def scan(
    root: int,
    form: LayerForm,
    ids: IdMap,
    write: Callable[[bytes], object] = lambda _line: None,
    check: Check = no_check,
    *,
    below: Sequence[Path] = (),
) -> LayerScan:
    """Measure the layer in an open directory, and give its manifest to ``write`` in pieces.

    ``below`` is the layers under it, topmost first: a file that overlayfs copied up without its
    data (metacopy) has that of the first of them. ``check`` is called every few files, and every
    16 MiB of a file, from any thread: it raises what is to end the walk.
    Raises :class:`LayerError`, and whatever ``write`` and ``check`` raise.
    """
    walk = _Walk(root, form, ids, write, check, lower=LowerData(root, below, form.overlay))
    threads = min(len(os.sched_getaffinity(0)), _THREADS)
    with ThreadPoolExecutor(threads, thread_name_prefix="cima-layer") as pool:
        try:
            walk.run(pool)
        except OSError as error:
            raise LayerError(f"a layer cannot be walked: {error}") from None
        finally:
            walk.stopped = True
            pool.shutdown(wait=True, cancel_futures=True)
            walk.close()
    return walk.result()


@dataclass(frozen=True, slots=True)
class _Job:
    """A regular file to hash."""

    directory: int
    name: str
    path: str
    """Escaped, with its leading `./`."""
    before: os.stat_result


@dataclass(slots=True)
class _Chunk:
    """A run of the manifest: lines that are ready and files that are not."""

    items: list[str | _Job] = field(default_factory=list)
    jobs: int = 0
    close: list[int] = field(default_factory=list)
    """Directories that nothing after this chunk needs."""


@dataclass(frozen=True, slots=True)
class _Hashed:
    """A chunk's lines."""

    text: str
    entries: int
    files: int
    bytes: int
    changed: list[str]


@dataclass(slots=True)
class _Level:
    """A directory that the walk is in."""

    fd: int
    path: str
    """Escaped, with a `/` at its end."""
    before: os.stat_result
    names: Iterator[str] = field(default_factory=lambda: iter(()))
    held: int = 0
    whiteouts: set[str] = field(default_factory=set)
    """Names that `.wh.` files remove."""


class _Walk:
    """One walk through one layer."""

    def __init__(
        self,
        root: int,
        form: LayerForm,
        ids: IdMap,
        write: Callable[[bytes], object],
        check: Check,
        *,
        lower: LowerData,
    ) -> None:
        self._lower = lower
        self._linked = _Linked()
        self._borrows = False
        self.form, self.ids, self.check = form, ids, check
        self.stopped = False
        self._write = write
        self._hasher = hashlib.sha256()
        self._budget = _Budget()
        self._chunk = _Chunk()
        self._pending: deque[tuple[Future[_Hashed], _Chunk]] = deque()
        self._levels: list[_Level] = []
        self._entries = self._files = self._bytes = self._changed_count = 0
        self._changed: list[str] = []
        self._local = threading.local()
        self._root = root
        self._override = _find_override(root) if form.wh_files else None

    def result(self) -> LayerScan:
        return LayerScan(
            "sha256:" + self._hasher.hexdigest(),
            self._entries,
            self._files,
            self._bytes,
            self._changed,
            self._changed_count,
            self._borrows,
        )

    def close(self) -> None:
        """Close what is open, once no thread uses it any more."""
        for fd in [
            *(level.fd for level in self._levels),
            *self._chunk.close,
            *(fd for _, chunk in self._pending for fd in chunk.close),
        ]:
            os.close(fd)

    def run(self, pool: ThreadPoolExecutor) -> None:
        self._emit(HEADER)
        self._enter(os.dup(self._root), ".")
        while self._levels:
            level = self._levels[-1]
            for name in level.names:
                self._visit(level, name)
                if self._is_full():
                    self._submit(pool)
                if self._levels[-1] is not level:
                    break
            else:
                self._leave(level)
        self._submit(pool)
        while self._pending:
            self._collect()

    def _is_full(self) -> bool:
        chunk = self._chunk
        return chunk.jobs >= _JOBS or len(chunk.items) >= _ITEMS or len(chunk.close) >= _DIRECTORIES

    def _submit(self, pool: ThreadPoolExecutor) -> None:
        self.check()
        self._pending.append((pool.submit(self._hash_chunk, self._chunk), self._chunk))
        self._chunk = _Chunk()
        while len(self._pending) > _CHUNKS or (self._pending and self._pending[0][0].done()):
            self._collect()

    def _collect(self) -> None:
        hashed = self._pending[0][0].result()
        self._emit(hashed.text.encode("ascii"))
        self._entries += hashed.entries
        self._files += hashed.files
        self._bytes += hashed.bytes
        for path in hashed.changed:
            self._note_changed(path)
        for fd in self._pending.popleft()[1].close:
            os.close(fd)

    def _emit(self, text: bytes) -> None:
        self._hasher.update(text)
        self._write(text)

    def _note_changed(self, path: str) -> None:
        self._changed_count += 1
        if len(self._changed) < CHANGED_KEPT:
            self._changed.append(path)

    # Directories and whatever is not a regular file: here, in the walk's own thread.

    def _visit(self, level: _Level, name: str) -> None:
        path = level.path + escape(os.fsencode(name))
        if len(path) >= limits.PATH and len(unescape(path)) > limits.PATH + 1:
            raise LayerError(f"a path of more than {limits.PATH - 1} bytes: {path[:200]}...")
        if name in level.whiteouts:
            self._chunk.items.append(path + _WHITEOUT)
            return
        try:
            st = os.stat(name, dir_fd=level.fd, follow_symlinks=False)
            kind = st.st_mode & _S_IFMT
            if kind == stat.S_IFREG:
                self._chunk.items.append(_Job(level.fd, name, path, st))
                self._chunk.jobs += 1
            elif kind == stat.S_IFDIR:
                self._enter(os.open(name, _LIST, dir_fd=level.fd), path)
            else:
                self._chunk.items.append(path + self._special(level, name, path, st))
        except (FileNotFoundError, NotADirectoryError):
            self._note_changed(path)  # removed or replaced since its directory was listed

    def _enter(self, fd: int, path: str) -> None:
        """Begin with an open directory, which is the walk's to close from here on."""
        level = _Level(fd, path + "/", os.fstat(fd))
        self._levels.append(level)
        names, level.held = self._budget.list(fd, len(self._levels))
        is_opaque = False
        if self.form.wh_files:
            present = {name for name in names if not name.startswith(".wh.")}
            is_opaque = _WH_OPAQUE in names
            markers = {_WH_OPAQUE, _WH_OPAQUE_BESIDE} if is_opaque else set()
            level.whiteouts = {
                name[4:] for name in names if name.startswith(".wh.") and name not in markers
            } - {*present, ""}
            names = sorted(present | level.whiteouts, key=os.fsencode)
        level.names = iter(names)
        raw = self._read_xattrs(fd, path)
        if is_opaque:
            raw = [item for item in raw if item[0] != OPAQUE[0]] + [OPAQUE]
        if path == ".":
            attributes = canonical(raw, 0, self.form.overlay)
            entry = Entry(b".", "dir", xattrs=tuple(x for x in attributes if x[0] not in SECURITY))
            self._entries -= 1  # the root's own line is not counted
        else:
            entry = self._describe("dir", level.before, raw, path)
        self._chunk.items.append(path + format_keywords(entry))

    def _leave(self, level: _Level) -> None:
        after = os.fstat(level.fd)
        if (after.st_mtime_ns, after.st_ctime_ns) != (
            level.before.st_mtime_ns,
            level.before.st_ctime_ns,
        ):
            self._note_changed(level.path.removesuffix("/"))
        self._budget.held -= level.held
        self._levels.pop()
        self._chunk.close.append(level.fd)

    def _special(self, level: _Level, name: str, path: str, st: os.stat_result) -> str:
        """Return the keywords of what is not a directory or regular file, which is not opened."""
        kind = st.st_mode & _S_IFMT
        if kind == stat.S_IFLNK:
            target = os.fsencode(os.readlink(name, dir_fd=level.fd))
            owner = self.ids.uid(st.st_uid), self.ids.gid(st.st_gid)
            return format_keywords(Entry(b"", "link", 0o777, *owner, link=target))
        if kind == stat.S_IFCHR and st.st_rdev == 0 and self.form.overlay:
            return _WHITEOUT
        if kind not in _SPECIAL:
            raise LayerError(f"{path} is of no type that Linux has: {kind:o}")
        raw = self._read_xattrs(f"/proc/self/fd/{level.fd}/{name}", path)
        return format_keywords(self._describe(_SPECIAL[kind], st, raw, path))

    def _describe(
        self, kind: Type, st: os.stat_result, raw: list[tuple[str, bytes]], path: str
    ) -> Entry:
        """Return an entry, as the container sees it, but for its path and content."""
        mode, uid, gid = st.st_mode & 0o7777, self.ids.uid(st.st_uid), self.ids.gid(st.st_gid)
        device = None
        if kind in {"char", "block"}:
            device = os.major(st.st_rdev), os.minor(st.st_rdev)
        if raw and self._override:
            for value in (value for name, value in raw if name == self._override):
                override = parse_override(value)
                mode, uid, gid = override.mode, override.uid, override.gid
                kind, device = override.type or kind, override.device or device
        try:
            xattrs = canonical(raw, mode, self.form.overlay) if raw else ()
        except XattrError as error:
            raise LayerError(f"{path}: {error.what}", hint=error.hint) from None
        return Entry(b"", kind, mode, uid, gid, device=device, xattrs=xattrs)

    def _read_xattrs(self, file: int | str, path: str) -> list[tuple[str, bytes]]:
        """Return the extended attributes that count, of an open file or of a special one."""
        link = {} if isinstance(file, int) else {"follow_symlinks": False}
        try:
            names = os.listxattr(file, **link)
            raw = [(name, os.getxattr(file, name, **link)) for name in names if self._wants(name)]
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:
                return []
            raise LayerError(f"the attributes of {path}: {error.strerror}") from None
        if self.form.wh_files and raw:
            raw = _fuse_xattrs(raw)
        return raw

    def _wants(self, name: str) -> bool:
        return is_wanted(name, self.form.overlay) or (
            self.form.wh_files and (name in _FUSE_OPAQUE or name == self._override)
        )

    # Regular files: in the pool's threads.

    def _hash_chunk(self, chunk: _Chunk) -> _Hashed:
        buffer = getattr(self._local, "buffer", None)
        if buffer is None:
            buffer = self._local.buffer = memoryview(bytearray(_BUFFER))
        lines: list[str] = []
        changed: list[str] = []
        total = files = 0
        for item in chunk.items:
            if isinstance(item, str):
                lines.append(item)
                continue
            if self.stopped:
                raise LayerError("the walk has ended")
            line, size, is_file = self._hash(item, buffer, changed)
            lines.append(line)
            files += is_file
            total += size
        return _Hashed("".join(lines), sum(map(bool, lines)), files, total, changed)

    def _hash(self, job: _Job, buffer: memoryview, changed: list[str]) -> tuple[str, int, bool]:
        """Return a file's line, its bytes, and whether it is a regular file to the container."""
        try:
            fd = os.open(job.name, _READ, dir_fd=job.directory)
        except OSError as error:
            if error.errno in {errno.ENOENT, errno.ELOOP, errno.ENXIO}:
                changed.append(job.path)  # removed or replaced
                return "", 0, False
            raise LayerError(f"{job.path}: {error.strerror}") from None
        try:
            before = os.fstat(fd)
            if (before.st_dev, before.st_ino) != (job.before.st_dev, job.before.st_ino) or (
                before.st_mode & _S_IFMT != stat.S_IFREG
            ):
                changed.append(job.path)
                return "", 0, False
            if (known := self._linked.get(before)) is not None:
                return job.path + known[0], known[1], known[2]
            raw = self._read_xattrs(fd, job.path)
            borrowed = self._borrow(job, raw, before.st_size)
            if borrowed is None:
                digest, size, is_same = self._read_all(fd, before, buffer)
            else:
                raw = without_metacopy(raw, self.form.overlay)
                try:
                    digest, size, is_same = self._read_all(borrowed, os.fstat(borrowed), buffer)
                finally:
                    os.close(borrowed)
        except OSError as error:
            raise LayerError(f"{job.path}: {error.strerror}") from None
        finally:
            os.close(fd)
        if not is_same:
            changed.append(job.path)
        keywords, size, is_file = self._file_keywords(job, before, raw, size, digest)
        if is_same and borrowed is None:
            self._linked.put(before, (keywords, size, is_file))
        return job.path + keywords, size, is_file

    def _read_all(
        self, fd: int, before: os.stat_result, buffer: memoryview
    ) -> tuple[bytes, int, bool]:
        """Return a file's SHA-256, its bytes, and whether it stayed as it was meanwhile."""
        hasher = hashlib.sha256()
        size, expected = 0, before.st_size
        while size < expected and (count := os.readv(fd, (buffer,))):
            hasher.update(buffer[:count])
            size += count
            if size % _CHECK_EVERY < count:
                self.check()
                if self.stopped:
                    raise LayerError("the walk has ended")
        after = os.fstat(fd)
        is_same = (size, after.st_size, after.st_mtime_ns, after.st_ctime_ns) == (
            expected,
            expected,
            before.st_mtime_ns,
            before.st_ctime_ns,
        )
        return hasher.digest(), size, is_same

    def _borrow(self, job: _Job, raw: list[tuple[str, bytes]], size: int) -> int | None:
        """Return the open file of a lower layer that has this one's data; None for its own."""
        if not raw or self.form.wh_files or not is_metacopy(raw, self.form.overlay):
            return None
        self._borrows = True
        try:
            return self._lower.open(unescape(job.path), size)
        except LowerDataError as error:
            raise LayerError(f"{job.path}: {error.what}") from None

    def _file_keywords(
        self,
        job: _Job,
        before: os.stat_result,
        raw: list[tuple[str, bytes]],
        size: int,
        digest: bytes,
    ) -> tuple[str, int, bool]:
        if not raw:
            uid, gid = self.ids.uid(before.st_uid), self.ids.gid(before.st_gid)
            mode = format_mode(before.st_mode & 0o7777)
            line = (
                f" type=file mode={mode} uid={uid} gid={gid} size={size}"
                f" sha256digest={digest.hex()}\n"
            )
            return line, size, True
        entry = self._describe("file", before, raw, job.path)
        if entry.type != "file":
            return format_keywords(entry), 0, False
        entry = replace(entry, size=size, sha256=digest)
        return format_keywords(entry), size, True


class _Linked:
    """What files with several names were found to be, by inode: they are read once."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, ...], tuple[str, int, bool]] = {}

    def get(self, found: os.stat_result) -> tuple[str, int, bool] | None:
        """Return what the inode was, if it has not changed since."""
        return self._known.get(_inode_key(found)) if found.st_nlink > 1 else None

    def put(self, found: os.stat_result, line: tuple[str, int, bool]) -> None:
        """Remember an inode as it was both before and after it was read."""
        if found.st_nlink > 1:
            self._known[_inode_key(found)] = line


def _inode_key(found: os.stat_result) -> tuple[int, ...]:
    times = found.st_mtime_ns, found.st_ctime_ns
    owner = found.st_mode, found.st_uid, found.st_gid
    return (found.st_dev, found.st_ino, found.st_size, *times, *owner)


def _find_override(root: int) -> str | None:
    """Return the attribute that holds owners and modes, if the layer's root has one."""
    try:
        return next((name for name in OVERRIDE_NAMES if name in os.listxattr(root)), None)
    except OSError:
        return None


def _fuse_xattrs(raw: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    """Return attributes with overlay's own reduced to what fuse-overlayfs obeys of them."""
    kept = [item for item in raw if item[0] in SECURITY or item[0] in OVERRIDE_NAMES]
    if any(name in _FUSE_OPAQUE and value[:1] == b"y" for name, value in raw):
        kept.append(OPAQUE)
    return kept

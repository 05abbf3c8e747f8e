"""Files that overlayfs copied up without their data: it is in a layer below.

With the mount option `metacopy=on` (Podman's, where it is set for builds) a chown(2) or chmod(2)
copies a file's inode up and leaves the data where it was: the copy is all holes, with the
attribute `metacopy`. Where the data is, is said by the path, by `redirect` attributes of the file
and of renamed directories, and by which layers lie below.
Source: Documentation/filesystems/overlayfs.rst ("Metadata only copy up", "Data-only lower
layers"); fs/overlayfs/namei.c (ovl_lookup, ovl_check_redirect) of Linux 6.12.
"""

import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path

from cima_runc.base.errors import CimaError
from cima_runc.base.text import printable

_METACOPY = "metacopy"
_REDIRECT = "redirect"
_DIRECTORY = os.O_PATH | os.O_NOFOLLOW | os.O_DIRECTORY | os.O_CLOEXEC
_LIST = os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY

Xattrs = list[tuple[str, bytes]]


class LowerDataError(CimaError):
    """The data of a file was not found in the layers below."""


def is_metacopy(raw: Iterable[tuple[str, bytes]], overlay: str | None) -> bool:
    """Whether a file's attributes say that its data is below; ``overlay`` is their prefix."""
    return overlay is not None and any(name == overlay + _METACOPY for name, _ in raw)


def without_metacopy(raw: Xattrs, overlay: str | None) -> Xattrs:
    """Return attributes as they are once the data is looked up."""
    own = {f"{overlay}{name}" for name in (_METACOPY, _REDIRECT)}
    return [item for item in raw if item[0] not in own]


class LowerData:
    """The layers under one layer, as far as its files' data goes."""

    def __init__(self, root: int, below: Sequence[Path], overlay: str | None) -> None:
        """``root`` is the layer's open directory, ``below`` the others, topmost first."""
        self._root = root
        self._below = below
        self._overlay = overlay

    def open(self, path: bytes, size: int) -> int:
        """Open the file that has the data of the layer's metacopy file at ``path``.

        ``path`` is relative to the layer, perhaps with a leading `./`; ``size`` the bytes that the
        copy says that it has.

        Raises:
            LowerDataError: there is none, or it has another size.
            OSError: a layer cannot be read.
        """
        parts = [part for part in path.split(b"/") if part not in {b"", b"."}]
        wanted = self._redirected(self._root, parts)
        for layer in self._below:
            root = os.open(layer, _LIST)
            try:
                found = _open_file(root, wanted)
                if found is None:
                    continue
                if not self._is_metacopy(found):
                    if os.fstat(found).st_size == size:
                        return found
                    os.close(found)
                    raise LowerDataError("its data in a layer below has another size")
                os.close(found)
                wanted = self._redirected(root, wanted)
            finally:
                os.close(root)
        raise LowerDataError("its data is in a layer below that was not found")

    def _is_metacopy(self, fd: int) -> bool:
        names = os.listxattr(fd)
        return is_metacopy([(name, b"") for name in names], self._overlay)

    def _redirected(self, root: int, parts: list[bytes]) -> list[bytes]:
        """Return where the layers below have what is at ``parts`` in the layer ``root``."""
        path: list[bytes] = []
        for depth, name in enumerate(parts):
            redirect = self._redirect(root, parts[: depth + 1])
            if redirect is None:
                path.append(name)
            elif redirect.startswith(b"/"):
                path = _safe(redirect)
            else:
                path += _safe(redirect)
        return path

    def _redirect(self, root: int, parts: list[bytes]) -> bytes | None:
        *above, name = parts
        directory = _open_directory(root, above)
        if directory is None:
            return None
        try:
            file = f"/proc/self/fd/{directory}/{os.fsdecode(name)}"
            return os.getxattr(file, f"{self._overlay}{_REDIRECT}", follow_symlinks=False)
        except OSError:
            return None
        finally:
            os.close(directory)


def _safe(redirect: bytes) -> list[bytes]:
    parts = [part for part in redirect.split(b"/") if part]
    if not parts or any(part in {b".", b".."} for part in parts):
        raise LowerDataError(f"its redirect leads nowhere: {printable(redirect[:200])}")
    return parts


def _open_directory(root: int, parts: Sequence[bytes]) -> int | None:
    """Open a directory by its path, no symbolic link followed; None where it is none."""
    fd = os.open(".", _DIRECTORY, dir_fd=root)
    for part in parts:
        try:
            inner = os.open(part, _DIRECTORY, dir_fd=fd)
        except OSError:
            return None
        finally:
            os.close(fd)
        fd = inner
    return fd


def _open_file(root: int, parts: Sequence[bytes]) -> int | None:
    """Open a regular file by its path, no symbolic link followed; None where it is none."""
    if not parts:
        return None
    directory = _open_directory(root, parts[:-1])
    if directory is None:
        return None
    try:
        found = os.stat(parts[-1], dir_fd=directory, follow_symlinks=False)
        if not stat.S_ISREG(found.st_mode):
            return None
        return os.open(parts[-1], _FILE, dir_fd=directory)
    except FileNotFoundError:
        return None
    finally:
        os.close(directory)

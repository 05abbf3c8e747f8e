"""An image's files, looked up by the paths that the kernel gives."""

import base64
import posixpath
import re
import struct
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from functools import cached_property

from cima_runc.measure.mtree import escape, unescape
from cima_runc.measure.xattrs import ACL_ACCESS
from cima_runc.verifier.reference.file import ImageReference, ReferenceFile
from cima_runc.verifier.reference.links import real
from cima_runc.verifier.rules.below import any_below

_SCRIPTS = (".cjs", ".js", ".lua", ".mjs", ".php", ".pl", ".py", ".pyc", ".rb", ".sh", ".ts")
"""How scripts are called that need not be executable, being given to an interpreter."""


_OF_NODE = (".cjs", ".js", ".json", ".mjs", ".node", ".ts")
"""What Node adds to a module's name, after it has looked for a file that is called so."""
_MODULES = re.compile(
    r"(?:graalpy|pypy|python)\d[\d.]*t?|lib_pypy|site-packages|dist-packages|lib-dynload|Lib"
)
"""Directories that Python looks for modules in; with ``t``, without its global lock; Jython's and
IronPython's ``Lib``."""
_ZIPPED = re.compile(r"python\d+t?\.zip")
"""Python's own library in one file, which comes before the directory (sys.path)."""
_OF_PYTHON = (".py", ".pyc", ".so")
_RELATIVE = (".lua", ".php")
_NO_DIRECTORIES = re.compile(r"(?:.*-nspkg|_virtualenv|a1_coverage|distutils-precedence)\.pth")
"""Files of path configurations (Python, site) of which it is known that they name no directory."""
_ACL_GROUP = 0x08
"""The tag of a named group in an access control list (include/uapi/linux/posix_acl.h)."""


class ImageFiles:
    """The flattened image. Paths are absolute in the container, and escaped as in a manifest."""

    def __init__(self, reference: ImageReference) -> None:
        self._files = reference.files

    def at(self, path: str) -> ReferenceFile | None:
        """Return what is exactly at a path, a symbolic link itself; None where nothing is."""
        return self._files.get(path)

    def resolve(self, path: bytes) -> ReferenceFile | None:
        """Return what a path leads to through the image's symbolic links; None for nothing.

        The kernel names a file by the directories that it is in, where the image's links are
        resolved already; a path as a program was called may go through them.
        """
        found = self._files.get(escape(path))
        if found is None or found.type == "link":
            found = self._files.get(self.real(escape(path)))
        return found

    def real(self, path: str) -> str:
        """Return a path without symbolic links; what the image does not have stays as it is, and
        so does what no kernel takes."""
        return real(path, self._files)

    def place(self, path: str) -> str:
        """Return where a path of a configuration leads, escaped and without symbolic links."""
        return self.real(escape(path_bytes(path)))

    def has_below(self, path: str) -> bool:
        """Whether the image has anything at a path that a mount there would hide.

        An empty directory is nothing: it is made to be mounted on.
        """
        found = self._files.get(path)
        if path == "/" or (found is not None and found.type != "dir"):
            return True
        return any_below(self._sorted, f"{path}/")

    def below(self, path: str) -> Iterator[bytes]:
        """Yield the paths, as they are, of all that the image has below a path."""
        start = path.rstrip("/") + "/"
        for at in range(bisect_left(self._sorted, start), len(self._sorted)):
            if not self._sorted[at].startswith(start):
                return
            yield unescape(self._sorted[at])

    @cached_property
    def _sorted(self) -> list[str]:
        return sorted(self._files)

    def has_module(self, name: str, path: Collection[str]) -> bool:
        """Whether a module of this name may be found, without those that an interpreter has built
        in: one of Python's where it looks by itself or in a directory of ``path``, or any other's
        in the root.

        Where a file may name more directories to Python, what lies in any but in a package counts.
        """
        if any(f"/{name}{suffix}" in self._files for suffix in _OF_NODE):
            return True
        if name.isidentifier() and (self._has_zipped or any(map(self._is_file, path))):
            return True  # what is in a file of many modules is not known
        return any(
            directory == "/"  # where a directory comes first
            or directory in path
            or _MODULES.fullmatch(posixpath.basename(directory)) is not None
            or (self._has_paths and not self._is_package(directory))
            for directory in self._modules.get(name, ())
        )

    @cached_property
    def _modules(self) -> Mapping[str, set[str]]:
        """Names of Python's modules and packages, and the directories that they are in."""
        found: dict[str, set[str]] = defaultdict(set)
        for path in self._files:
            if path.endswith(_OF_PYTHON):
                directory, _, name = path.rpartition("/")
                found[name.partition(".")[0]].add(directory or "/")
                above, _, package = directory.rpartition("/")
                found[package].add(above or "/")
        return found

    @cached_property
    def _has_paths(self) -> bool:
        return any(
            path.endswith(".pth")
            and _MODULES.fullmatch(path.split("/")[-2]) is not None
            and _NO_DIRECTORIES.fullmatch(path.rpartition("/")[2]) is None
            for path in self._files
        )

    @cached_property
    def _has_zipped(self) -> bool:
        """Whether Python looks for modules in some file of many (zipimport)."""
        for path in self._files:
            if not path.endswith((".zip", ".egg")) or not self._is_file(path):
                continue
            directory, name = path.split("/")[-2:]
            if _ZIPPED.fullmatch(name) or (_MODULES.fullmatch(directory) and name.endswith(".egg")):
                return True
        return False

    def _is_file(self, path: str) -> bool:
        found = self._files.get(path)
        return found is not None and found.type == "file"

    def _is_package(self, directory: str) -> bool:
        return any(f"{directory}/__init__{suffix}" in self._files for suffix in _OF_PYTHON)

    @cached_property
    def includes(self) -> frozenset[str]:
        """First names of what PHP may include and Lua require by a relative path: all directories
        that such files are below, since any of them may be on the path, and Lua's modules."""
        found: set[str] = set()
        for path in self._files:
            if path.endswith(_RELATIVE):
                *above, name = path.split("/")
                found.update(above)
                found.add(name.removesuffix(".lua"))
        return frozenset(found - {""})

    @cached_property
    def groups(self) -> frozenset[int]:
        """Groups whose members may do other things with some file than others may."""
        found: set[int] = set()
        for file in self._files.values():
            acl = (file.xattrs or {}).get(ACL_ACCESS)
            mode = int(file.mode, 8)
            if file.type != "link" and (acl is not None or (mode >> 3 ^ mode) & 0o7):
                found.add(file.gid)
            found |= _groups_of(acl or "")
        return frozenset(found)

    def has_program_in(self, directory: str) -> bool:
        """Whether a program or script is in a directory, not in one below it."""
        return directory in self._with_programs

    def has_program_below(self, directory: str) -> bool:
        """Whether a program or script is in a directory, or in one below it."""
        return self.has_program_in(directory) or any_below(self._tops, f"{directory}/")

    @cached_property
    def _tops(self) -> list[str]:
        return sorted(self._with_programs)

    @cached_property
    def _with_programs(self) -> frozenset[str]:
        return frozenset(
            posixpath.dirname(path)
            for path, each in self._files.items()
            if each.type == "file" and is_program(path, int(each.mode, 8))
        )

    def directories(self, *, with_files: bool = False) -> Iterator[str]:
        """Yield the paths of directories, and of symbolic links, whose names are plain ASCII."""
        for path, each in self._files.items():
            if (with_files or each.type in {"dir", "link"}) and "\\" not in path:
                yield path

    def with_content(self, sha256: str) -> str | None:
        """Return the first path of a file with this content (hex SHA-256); None for none."""
        return self._by_content.get(sha256)

    @cached_property
    def _by_content(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for path in sorted(self._files):
            sha256 = self._files[path].sha256
            if sha256 is not None:
                found.setdefault(sha256, path)
        return found


def path_bytes(path: str) -> bytes:
    """Return a path of a configuration. Lone surrogates come from JSON only: what has one is the
    same as no path that a kernel gives."""
    return path.encode("utf-8", "surrogatepass")


def is_program(path: str, mode: int) -> bool:
    """Whether a file is a program, or a script that may be given to an interpreter."""
    return bool(mode & 0o111) or path.endswith(_SCRIPTS)


def _groups_of(acl: str) -> set[int]:
    """Return the groups that an access control list names (linux/posix_acl_xattr.h)."""
    try:
        entries = base64.b64decode(acl)[4:]
    except ValueError:
        return set()
    whole = entries[: len(entries) // 8 * 8]
    return {gid for tag, _, gid in struct.iter_unpack("<HHI", whole) if tag == _ACL_GROUP}

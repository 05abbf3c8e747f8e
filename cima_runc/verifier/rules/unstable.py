"""A file that ran, though what ran may not be what its digest says: it is compared all the same."""

from dataclasses import dataclass
from typing import TypeGuard

from cima_runc.ima.template import Func
from cima_runc.ml.contents import Violation, ViolationV1
from cima_runc.verifier.pattern import exactly
from cima_runc.verifier.toml import array, quoted

_SHA256_SIZE = 32


@dataclass(frozen=True)
class UnstableFile:
    """A file that ran, by a name and a digest that nothing vouches for."""

    path: bytes
    digest: bytes
    """SHA-256."""
    func: Func
    why: str


@dataclass(frozen=True)
class UnknownFile:
    """A file that was used, and has no digest: what its content was, nobody knows."""

    path: bytes
    func: str | None
    why: str

    @property
    def key(self) -> str:
        """The keys of ``[[unstable]]`` in a policy that allow this alone, one a line."""
        how = f"func = {array([self.func])}\n" if self.func is not None else ""
        why = f"why = {array([self.why])}\n"
        return f"path = {quoted(exactly(self.path))}\n{why}{how}without_digest = true\n"


def unknown_file(content: ViolationV1) -> UnknownFile | None:
    """Return the file of an unstable violation without a digest; None: it has one, or no path."""
    if not _is_unstable(content) or content.digest is not None:
        return None
    if not content.path_hex or content.why is None:
        return None
    return UnknownFile(content.path_hex, content.func, content.why)


def _is_unstable(content: ViolationV1) -> TypeGuard[Violation]:
    return isinstance(content, Violation) and content.kind == "unstable"


def unstable_file(content: ViolationV1) -> UnstableFile | None:
    """Return the file of a violation that can be compared with an image; None: it has none."""
    if not _is_unstable(content) or content.denied:
        return None
    func = next((each for each in Func if each.value == content.func), None)
    if not content.path_hex or content.why is None or func is None:
        return None
    if content.digest is None or len(content.digest) != _SHA256_SIZE:
        return None
    return UnstableFile(content.path_hex, content.digest, func, content.why)

"""A file that ran, though what ran may not be what its digest says: it is compared all the same."""

from dataclasses import dataclass

from cima_runc.ima.template import Func
from cima_runc.ml.contents import Violation, ViolationV1

_SHA256_SIZE = 32


@dataclass(frozen=True)
class UnstableFile:
    """A file that ran, by a name and a digest that nothing vouches for."""

    path: bytes
    digest: bytes
    """SHA-256."""
    func: Func
    why: str


def unstable_file(content: ViolationV1) -> UnstableFile | None:
    """Return the file of a violation that can be compared with an image; None: it has none."""
    if not isinstance(content, Violation) or content.kind != "unstable" or content.denied:
        return None
    func = next((each for each in Func if each.value == content.func), None)
    if not content.path_hex or content.why is None or func is None:
        return None
    if content.digest is None or len(content.digest) != _SHA256_SIZE:
        return None
    return UnstableFile(content.path_hex, content.digest, func, content.why)

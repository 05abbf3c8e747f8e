"""Reference values and a policy, each read once: what is parsed is what is hashed.

So a file that changes between two readings, or a pipe that can be read but once, cannot give the
records of one appraisal the identity of another.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cima_runc import __version__
from cima_runc.base.errors import CimaError
from cima_runc.verifier.appraisal import References, compare
from cima_runc.verifier.policy import Policy, parse_policy
from cima_runc.verifier.reference.file import HostReference, ImageReference, parse_reference
from cima_runc.verifier.result import Source
from cima_runc.verifier.verify import Appraisal


class ReferencesError(CimaError):
    """The files are not what a container can be appraised with."""


@dataclass(frozen=True)
class Values:
    """What containers are compared with."""

    references: References | None
    """None: nothing is appraised, and nothing TRUSTED."""
    policy: Policy
    sources: tuple[Source, ...]
    """Where they come from, with digests and versions."""

    @property
    def appraisal(self) -> Appraisal | None:
        """What :func:`cima_runc.verifier.verify.verify` appraises with."""
        if self.references is None:
            return None
        identity = identity_of((source.kind, source.sha256) for source in self.sources)
        return Appraisal(compare, self.references, identity)


def identity_of(sources: Iterable[tuple[str, bytes]]) -> bytes:
    """Return what identifies reference values and a policy, by kind and SHA-256 of each."""
    hasher = hashlib.sha256(b"cima-values-2\0" + __version__.encode("ascii"))
    for kind, sha256 in sorted(sources):
        hasher.update(kind.encode("ascii") + b"\0" + sha256)
    return hasher.digest()


def read_values(references: Sequence[bytes], policy: bytes | None) -> Values:
    """Read files of reference values (of one image, and of one host), and a policy (TOML).

    ``policy`` None is the default one.

    Raises:
        ReferenceFileError, PolicyError: one cannot be read.
        ReferencesError: references without an image's, or more than one of a kind.
    """
    found: dict[str, ImageReference | HostReference] = {}
    sources = [_policy_source(policy)]
    for raw in references:
        reference = parse_reference(raw)
        if reference.kind in found:
            raise ReferencesError(
                f"there is a second file of reference values of one {reference.kind}",
                hint="give one of the image and one of the host",
            )
        found[reference.kind] = reference
        sources.append(_reference_source(reference, raw))
    insisted = parse_policy(policy) if policy is not None else Policy()
    if not found:
        return Values(None, insisted, tuple(sources))
    image, host = found.get("image"), found.get("host")
    if not isinstance(image, ImageReference):
        raise ReferencesError(
            "no reference values of an image were given",
            hint="make them with `cima reference image IMAGE -o ref.json`, give --reference",
        )
    known = References(image, host if isinstance(host, HostReference) else None)
    return Values(known, insisted, tuple(sources))


def _policy_source(policy: bytes | None) -> Source:
    if policy is None:
        digest = hashlib.sha256(b"default").digest()
        return Source(kind="policy", name="default", version=__version__, sha256=digest)
    digest = hashlib.sha256(policy).digest()
    return Source(kind="policy", name="", version=__version__, sha256=digest)


def _reference_source(reference: ImageReference | HostReference, raw: bytes) -> Source:
    name = ""
    if isinstance(reference, ImageReference):
        name = reference.name or reference.image_id
    return Source(
        kind=reference.kind,
        name=name,
        version=str(reference.version),
        sha256=hashlib.sha256(raw).digest(),
    )

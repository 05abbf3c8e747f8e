"""The reference values and the policy that commands are given."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from cima_runc.base import limits
from cima_runc.base.errors import CimaError
from cima_runc.cli import files
from cima_runc.verifier.appraisal import References, compare
from cima_runc.verifier.policy import Policy, parse_policy
from cima_runc.verifier.reference.file import (
    HostReference,
    ImageReference,
    parse_reference,
    read_limited,
)
from cima_runc.verifier.verify import Appraisal


class ReferencesError(CimaError):
    """The files are not what a container can be appraised with."""


def read_policy(path: Path | None) -> Policy:
    """Return the policy in a file, the default one for None.

    Raises:
        FileError, PolicyError: it cannot be read, or holds what is not allowed.
    """
    return parse_policy(files.read(path)) if path is not None else Policy()


def read_references(paths: Sequence[Path]) -> References:
    """Return the reference values in files: of one image, and of one host.

    Raises:
        ReferenceFileError: one cannot be read.
        ReferencesError: there is no image among them, or more than one of a kind.
    """
    image: ImageReference | None = None
    host: HostReference | None = None
    for path in paths:
        found = parse_reference(read_limited(path, limits.REFERENCE))
        if isinstance(found, ImageReference) and image is None:
            image = found
        elif isinstance(found, HostReference) and host is None:
            host = found
        else:
            raise ReferencesError(
                f"{path} is a second file of reference values of one {found.kind}",
                hint="give one of the image and one of the host",
            )
    if image is None:
        raise ReferencesError(
            "no reference values of an image were given",
            hint="make them with `cima reference image IMAGE -o ref.json`, give --reference",
        )
    return References(image, host)


def appraisal(paths: Sequence[Path], policy: Path | None) -> Appraisal:
    """Return what :func:`cima_runc.verifier.verify.verify` appraises with.

    Raises:
        CimaError: as :func:`read_references`.
    """
    references = read_references(paths)
    hasher = hashlib.sha256()
    for path in (*paths, *([policy] if policy is not None else [])):
        content = hashlib.sha256(read_limited(path, limits.REFERENCE)).digest()
        hasher.update(content)
    return Appraisal(compare, references, hasher.digest())

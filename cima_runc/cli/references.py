"""The reference values and the policy that commands are given."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cima_runc.base import limits
from cima_runc.cli import files
from cima_runc.verifier.appraisal import References
from cima_runc.verifier.policy import PolicyError, parse_policy
from cima_runc.verifier.reference.file import ReferenceFileError, parse_reference
from cima_runc.verifier.values import ReferencesError, Values, read_values


@contextmanager
def naming(
    paths: Sequence[Path], policy: Path | None, raw: Sequence[bytes], insisted: bytes | None
) -> Iterator[None]:
    """Name the file in an error about reference values or a policy.

    ``raw`` and ``insisted`` are what was read from them, once: a pipe gives nothing again.

    Raises:
        FileError: in place of an error that names no file.
    """
    try:
        yield
    except (ReferenceFileError, PolicyError):
        for path, data in zip(paths, raw, strict=True):
            with files.about(path):
                parse_reference(data)
        if policy is not None and insisted is not None:
            with files.about(policy):
                parse_policy(insisted)
        raise


def read_references(paths: Sequence[Path]) -> References:
    """Return the reference values in files: of one image, and of one host.

    Raises:
        CimaError: as :func:`values_in`, and where there are none.
    """
    found = values_in(paths, None).references
    if found is None:
        raise ReferencesError("no reference values were given", hint="give --reference")
    return found


def values_in(paths: Sequence[Path], policy: Path | None) -> Values:
    """Return the reference values and the policy in files; ``-`` is standard input.

    Raises:
        FileError: a file cannot be read.
        ReferenceFileError, ReferencesError, PolicyError: one does not hold what it should.
    """
    raw, insisted = read_files(paths, policy)
    with naming(paths, policy, raw, insisted):
        return read_values(raw, insisted)


def read_files(paths: Sequence[Path], policy: Path | None) -> tuple[list[bytes], bytes | None]:
    """Return the bytes of files of reference values, and of a policy, each read once.

    Raises:
        FileError: a file cannot be read.
    """
    raw = [files.read(path, limit=limits.REFERENCE) for path in paths]
    return raw, files.read(policy) if policy is not None else None

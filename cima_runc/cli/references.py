"""The reference values and the policy that commands are given."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cima_runc.base import limits
from cima_runc.cli import files
from cima_runc.verifier.appraisal import References
from cima_runc.verifier.policy import Policy, PolicyError, parse_policy
from cima_runc.verifier.reference.file import ReferenceFileError, parse_reference
from cima_runc.verifier.values import ReferencesError, Values, read_values


@contextmanager
def naming(paths: Sequence[Path], policy: Path | None) -> Iterator[None]:
    """Name the file in an error about reference values or a policy, by looking at each again.

    Raises:
        FileError: in place of an error that names no file.
    """
    try:
        yield
    except (ReferenceFileError, PolicyError):
        for path in paths:
            if str(path) != "-":
                files.parsed(path, parse_reference, limit=limits.REFERENCE)
        if policy is not None and str(policy) != "-":
            files.parsed(policy, parse_policy)
        raise


def read_policy(path: Path | None) -> Policy:
    """Return the policy in a file, the default one for None.

    Raises:
        FileError, PolicyError: it cannot be read, or holds what is not allowed.
    """
    return files.parsed(path, parse_policy) if path is not None else Policy()


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
    with naming(paths, policy):
        return read_values(*read_files(paths, policy))


def read_files(paths: Sequence[Path], policy: Path | None) -> tuple[list[bytes], bytes | None]:
    """Return the bytes of files of reference values, and of a policy, each read once.

    Raises:
        FileError: a file cannot be read.
    """
    raw = [files.read(path, limit=limits.REFERENCE) for path in paths]
    return raw, files.read(policy) if policy is not None else None

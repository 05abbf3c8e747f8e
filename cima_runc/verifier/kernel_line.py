"""The kernel's own line that stands beside a file of the host services, and what it says.

The records of the host services rest on the kernel's log of the host's own files: each comes with
its line, ``{"template", "data"}``, so that it can be looked up in the log as PCR 10 proves it.
Source: design, section 7; ima_template_lib.c of Linux 6.1.
"""

from dataclasses import dataclass
from typing import Any

from cima_runc.base.text import printable
from cima_runc.evidence.fields import decode_base64
from cima_runc.ima.template import TemplateError, fields_of, unpack_fields
from cima_runc.ml.contents import File, Measured
from cima_runc.verifier import errors
from cima_runc.verifier.steps.hints import REPORT

_MEMFD = b"/memfd:"


@dataclass(frozen=True)
class HostFile:
    """What a line of the host's log says of a file."""

    algorithm: str
    digest: bytes
    path: bytes


def read_line(data: bytes) -> HostFile | None:
    """Return what template data says of a file, None where it holds no digest and name."""
    try:
        fields = unpack_fields(data)
    except TemplateError:
        return None
    if len(fields) < 2 or not fields[1].endswith(b"\0"):
        return None
    algorithm, separator, digest = fields[0].partition(b":\0")
    if not separator or not algorithm.isascii() or not digest:
        return None
    # d-ngv2 says of what the digest is: of the file (ima), or of a tree of hashes (verity).
    name = algorithm.removeprefix(b"ima:").decode("ascii")
    return HostFile(name, digest, fields[1][:-1])


def is_of_another_order(template: str) -> bool:
    """Whether a template has the digest and the name of a file elsewhere than first and second.

    Of such (``ima_template_fmt=n-ng|d-ng``) :func:`read_line` reads nothing: which field is which
    nobody proves, since the PCR is of the fields alone.
    """
    names = fields_of(template.encode("utf-8", "surrogatepass"))
    return bool(names) and not (
        names[0] in {b"d-ng", b"d-ngv2"} and names[1:2] in {(b"n-ng",), (b"n",)}
    )


def take_line(value: Any) -> tuple[Any, bytes | None]:
    """Take the line from beside a record of the host services.

    Args:
        value: the record as JSON.

    Returns:
        The record without its line, and the line's template data; None where it has no line.

    Raises:
        RecordFormatError: what stands there is no line.
    """
    if not isinstance(value, dict) or "line" not in value:
        return value, None
    line = value["line"]
    if not isinstance(line, dict) or line.keys() != {"template", "data"}:
        raise errors.RecordFormatError("a line has template and data, and no more", hint=REPORT)
    template, data = line["template"], line["data"]
    if not isinstance(template, str) or not isinstance(data, str):
        raise errors.RecordFormatError("a line's template and data are texts", hint=REPORT)
    try:
        raw = decode_base64(data)
    except ValueError as error:
        raise errors.RecordFormatError(f"a line's data: {error}", hint=REPORT) from error
    return {key: kept for key, kept in value.items() if key != "line"}, raw


def check_line(record: Measured, line: bytes) -> None:
    """The line is of the file that the record is of.

    Raises:
        DependencyLineError: it is another's, or the record is of no file.
    """
    number, content = record
    if not isinstance(content, File):
        raise errors.DependencyLineError(
            f"record {number} of the host services is of no file, and comes with a line of one",
            hint=REPORT,
        )
    said = read_line(line)
    # The kernel writes a name's spaces as underscores.
    names = {content.path.replace(b" ", b"_")}
    if content.path.startswith(_MEMFD):
        names.add(content.path[1:].replace(b" ", b"_"))
    if (
        said is None
        or (said.algorithm, said.digest) != ("sha256", content.digest)
        or said.path not in names
    ):
        raise errors.DependencyLineError(
            f"record {number} of the host services, {printable(content.path)}, comes with another "
            "file's line",
            expected=content.digest.hex(),
            found=f"{said.digest.hex()} {printable(said.path)}" if said else "no file",
            hint=REPORT,
        )

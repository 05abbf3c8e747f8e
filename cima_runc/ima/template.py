"""IMA template data: a run of fields, each a length and that many bytes.

Source: security/integrity/ima/ima_template.c and ima_template_lib.c of Linux 6.1, and
Documentation/security/IMA-templates.rst.
"""

import struct
from collections.abc import Sequence
from enum import StrEnum

from cima_runc.base import limits
from cima_runc.base.errors import CimaError

CIMA_NG = "cima-ng"
"""The template of a container's file measurements: fields d-ng, n-ng, mns, func."""

_LENGTH = struct.Struct("<I")
_SHA256 = b"sha256:\0"


_FIELDS = {
    b"ima": (b"d", b"n"),
    b"ima-ng": (b"d-ng", b"n-ng"),
    b"ima-ngv2": (b"d-ngv2", b"n-ng"),
    b"ima-sig": (b"d-ng", b"n-ng", b"sig"),
    b"ima-sigv2": (b"d-ngv2", b"n-ng", b"sig"),
    b"ima-buf": (b"d-ng", b"n-ng", b"buf"),
    b"ima-modsig": (b"d-ng", b"n-ng", b"sig", b"d-modsig", b"modsig"),
    b"evm-sig": (
        *(b"d-ng", b"n-ng", b"evmsig", b"xattrnames", b"xattrlengths", b"xattrvalues"),
        *(b"iuid", b"igid", b"imode"),
    ),
}
"""The kernel's own templates."""


def fields_of(template: bytes) -> tuple[bytes, ...]:
    """Return the names of a template's fields; none for one that is not known.

    A template of ``ima_template_fmt=`` has no name of its own: the log shows its fields instead.
    """
    if template in _FIELDS:
        return _FIELDS[template]
    parts = tuple(template.split(b"|"))
    return parts if parts[0] in _FIELD_NAMES else ()


_FIELD_NAMES = frozenset(field for fields in _FIELDS.values() for field in fields)


class TemplateError(CimaError):
    """The template data is not what its template says."""


class Func(StrEnum):
    """The IMA hook that saw a file (ima_policy.c), as it stands in the ``func`` field."""

    BPRM_CHECK = "BPRM_CHECK"
    """Executed, or run as a script or as a script's interpreter."""
    MMAP_CHECK = "MMAP_CHECK"
    """Mapped executable."""
    FILE_CHECK = "FILE_CHECK"
    """Read."""


_START = _LENGTH.pack(len(_SHA256) + 32) + _SHA256
_END = b"\0" + _LENGTH.pack(_LENGTH.size)
_AFTER_MNS = {
    _LENGTH.pack(len(func)) + func.value.encode("ascii"): func
    for func in (Func.BPRM_CHECK, Func.MMAP_CHECK, Func.FILE_CHECK)
}


def pack_fields(fields: Sequence[bytes]) -> bytes:
    """Return template data: for each field its length (u32 little-endian) and its bytes."""
    return b"".join(_LENGTH.pack(len(field)) + field for field in fields)


def unpack_fields(data: bytes) -> list[bytes]:
    """Split template data into its fields.

    Raises:
        TemplateError: too long, or a length reaches past the end.
    """
    if len(data) > limits.IMA_LINE:
        raise TemplateError(f"template data has more than {limits.IMA_LINE} bytes")
    fields = []
    offset = 0
    while offset < len(data):
        if offset + _LENGTH.size > len(data):
            raise TemplateError("template data ends within a field's length")
        (length,) = _LENGTH.unpack_from(data, offset)
        offset += _LENGTH.size
        if offset + length > len(data):
            raise TemplateError("template data ends within a field")
        fields.append(data[offset : offset + length])
        offset += length
    return fields


def pack_cima_ng(digest: bytes, path: bytes, mntns: int, func: Func) -> bytes:
    r"""Return the template data of a file measurement in a container.

    ``digest`` is the file's SHA-256 (32 bytes), ``path`` as the kernel gave it (no NUL),
    ``mntns`` the mount namespace's inode number (stored as u32 little-endian).
    """
    return pack_fields(
        [_SHA256 + digest, path + b"\0", _LENGTH.pack(mntns), func.value.encode("ascii")]
    )


def unpack_cima_ng(data: bytes) -> tuple[bytes, bytes, int, Func]:
    """Return (digest, path, mntns, func) of a file measurement's template data.

    Raises:
        TemplateError: not the four fields that :func:`pack_cima_ng` writes.
    """
    return _unpack_at_once(data) or _unpack_with_words(data)


def _unpack_at_once(data: bytes) -> tuple[bytes, bytes, int, Func] | None:
    """Return what a well-formed one holds, with a compare and a slice a field; else None.

    Evidence may have hundreds of thousands of them.
    """
    if not data.startswith(_START) or len(data) > limits.IMA_LINE:
        return None
    end = 48 + int.from_bytes(data[44:48], "little")
    func = _AFTER_MNS.get(data[end + 8 :])
    if func is None or data[end - 1 : end + 4] != _END or data.find(b"\0", 48, end) != end - 1:
        return None
    return data[12:44], data[48 : end - 1], int.from_bytes(data[end + 4 : end + 8], "little"), func


def _unpack_with_words(data: bytes) -> tuple[bytes, bytes, int, Func]:
    """The same, and what is wrong with one that is not well formed."""
    fields = unpack_fields(data)
    if len(fields) != 4:
        raise TemplateError(f"{CIMA_NG} has 4 fields, found {len(fields)}")
    digest, path, mntns, func = fields
    if len(digest) != len(_SHA256) + 32 or not digest.startswith(_SHA256):
        raise TemplateError("the d-ng field is not sha256: and 32 bytes")
    if not path.endswith(b"\0") or b"\0" in path[:-1]:
        raise TemplateError("the n-ng field is not a path and a NUL")
    if len(mntns) != _LENGTH.size:
        raise TemplateError("the mns field is not 4 bytes")
    try:
        hook = Func(func.decode("ascii"))
    except ValueError as error:
        raise TemplateError("the func field names no IMA hook that we know") from error
    return digest[len(_SHA256) :], path[:-1], _LENGTH.unpack(mntns)[0], hook

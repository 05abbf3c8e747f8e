"""One entry of the kernel's measurement log, from its ascii or its binary form.

Source: security/integrity/ima/ima_fs.c (ima_ascii_measurements_show, ima_measurements_show) and
ima_template_lib.c of Linux 6.1; Documentation/security/IMA-templates.rst.
"""

import hashlib
import struct
from dataclasses import dataclass

from cima_runc.base import limits
from cima_runc.base.errors import CimaError
from cima_runc.ima.template import TemplateError, fields_of, pack_fields, unpack_fields

SHA1_SIZE = 20
_SHOWN = {b"d-ng": "digest", b"d-ngv2": "digest", b"n-ng": "name", b"sig": "hex", b"buf": "hex"}
"""Fields that the ascii log shows so that what was hashed can be told from it alone."""


class EntryError(CimaError):
    """The line or record is not an entry of the kernel's log."""


@dataclass(frozen=True)
class Entry:
    """What the kernel measured once."""

    pcr: int
    """The PCR that was extended."""
    template_hash: bytes
    """SHA-1 of the template data, 20 bytes; all zero for a violation."""
    template: bytes
    """Name of the template."""
    data: bytes
    """Template data."""

    @property
    def violation(self) -> bool:
        """Whether the file could not be measured reliably (open for writing, or read while so)."""
        return not any(self.template_hash)

    @property
    def checked(self) -> bool:
        """Whether the template hash is that of the data; a violation has none to check."""
        return self.violation or hashlib.sha1(self.data).digest() == self.template_hash  # noqa: S324 - IMA's own

    def extends(self, bank: str) -> bytes:
        """Return what the PCR of this bank (``sha1``, ``sha256``, ...) was extended with."""
        digest = hashlib.new(bank, self.data)
        return b"\xff" * digest.digest_size if self.violation else digest.digest()

    @property
    def name(self) -> bytes | None:
        """The path as hashed, or ``boot_aggregate``; None where the template has none."""
        field = self._field(b"n-ng")
        if field is None:
            field = self._field(b"n")
        return field.removesuffix(b"\0") if field is not None else None

    @property
    def digest(self) -> tuple[str, bytes] | None:
        """(hash algorithm, digest) of the file's content; None where the entry holds no such.

        A digest of fs-verity (``verity:`` in d-ngv2) is one of a tree of hashes, not of the file.
        """
        field = self._field(b"d-ng")
        kind = b""
        if field is None:
            field = self._field(b"d-ngv2")
            if field is not None:
                kind, _, field = field.partition(b":")
        if field is None or kind not in {b"", b"ima"}:
            return None
        algorithm, _, value = field.partition(b":\0")
        return algorithm.decode("ascii", "replace"), value

    @property
    def file(self) -> tuple[bytes, bytes] | None:
        """(SHA-256 of the file, path as hashed), or None where the entry holds no such."""
        digest, name = self.digest, self.name
        if digest is None or name is None or digest[0] != "sha256" or len(digest[1]) != 32:
            return None
        return digest[1], name

    def _field(self, wanted: bytes) -> bytes | None:
        names = fields_of(self.template)
        if wanted not in names:
            return None
        if self.template == b"ima":
            fields = [self.data[:SHA1_SIZE], self.data[SHA1_SIZE:].rstrip(b"\0")]
        else:
            fields = unpack_fields(self.data)
        at = names.index(wanted)
        return fields[at] if at < len(fields) else None


def parse_ascii(line: bytes) -> Entry | None:
    """Read one line of ``ascii_runtime_measurements``, without its newline.

    Returns None where the line alone does not say what was hashed: the name holds a newline, or may
    hold one (a violation), or the template is one whose ascii form is not unique. The binary record
    then does.
    """
    parts = line.lstrip(b" ").split(b" ")
    if len(parts) < 3:
        return None
    pcr, digest, template, *shown = parts
    kinds = [_SHOWN.get(name) for name in fields_of(template)]
    if not kinds or len(shown) != len(kinds) or not pcr.isdigit() or len(digest) != 40:
        return None
    try:
        fields = [_unshown(kind, text) for kind, text in zip(kinds, shown, strict=True)]
        entry = Entry(
            int(pcr), bytes.fromhex(digest.decode("ascii")), template, pack_fields(fields)
        )
    except ValueError:
        return None
    # Of a violation there is no hash by which a line that was cut within its name would show.
    return entry if entry.checked and not entry.violation else None


def _unshown(kind: str | None, text: bytes) -> bytes:
    if kind is None:
        raise ValueError("a field that is not shown as it was hashed")
    if kind == "name":
        return text + b"\0"
    if kind == "hex":
        return bytes.fromhex(text.decode("ascii"))
    prefix, colon, digest = text.rpartition(b":")
    return prefix + colon + b"\0" + bytes.fromhex(digest.decode("ascii"))


_HEAD = struct.Struct("<I20sI")
_LENGTH = struct.Struct("<I")


def parse_binary(data: bytes, offset: int) -> tuple[Entry, int] | None:
    """Read the record at ``offset`` of ``binary_runtime_measurements``, and where the next begins.

    A record is: PCR (u32), SHA-1 template hash (20 bytes), length of the template's name (u32) and
    the name, length of the template data (u32) and the data; the old template ``ima`` has no
    length of its data: 20 bytes, then u32 and the name. Numbers are little-endian.

    Returns None where ``data`` ends within the record.

    Raises:
        EntryError: a length is above our limits, or the template hash is not that of the data.
    """
    if offset + _HEAD.size > len(data):
        return None
    pcr, template_hash, name_length = _HEAD.unpack_from(data, offset)
    if name_length > 255:
        raise EntryError("the binary log names a template of more than 255 bytes")
    offset += _HEAD.size
    template = data[offset : offset + name_length]
    offset += name_length
    legacy = template == b"ima"
    if legacy:
        offset += SHA1_SIZE
    if offset + _LENGTH.size > len(data):
        return None
    (length,) = _LENGTH.unpack_from(data, offset)
    if length > limits.IMA_LINE:
        raise EntryError(f"the binary log holds a record of more than {limits.IMA_LINE} bytes")
    offset += _LENGTH.size
    if offset + length > len(data):
        return None
    content = data[offset : offset + length]
    if legacy:
        digest = data[offset - _LENGTH.size - SHA1_SIZE : offset - _LENGTH.size]
        content = digest + content.ljust(256, b"\0")
    entry = Entry(pcr, template_hash, template, content)
    if not entry.checked:
        raise EntryError("a record of the binary log does not have the hash that it shows")
    try:
        entry.file  # noqa: B018 - the fields must be readable
    except (TemplateError, ValueError) as error:
        raise EntryError(f"a record of the binary log cannot be read: {error}") from error
    return entry, offset + length


def format_binary(entry: Entry) -> bytes:
    """Return an entry as ``binary_runtime_measurements`` has it; :func:`parse_binary` reads it."""
    head = _HEAD.pack(entry.pcr, entry.template_hash, len(entry.template)) + entry.template
    if entry.template == b"ima":
        name = entry.data[SHA1_SIZE:].rstrip(b"\0")
        return head + entry.data[:SHA1_SIZE] + _LENGTH.pack(len(name)) + name
    return head + _LENGTH.pack(len(entry.data)) + entry.data

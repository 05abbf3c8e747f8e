"""Records of a partition, in the shape of TCG's Canonical Event Log (JSON encoding).

One record is one line of JSON. What is measured is ``content``; ``meta`` is for people.
Source: design, section 5; TCG Canonical Event Log Format 1.0, section 4 (JSON encoding).
"""

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import rfc8785

from cima_runc.base import limits
from cima_runc.base.errors import CimaError
from cima_runc.base.jsonio import JsonError, load_object
from cima_runc.base.text import printable
from cima_runc.cpcr import register
from cima_runc.evidence.fields import decode_base64
from cima_runc.ima import template

IMA_TEMPLATE = "ima_template"
"""``content_type`` of a file measurement."""

CIMA = "cima"
"""``content_type`` of everything else; ``content`` has a ``type``."""


class RecordError(CimaError):
    """A record is not what it claims to be."""


_SHOWN = 200
"""Characters of unknown keys, at most."""
FIELDS = frozenset({"recnum", "cpcr", "digests", "content_type", "content", "meta"})
"""What a record has, and nothing else."""


class Record(NamedTuple):
    """One entry of a container's measurement log.

    A tuple, since evidence may have hundreds of thousands of them.
    """

    recnum: int
    """Number of the record in its partition, from 0."""
    cpcr: str
    """The container's id, which names the register that the record extends."""
    digest: bytes
    """SHA-256 of what is measured, 32 bytes."""
    content_type: str
    """``ima_template`` or ``cima``."""
    content: Mapping[str, Any]
    """What is measured."""
    meta: Mapping[str, Any]
    """What is not measured: time, process, line of the kernel's log."""

    def to_line(self) -> bytes:
        """Return the record as it is stored, without the newline."""
        return json.dumps(
            {
                "recnum": self.recnum,
                "cpcr": self.cpcr,
                "digests": [{"hashAlg": "sha256", "digest": self.digest.hex()}],
                "content_type": self.content_type,
                "content": self.content,
                "meta": self.meta,
            },
            separators=(",", ":"),
        ).encode("ascii")


def file_content(template_data: bytes) -> dict[str, Any]:
    """Return the ``content`` of a file measurement with this ``cima-ng`` template data."""
    return {
        "template_name": template.CIMA_NG,
        "template_data": base64.b64encode(template_data).decode("ascii"),
    }


def template_data(content: Mapping[str, Any]) -> bytes:
    """Return the template data of a file measurement's ``content``.

    Raises:
        RecordError: another template, or not base64.
    """
    if content.get("template_name") != template.CIMA_NG:
        raise RecordError(f"a container's file measurement has the template {template.CIMA_NG}")
    encoded = content.get("template_data")
    if type(encoded) is not str or len(content) != 2:
        raise RecordError("a file measurement has template_name and template_data, and no more")
    try:
        return decode_base64(encoded)
    except ValueError as error:
        raise RecordError(f"template_data: {error}") from error


def digest_of(content_type: str, content: Mapping[str, Any]) -> bytes:
    """Return the digest of a record with this content: SHA-256 of what is measured of it.

    That is the template data of a file measurement, and the RFC 8785 bytes of anything else.

    Raises:
        RecordError: no such content type, or the content has no canonical form.
    """
    if content_type == IMA_TEMPLATE:
        return hashlib.sha256(template_data(content)).digest()
    if content_type == CIMA:
        try:
            canonical = rfc8785.dumps(dict(content))
        except (rfc8785.CanonicalizationError, UnicodeEncodeError) as error:
            raise RecordError(f"the content has no canonical form (RFC 8785): {error}") from error
        return hashlib.sha256(canonical).digest()
    raise RecordError(f"a record's content_type is {IMA_TEMPLATE} or {CIMA}, not {content_type}")


def parse_line(line: bytes) -> Record:
    """Parse one stored record and check its digest.

    Raises:
        RecordError: not a record, or its digest is not that of its content.
    """
    try:
        value = load_object(line, what="a record", limit=limits.RECORD)
    except JsonError as error:
        raise RecordError(error.what) from error
    record = parse_fields(value)
    if record.digest != digest_of(record.content_type, record.content):
        raise RecordError(f"record {record.recnum}: the digest is not that of the content")
    return record


def parse_fields(value: Any) -> Record:
    """Read a record from its JSON object; whether its digest is right is not looked at.

    Raises:
        RecordError: a field is missing, or not what it should be, or one too many.
    """
    if not isinstance(value, dict):
        raise RecordError("a record is not an object")
    if value.keys() != FIELDS:
        lacking = ", ".join(sorted(FIELDS - value.keys()))
        more = printable(", ".join(sorted(value.keys() - FIELDS))[:_SHOWN])
        told = [f"lacks {lacking}"] * bool(lacking) + [f"has {more}"] * bool(more)
        raise RecordError(f"it is no record: it {', and '.join(told)}")
    recnum, cpcr, digests = value["recnum"], value["cpcr"], value["digests"]
    content_type, content, meta = value["content_type"], value["content"], value["meta"]
    if type(recnum) is not int or recnum < 0:
        raise RecordError("recnum is not a number from 0")
    if not isinstance(cpcr, str) or not isinstance(content_type, str):
        raise RecordError(f"record {recnum}: cpcr and content_type are strings")
    if not isinstance(content, dict) or not isinstance(meta, dict):
        raise RecordError(f"record {recnum}: content and meta are objects")
    digest = _sha256_digest(recnum, digests)
    return Record(recnum, cpcr, digest, content_type, content, meta)


def _sha256_digest(recnum: int, digests: object) -> bytes:
    # Plain comparisons: this runs for every record of a partition.
    if type(digests) is list and len(digests) == 1:
        only = digests[0]
        if type(only) is dict and len(only) == 2 and only.get("hashAlg") == "sha256":
            text = only.get("digest")
            if type(text) is str and len(text) == 64:
                try:
                    digest = bytes.fromhex(text)
                except ValueError:
                    digest = b""
                if digest.hex() == text:
                    return digest
    raise RecordError(f"record {recnum}: digests is not one sha256 digest, lower-case hexadecimal")


def replay(records: Iterable[Record]) -> tuple[bytes, int]:
    """Return (cPCR, count) after these records of one container, from its first on.

    Raises:
        RecordError: a record is missing, doubled, out of order or of another container.
    """
    value = register.ZERO
    count = 0
    owner: str | None = None
    for record in records:
        if record.recnum != count:
            raise RecordError(f"expected record {count}, found {record.recnum}")
        if owner is not None and record.cpcr != owner:
            raise RecordError(f"record {count} is of another container, {record.cpcr}")
        owner = record.cpcr
        value = register.extend(value, record.digest)
        count += 1
    return value, count

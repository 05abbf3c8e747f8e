"""A partition in the forms that other tools read.

- ``ima-ascii``: a line a record, as the kernel prints its own log; for people and scripts.
- ``cel-json``: TCG's Canonical Event Log, JSON encoding: an array of records.
- ``cel-tlv``: the same in type, length (u32 big-endian), value.

A virtual register is no PCR: where the format has ``pcr``, a record has ``cpcr`` with the
container's id, in TLV as the private type 0xC0; content that is not a file measurement is the
private type 0xC1, its RFC 8785 bytes.
Source: TCG Canonical Event Log Format 1.0, sections 4.2 and 5.
"""

import json
import struct
from collections.abc import Iterable, Iterator

import rfc8785

from cima_runc.base.text import printable
from cima_runc.ima.template import unpack_cima_ng
from cima_runc.ml.records import IMA_TEMPLATE, Record, template_data

_RECNUM, _DIGESTS, _IMA_TEMPLATE = 0, 3, 7
_TEMPLATE_NAME, _TEMPLATE_DATA = 0, 1
_ALG_SHA256 = 0x0B
_CPCR, _CIMA = 0xC0, 0xC1


def ima_ascii(record: Record) -> str:
    """Return a record as IMA's ascii log would show it, its number in the PCR's place."""
    start = f"{record.recnum:>3} {record.digest.hex()} "
    if record.content_type == IMA_TEMPLATE:
        digest, path, mntns, func = unpack_cima_ng(template_data(record.content))
        return start + f"cima-ng sha256:{digest.hex()} {printable(path)} mnt:[{mntns}] {func}"
    content = {key: value for key, value in record.content.items() if key != "type"}
    text = json.dumps(content, sort_keys=True) if record.content["type"] != "config" else ""
    return start + f"cima {printable(str(record.content['type']))} {printable(text)}".rstrip()


def cel_json(records: Iterable[Record]) -> Iterator[str]:
    """Yield the text of the JSON encoding, piece by piece."""
    before = "["
    for record in records:
        value = {
            "recnum": record.recnum,
            "cpcr": record.cpcr,
            "digests": [{"hashAlg": "sha256", "digest": record.digest.hex()}],
            "content_type": record.content_type,
            "content": record.content,
        }
        yield before + json.dumps(value, separators=(",", ":"))
        before = ",\n"
    yield "[]\n" if before == "[" else "]\n"


def cel_tlv(record: Record) -> bytes:
    """Return a record in the TLV encoding."""
    if record.content_type == IMA_TEMPLATE:
        name = str(record.content["template_name"]).encode("ascii")
        inner = _tlv(_TEMPLATE_NAME, name) + _tlv(_TEMPLATE_DATA, template_data(record.content))
        content = _tlv(_IMA_TEMPLATE, inner)
    else:
        content = _tlv(_CIMA, rfc8785.dumps(dict(record.content)))
    return (
        _tlv(_RECNUM, struct.pack(">Q", record.recnum))
        + _tlv(_CPCR, record.cpcr.encode("utf-8"))
        + _tlv(_DIGESTS, _tlv(_ALG_SHA256, record.digest))
        + content
    )


def _tlv(kind: int, value: bytes) -> bytes:
    return struct.pack(">BI", kind, len(value)) + value

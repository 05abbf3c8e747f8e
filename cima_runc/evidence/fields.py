"""Bytes in JSON: how evidence writes digests and longer blobs, read strictly."""

import base64
import binascii
import re
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, WithJsonSchema

_HEX = re.compile(r"(?:[0-9a-f]{2})*")


def _from_hex(value: Any) -> Any:
    return decode_hex(value) if isinstance(value, str) else value


def decode_hex(text: str) -> bytes:
    """Read lower-case hexadecimal.

    Raises:
        ValueError: another spelling.
    """
    if not _HEX.fullmatch(text):
        raise ValueError("lower-case hexadecimal is expected")
    return bytes.fromhex(text)


def _from_base64(value: Any) -> Any:
    return decode_base64(value) if isinstance(value, str) else value


def decode_base64(text: str) -> bytes:
    """Read base64 (RFC 4648, section 4) in the one form that its bytes have.

    Raises:
        ValueError: no padding, or too much; other characters; bits that no byte has.
    """
    try:
        value = binascii.a2b_base64(text, strict_mode=True)
    except ValueError as error:
        raise ValueError("base64 is expected") from error
    # Only the last characters may have bits that no byte has; evidence may have 100 MB of others.
    end = binascii.b2a_base64(value[(len(value) - 1) // 3 * 3 :], newline=False)
    if value and end != text[-4:].encode("ascii"):
        raise ValueError("base64 in its one form is expected")
    return value


def _to_hex(value: bytes) -> str:
    return value.hex()


def _to_base64(value: bytes) -> str:
    return base64.b64encode(value).decode("ascii")


Hex = Annotated[
    bytes,
    BeforeValidator(_from_hex),
    PlainSerializer(_to_hex, when_used="json"),
    WithJsonSchema({"type": "string", "pattern": "^([0-9a-f]{2})*$"}),
]
"""Bytes as lower-case hexadecimal."""

Digest = Annotated[
    bytes,
    BeforeValidator(_from_hex),
    Field(min_length=32, max_length=32),
    PlainSerializer(_to_hex, when_used="json"),
    WithJsonSchema({"type": "string", "pattern": "^[0-9a-f]{64}$"}),
]
"""32 bytes as lower-case hexadecimal."""

Base64 = Annotated[
    bytes,
    BeforeValidator(_from_base64),
    PlainSerializer(_to_base64, when_used="json"),
    WithJsonSchema({"type": "string", "contentEncoding": "base64"}),
]
"""Bytes as base64 (RFC 4648, section 4), with padding."""

Count = Annotated[int, Field(ge=0, lt=2**53)]
"""A number that every JSON reader holds exactly; ``1.0``, ``"1"`` and ``true`` are none."""

U64 = Annotated[int, Field(ge=0, lt=2**64)]
PcrNumber = Annotated[int, Field(ge=0, le=23)]


def as_tuples(value: Any) -> Any:
    """Return JSON's lists as the tuples that frozen models hold, but for those named ``records``:
    these are looked at one by one."""
    if isinstance(value, dict):
        return {key: item if key == "records" else as_tuples(item) for key, item in value.items()}
    return tuple(map(as_tuples, value)) if isinstance(value, list) else value


class Model(BaseModel):
    """What all models of evidence have in common: frozen, strict, no unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

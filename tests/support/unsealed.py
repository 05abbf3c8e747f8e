"""Opens the owner's part of evidence, with cryptography alone."""

import base64
import json
from contextlib import suppress
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

_SUITE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)


def owner_text(raw: bytes, private_pem: bytes | None, asker: bytes = b"\0") -> bytes:
    """Return the JSON of the owner's part, its padding too; exactly one of the seals opens."""
    evidence = json.loads(raw)
    if private_pem is None:
        at = raw.index(b'"owner":') + len(b'"owner":')
        return raw[at:-1]
    key: Any = serialization.load_pem_private_key(private_pem, password=None)
    info = b"cima-evidence-v2\0" + asker + bytes.fromhex(evidence["request"])
    found = []
    for sealed in evidence["sealed"]:
        with suppress(InvalidTag, ValueError):
            found.append(_SUITE.decrypt(base64.b64decode(sealed), key, info))
    (text,) = found
    return text


def owner_part(raw: bytes, private_pem: bytes | None) -> dict[str, Any]:
    """Return the owner's part."""
    part: dict[str, Any] = json.loads(owner_text(raw, private_pem))
    return part

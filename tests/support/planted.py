"""Search evidence, and all that is encoded or sealed in it, for what was planted in others."""

import base64
import binascii
import json
import re
from collections.abc import Iterator
from typing import Any

from support.unsealed import owner_part

_ENCODED = re.compile(r"[A-Za-z0-9+/=_-]{16,}")


def decoded(value: Any) -> Iterator[bytes]:
    """Yield every string of a JSON value as it is, and base64 and hex decoded, all the way down."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from decoded(key)
            yield from decoded(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from decoded(item)
    elif isinstance(value, str):
        yield value.encode()
        for part in (value, *_ENCODED.findall(value)):
            for decode in (bytes.fromhex, base64.b64decode, base64.urlsafe_b64decode):
                try:
                    yield decode(part)
                except (ValueError, binascii.Error):
                    continue


def everything(raw: bytes, private_pem: bytes | None) -> bytes:
    """Return the evidence and all that is in it, the owner's part opened."""
    evidence = json.loads(raw)
    owner = owner_part(raw, private_pem)
    parts = [raw, *decoded(evidence), json.dumps(owner).encode(), *decoded(owner)]
    return b"\n".join(parts)


def forms(secret: bytes) -> list[bytes]:
    """Return how ``secret`` may stand somewhere."""
    return [secret, secret.hex().encode(), base64.b64encode(secret).rstrip(b"=")[:-1]]


def found(planted: bytes, text: bytes) -> bool:
    """Whether it stands in ``text`` in some form."""
    return any(form in text for form in forms(planted))

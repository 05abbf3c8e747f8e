"""A register as the trees hold it: masked by the container's secret.

Source: design, section 6.
"""

import hmac

from cima_runc.cpcr.register import DIGEST_SIZE

EMPTY = bytes(DIGEST_SIZE)
"""The inner value of a slot that no register is in; what covers it hides it."""


def inner(secret: bytes, cpcr: bytes, count: int) -> bytes:
    """Return HMAC-SHA256(secret, cpcr || u64be(count)), 32 bytes.

    ``secret`` and ``cpcr`` have 32 bytes each; ``count`` is the number of records in the register.
    """
    return hmac.digest(secret, cpcr + count.to_bytes(8, "big"), "sha256")

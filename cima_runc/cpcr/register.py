"""A container's virtual register (cPCR): SHA-256, extended as a PCR is.

Source: design, section 6; TPM 2.0 Library Part 1, section 17 (PCR operations).
"""

import hashlib

DIGEST_SIZE = 32
"""Bytes of a register, of a record's digest and of everything in the tree."""

ZERO = bytes(DIGEST_SIZE)
"""A register before its first record."""


def extend(value: bytes, digest: bytes) -> bytes:
    """Return SHA256(value || digest); both are 32 bytes."""
    if len(value) != DIGEST_SIZE or len(digest) != DIGEST_SIZE:
        raise ValueError("a register and a digest have 32 bytes")
    return hashlib.sha256(value + digest).digest()

"""Nonces for reports: none is stored, yet each is for one host and for a minute.

random (16 bytes) || when it ends (u64, milliseconds since 1970) || HMAC-SHA256 under the service's
key over a label, the attestation key's name, and those. That it is used once follows from the TPM's
counters (:mod:`cima_runc.verifier.report`). Source: fleet, section 3.
"""

import hmac
import secrets
from dataclasses import dataclass

from cima_runc.base.errors import CimaError

LIFETIME = 60.0
"""Seconds that a nonce lives."""

SKEW = 5.0
"""Seconds that the clocks of the service's processes may differ."""

_LABEL = b"cima-report-nonce-v1\0"
_RANDOM = 16
_SIZE = _RANDOM + 8 + 32


class NonceRefusedError(CimaError):
    """The nonce is not one that a report may be made with."""


class NonceForgedError(NonceRefusedError):
    """This service did not issue it, or not for this host."""


class NonceExpiredError(NonceRefusedError):
    """It is too old."""


@dataclass(frozen=True)
class IssuedNonce:
    """A nonce that this service has issued, and that lives."""

    value: bytes
    ak: bytes
    """Name of the attestation key that it is for."""
    made: float
    """When it was made, seconds since 1970: the time of a quote for it."""


class NonceMaker:
    """Issues nonces and knows them again; all processes of a service have the same key."""

    def __init__(self, key: bytes, lifetime: float = LIFETIME) -> None:
        """``key`` has 32 bytes; ``lifetime`` is in seconds, the same in all processes."""
        if len(key) != 32:
            raise ValueError("the key has 32 bytes")
        self._key = key
        self._lifetime = lifetime

    def issue(self, ak: bytes, now: float) -> bytes:
        """Return a new nonce (56 bytes) for the attestation key with this name."""
        ends = round((now + self._lifetime) * 1000)
        head = secrets.token_bytes(_RANDOM) + ends.to_bytes(8, "big")
        return head + self._mac(ak, head)

    def check(self, nonce: bytes, ak: bytes, now: float) -> IssuedNonce:
        """Return what is known of a nonce.

        Raises:
            NonceForgedError, NonceExpiredError: no report may be made with it.
        """
        head, mac = nonce[: _RANDOM + 8], nonce[_RANDOM + 8 :]
        if len(nonce) != _SIZE or not hmac.compare_digest(mac, self._mac(ak, head)):
            raise NonceForgedError(
                "the nonce is not one that this service made for this host",
                hint="ask for a nonce first",
            )
        ends = int.from_bytes(head[_RANDOM:], "big") / 1000
        made = ends - self._lifetime
        if made > now + SKEW:
            # The clock was set back: when a quote for it was made cannot be told.
            raise NonceExpiredError("the nonce is from the future", hint="ask for a new nonce")
        if now > ends:
            raise NonceExpiredError(
                f"the nonce has expired {now - ends:.0f} seconds ago", hint="ask for a new nonce"
            )
        return IssuedNonce(nonce, ak, made)

    def _mac(self, ak: bytes, head: bytes) -> bytes:
        return hmac.digest(self._key, _LABEL + len(ak).to_bytes(2, "big") + ak + head, "sha256")

"""What a host shows that was proved: an opaque text under the service's key; none is stored."""

import hmac

_LABEL = b"cima-session-v1\0"
LIFETIME = 86_400.0
"""Seconds; each accepted report gives a new one."""


class Sessions:
    """Makes sessions and knows them again; all processes have the same key."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def make(self, ak: str, now: float) -> str:
        """Return a session for the host with this attestation key's name (hexadecimal)."""
        ends = round(now + LIFETIME)
        return f"{ends}.{self._mac(ak, ends)}"

    def is_good(self, session: str | None, ak: str, now: float) -> bool:
        """Whether this is a session of that host, and has not ended."""
        ends, separator, mac = (session or "").partition(".")
        if not separator or not ends.isascii() or not ends.isdigit() or len(ends) > 12:
            return False
        good = hmac.compare_digest(
            mac.encode("utf-8", "replace"), self._mac(ak, int(ends)).encode()
        )
        return good and now < int(ends)

    def _mac(self, ak: str, ends: int) -> str:
        return hmac.digest(self._key, _LABEL + f"{ak}.{ends}".encode("ascii"), "sha256").hex()

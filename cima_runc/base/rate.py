"""How often somebody may ask: token buckets, by address or by name."""

import ipaddress
from collections import OrderedDict

_KEPT = 20_000


class RateLimit:
    """Lets one address, or whoever has a name, make so many requests a minute, in bursts of as many
    (token bucket)."""

    def __init__(self, per_minute: int) -> None:
        self._per_minute = per_minute
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def allows(self, address: str, now: float) -> bool:
        """Whether one more request may be made at ``now`` (seconds of a monotonic clock)."""
        key, tokens = self._tokens(address, now)
        allowed = tokens >= 1
        self._buckets.pop(key, None)
        self._buckets[key] = (tokens - 1 if allowed else tokens, now)
        while len(self._buckets) > _KEPT:
            self._buckets.popitem(last=False)
        return allowed

    def spend(self, address: str, now: float, cost: float) -> None:
        """Take for what has cost so much, though it was more than there is: then nothing is allowed
        until that is made up for."""
        key, tokens = self._tokens(address, now)
        self._buckets.pop(key, None)
        self._buckets[key] = (min(tokens - cost, self._per_minute), now)
        while len(self._buckets) > _KEPT:
            self._buckets.popitem(last=False)

    def give_back(self, address: str, now: float) -> None:
        """Take back what :meth:`allows` took for what has cost nothing after all."""
        self.spend(address, now, -1)

    def has_room(self, address: str, now: float) -> bool:
        """Whether :meth:`allows` would say so; takes nothing. Of those who ask at once all are told
        the same: what costs is taken before it is done, or made up for after (:meth:`spend`)."""
        return self._tokens(address, now)[1] >= 1

    def _tokens(self, address: str, now: float) -> tuple[str, float]:
        key = network(address)
        tokens, before = self._buckets.get(key, (float(self._per_minute), now))
        return key, min(self._per_minute, tokens + (now - before) * self._per_minute / 60)


def network(address: str) -> str:
    """Return what counts as one address: a host has a whole /64 of IPv6."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address):
        return parsed.exploded[:19] if parsed.ipv4_mapped is None else str(parsed.ipv4_mapped)
    return address

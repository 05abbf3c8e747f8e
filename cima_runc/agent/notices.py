"""What hooks tell of and do not wait for: the writer heeds it with its next work."""

from collections import deque


class Notices:
    """Notices in the order in which they came; any thread may add one, the writer takes them."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[str, bytes]] = deque()

    def add(self, verb: str, body: bytes) -> None:
        """Add what a hook tells of, ``verb``, and its state."""
        self._waiting.append((verb, body))

    def take(self) -> tuple[str, bytes] | None:
        """Return the oldest that was not taken yet, None where there is none."""
        return self._waiting.popleft() if self._waiting else None

"""Uses of files that wait for a digest longer than nearly any file takes to be hashed.

The kernel skips a program while another task, which it has preempted, is in it on the same CPU.
What that program would have sent, the task's next one sends; a task that sleeps comes to none, and
what it has mapped may run in others meanwhile. Pure: counts and times in, what is to be taken for
lost out.
"""

from collections.abc import Mapping
from typing import Final

LOOK_SECONDS: Final = 1.0
"""How far apart looks are at least."""
GAP_SECONDS: Final = 10.0
"""Looks that are further apart are no row: what one found may be sent before the other."""
OVERDUE_SECONDS: Final = 300.0
"""From the first look of a row that all found something waiting, to the first that finds it
overdue."""


class Overdue:
    """What containers have waited for since each look found some."""

    def __init__(self) -> None:
        self._since: dict[int, tuple[float, int]] = {}
        self._looked = float("-inf")

    def is_due(self, now: float) -> bool:
        """Whether it is time for a look; ``now`` is monotonic, in seconds."""
        return now - self._looked >= LOOK_SECONDS

    def look(self, waiting: Mapping[int, int], now: float) -> dict[int, int]:
        """Return how many uses of each container (by registration) are overdue.

        ``waiting`` says how many wait of each at this moment. Which those are is not known: of many
        that come and go, as many are old at most as the fewest that any look found.
        """
        before = self._since if now - self._looked <= GAP_SECONDS else {}
        self._looked, self._since = now, {}
        for number, count in waiting.items():
            if count > 0:
                since, fewest = before.get(number, (now, count))
                self._since[number] = (since, min(fewest, count))
        return {
            number: fewest
            for number, (since, fewest) in self._since.items()
            if now - since >= OVERDUE_SECONDS
        }

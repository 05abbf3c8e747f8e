"""Which paths are below some others: a record has room for a million of each."""

from bisect import bisect, bisect_left
from collections.abc import Iterable, Sequence


def any_below(paths: Sequence[str], top: str) -> bool:
    """Whether one of the paths, which are in order, begins with ``top``; that ends with a slash."""
    at = bisect_left(paths, top)
    return at < len(paths) and paths[at].startswith(top)


class Below:
    """What is at or below some paths."""

    def __init__(self, directories: Iterable[str]) -> None:
        """``directories`` end with a slash."""
        self._tops: list[str] = []
        for one in sorted(set(directories)):
            # What is below one that is there already adds nothing.
            if not self._tops or not one.startswith(self._tops[-1]):
                self._tops.append(one)

    def has(self, path: str) -> bool:
        """Whether a path is one of them, or below one."""
        # It begins with one of them at most, and between the two in order there is no other.
        at = bisect(self._tops, f"{path}/")
        return at > 0 and f"{path}/".startswith(self._tops[at - 1])

"""Which containers' records were removed though nobody had all of them."""

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cima_runc.base import limits
from cima_runc.base.durable import AppendFile, replace_file

_log = logging.getLogger(__name__)
_EARLIER = "earlier"


class Removed:
    """The file ``removed.jsonl``: one object a line, the oldest first.

    Of too many the oldest lines go, and those of a user other than root who has more than his part;
    then the first line is ``{"earlier": N}``, how many these were.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._count: int | None = None

    @property
    def count(self) -> int:
        """How many were removed, those whose lines are gone counted."""
        if self._count is None:
            earlier, lines = self._read()
            self._count = earlier + len(lines)
        return self._count

    def append(self, line: Mapping[str, Any]) -> None:
        """Add a line; it is durable then.

        Raises:
            OSError: it is not written.
        """
        count = self.count
        file = AppendFile(self._path)
        file.append(json.dumps(line).encode("ascii") + b"\n")
        file.close()
        self._count = count + 1
        if self._path.stat().st_size > limits.REMOVED_FILE:
            self._shorten()

    def _shorten(self) -> None:
        earlier, lines = self._read()
        kept = _newest(lines, limits.REMOVED_FILE // 2)
        gone = earlier + len(lines) - len(kept)
        head = json.dumps({_EARLIER: gone}).encode("ascii") + b"\n"
        replace_file(self._path, head + b"".join(kept))
        _log.warning("%s holds of %d removals their number alone", self._path, gone)

    def _read(self) -> tuple[int, list[bytes]]:
        try:
            lines = self._path.read_bytes().splitlines(keepends=True)
        except FileNotFoundError:
            return 0, []
        if lines and lines[0].startswith(b'{"%s":' % _EARLIER.encode()):
            return int(json.loads(lines[0])[_EARLIER]), lines[1:]
        return 0, lines


def _newest(lines: Sequence[bytes], room: int) -> list[bytes]:
    """Return the newest lines that have ``room``, in bytes: what one user starts and lets end costs
    nobody else's."""
    kept: list[bytes] = []
    of_users: Counter[int] = Counter()
    for line in reversed(lines):
        uid = json.loads(line).get("uid", 0)
        if len(line) > room:
            break
        if uid and of_users[uid] + len(line) > limits.REMOVED_FILE // 2 // limits.USER_PART:
            continue
        of_users[uid] += len(line)
        room -= len(line)
        kept.append(line)
    return kept[::-1]

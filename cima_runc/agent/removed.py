"""Which containers' records were removed though nobody had all of them."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cima_runc.base import limits
from cima_runc.base.durable import AppendFile, replace_file

_log = logging.getLogger(__name__)
_EARLIER = "earlier"


class Removed:
    """The file ``removed.jsonl``: one object a line, the oldest first.

    Of too many the oldest lines go; then the first line is ``{"earlier": N}``, how many these were.
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
        kept = lines[len(lines) // 2 :]
        gone = earlier + len(lines) - len(kept)
        head = json.dumps({_EARLIER: gone}).encode("ascii") + b"\n"
        replace_file(self._path, head + b"".join(kept))
        _log.warning("%s holds of the first %d removals their number alone", self._path, gone)

    def _read(self) -> tuple[int, list[bytes]]:
        try:
            lines = self._path.read_bytes().splitlines(keepends=True)
        except FileNotFoundError:
            return 0, []
        if lines and lines[0].startswith(b'{"%s":' % _EARLIER.encode()):
            return int(json.loads(lines[0])[_EARLIER]), lines[1:]
        return 0, lines

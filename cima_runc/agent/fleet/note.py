"""What the fleet's service has confirmed: durable, so that records are kept until it has them.

A note that is lost costs a resynchronisation, and nothing else.
"""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from cima_runc.base import limits
from cima_runc.base.bounded import read_bounded
from cima_runc.base.durable import replace_file
from cima_runc.evidence.report_answer import Confirmed

FILE = "fleet.json"
"""Name of the note in the state directory."""


class _Stored(BaseModel):
    """The file."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    version: Literal[1] = 1
    url: str
    """The service."""
    ak: str
    """Name of the attestation key, hexadecimal."""
    enrolled: bool
    """Whether the service has said that it knows the key."""
    boot_id: str
    host_log: int
    boot_log: bool
    records: dict[str, int]


class Note:
    """What is confirmed, for one service, one attestation key and one boot."""

    def __init__(self, path: Path, url: str, ak: bytes, boot_id: str) -> None:
        """Read what another agent has left, as far as it is of the same service and key."""
        self._path = path
        self._url, self._ak, self._boot_id = url, ak.hex(), boot_id
        self.enrolled = False
        self.host_log = 0
        """Entries of the host's log."""
        self.boot_log = False
        """Whether the service has the firmware's event log of this boot."""
        self.records: dict[int, int] = {}
        """Records that are proved, by registration."""
        self.held: dict[int, int] = {}
        """Records more that are there, and not proved yet."""
        self._base: bytes | None = None
        self._marks: dict[bytes, int] = {}
        self.listed: dict[int, str] = {}
        """States of registrations that the service has been told."""
        found = _read(path)
        if found is None or (found.url, found.ak) != (self._url, self._ak):
            return
        self.enrolled = found.enrolled
        self.records = {int(number): count for number, count in found.records.items()}
        if found.boot_id == boot_id:
            self.host_log, self.boot_log = found.host_log, found.boot_log

    @property
    def base(self) -> tuple[bytes, int] | None:
        """The table that the service has, and its mark; None: changes lead from all zeros."""
        if self._base is None or self._base not in self._marks:
            return None
        return self._base, self._marks[self._base]

    def done(self, registration: int) -> int:
        """Return how many records the service has, proved or not."""
        return self.records.get(registration, 0) + self.held.get(registration, 0)

    def sent(self, table: bytes, mark: int) -> None:
        """Heed that a table, with this mark, was sent: the service may answer, or not."""
        self._marks.pop(table, None)
        self._marks[table] = mark
        while len(self._marks) > _TABLES:
            oldest = next(one for one in self._marks if one != self._base)
            del self._marks[oldest]

    def accepted(self, confirmed: Confirmed, states: dict[int, str]) -> bool:
        """Take in what a report has led to; returns whether the file must be written."""
        before = (self.host_log, self.boot_log)
        self._base = confirmed.base
        self.host_log, self.boot_log = confirmed.host_log, confirmed.boot_log
        self.listed |= states
        records = {int(number): count for number, count in confirmed.records.items()}
        held = {int(number): count for number, count in confirmed.held.items()}
        self.records |= records
        self.held = {n: count for n, count in (self.held | held).items() if count}
        return bool(records) or before != (self.host_log, self.boot_log)

    def resync(self, confirmed: Confirmed) -> None:
        """Take in what the service has; nothing else is known of what it has."""
        self._base = confirmed.base
        self.host_log, self.boot_log = confirmed.host_log, confirmed.boot_log
        self.records = {int(number): count for number, count in confirmed.records.items()}
        self.held = {int(number): count for number, count in confirmed.held.items() if count}
        self.listed.clear()

    def forget(self, registrations: set[int]) -> None:
        """Let go of registrations that are kept no more."""
        for number in registrations:
            self.records.pop(number, None)
            self.held.pop(number, None)
            self.listed.pop(number, None)

    def write(self) -> None:
        """Make it durable.

        Raises:
            OSError: it is as it was.
        """
        stored = _Stored(
            url=self._url,
            ak=self._ak,
            enrolled=self.enrolled,
            boot_id=self._boot_id,
            host_log=self.host_log,
            boot_log=self.boot_log,
            records={str(number): count for number, count in self.records.items()},
        )
        replace_file(self._path, stored.model_dump_json().encode("ascii") + b"\n")


_TABLES = 8
"""Tables that are remembered, of reports that were not answered."""


def _read(path: Path) -> _Stored | None:
    try:
        return _Stored.model_validate_json(read_bounded(path, limits.FLEET_NOTE))
    except (OSError, ValidationError):
        return None

"""Runs of lines: which number the next one has, what it goes on from, and which are kept.

For the writer's thread. Source: design, section 6 ("Lines and runs").
"""

import logging
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cima_runc.base import clock, limits
from cima_runc.base.errors import CimaError
from cima_runc.cpcr import register
from cima_runc.ml.contents import ContentError, Exit, Previous, read
from cima_runc.ml.lines import Lines, LineState
from cima_runc.ml.records import Record, RecordError
from cima_runc.ml.store import ContainerNote, Store, StoreError

_log = logging.getLogger(__name__)


class LineInUseError(CimaError):
    """The line of a container that is about to start has a run that lives."""

    def __init__(self, other: str) -> None:
        super().__init__(
            f"container {other} is of the same line and lives",
            hint="remove it first, or give this one another io.cima.name",
        )


@dataclass(frozen=True)
class NextRun:
    """What a new partition says of its line."""

    line: bytes
    run: int
    previous: Previous | Literal["lost"] | None
    uid: int = 0
    """Whose line it is."""


class Runs:
    """The lines of this host."""

    def __init__(self, store: Store, lines: Lines) -> None:
        self._store = store
        self._lines = lines
        self._kept: dict[str, dict[int, int]] = {}
        """Registration of each run whose partition is kept, by line and run."""

    def restore(self, notes: Iterable[ContainerNote]) -> None:
        """Take in the notes of all partitions that are kept, of every boot."""
        for note in notes:
            self.keep(note)

    def keep(self, note: ContainerNote) -> None:
        """Take in a run that has a partition."""
        if note.line is not None and note.run is not None:
            self._kept.setdefault(note.line, {})[note.run] = note.registration

    def kept(self, note: ContainerNote) -> tuple[int, ...]:
        """Return the registrations of the runs that are kept, up to this one, oldest first."""
        runs = self._kept.get(note.line or "", {})
        return tuple(runs[run] for run in sorted(runs) if run <= (note.run or 0))

    def places(self, line: bytes, uid: int = 0) -> tuple[Path, Path]:
        """Return what must be durable for the number of a line's last run to be."""
        return self._lines.of_user(uid).places(line)

    def _read(self, line: bytes, uid: int) -> LineState | None:
        state = self._lines.of_user(uid).read(line)
        # An earlier agent kept users' among root's.
        return self._lines.read(line) if state is None and uid else state

    def _write(self, state: LineState, uid: int, *, durable: bool = True) -> None:
        self._lines.of_user(uid).write(state, durable=durable)
        if uid:
            self._lines.remove(state.line)

    def _remove(self, line: bytes, uid: int) -> None:
        self._lines.of_user(uid).remove(line)
        if uid:
            self._lines.remove(line)

    def next(self, line: bytes, uid: int = 0) -> NextRun:
        """Give the next run its number; the run before must have been closed.

        A number above 1 is given durably. A first one is so with :meth:`places`, which may be with
        the run's first records: before those are, nothing of it counts.

        Raises:
            LineError, OSError: what is known of the line cannot be used.
        """
        state = self._read(line, uid)
        runs = self._kept.get(line.hex(), {})
        last = max(runs, default=0)
        used = max(last, 0 if state is None else state.run)
        previous: Previous | Literal["lost"] | None
        if state is not None and state.last is not None and state.last.run > last:
            previous = state.last
        elif runs:
            previous = self._previous(runs[last])
        else:
            previous = None if state is None else "lost"
        kept = previous if isinstance(previous, Previous) else None
        following = LineState(line=line, run=used + 1, last=kept, time=clock.now())
        self._write(following, uid, durable=used > 0)
        return NextRun(line, used + 1, previous, uid)

    def _previous(self, registration: int) -> Previous | Literal["lost"]:
        """Return what a run goes on from whose partition is kept; one that is damaged is lost."""
        try:
            return previous_of(self._store, self._store.read_note(registration))
        except (StoreError, RecordError) as error:
            _log.error("registration %d is damaged: %s", registration, error)
            return "lost"

    def refused(self, following: NextRun) -> None:
        """Heed that a run that was given a number has no partition: the number is skipped.

        A first one has left nothing that the next could go on from, and is not counted.
        """
        if following.previous is None:
            self._remove(following.line, following.uid)

    def undo(self, note: ContainerNote) -> None:
        """Heed that a run that was begun came to nothing: its partition is about to be removed,
        and no run goes on from it."""
        runs = self._kept.get(note.line or "", {})
        if note.line is None or note.run is None or runs.get(note.run) != note.registration:
            return
        self._let_go(note.line, note.run)
        if note.run == 1:
            self._remove(bytes.fromhex(note.line), note.uid)

    def adopt(self, line: bytes, uid: int = 0) -> None:
        """Take in a run that began under an agent that knew no lines, as its line's first.

        Raises:
            LineError, OSError: it cannot be written down.
        """
        if self._read(line, uid) is None:
            self._write(LineState(line=line, run=1, last=None, time=clock.now()), uid)

    def begun_before(self, time: str) -> list[tuple[int, bytes]]:
        """Return the lines whose last run began before ``time``, and whose they are; in any
        thread."""
        return [
            (uid, line)
            for uid in (0, *self._lines.users())
            for line in self._lines.of_user(uid).begun_before(time)
        ]

    def forget(self, lines: Iterable[tuple[int, bytes]]) -> None:
        """Forget those of these lines of which nothing is kept.

        Raises:
            OSError: a file could not be removed.
        """
        for uid, line in lines:
            if line.hex() not in self._kept:
                self._lines.of_user(uid).remove(line)

    def forget_above(self, count: int) -> None:
        """Forget lines of which nothing is kept, the oldest first, until ``count`` of root's are
        left, and a part of that of each user's: who makes many costs nobody else's.

        Raises:
            OSError: a file could not be removed.
        """
        kept = frozenset(map(bytes.fromhex, self._kept))
        self._lines.forget_above(count, kept)
        for uid in self._lines.users():
            self._lines.of_user(uid).forget_above(count // limits.USER_PART, kept)

    def discard(self, note: ContainerNote) -> None:
        """Heed that a partition is about to be removed: what its next run goes on from is kept.

        Raises:
            LineError, StoreError, OSError: it cannot be kept.
        """
        if note.line is None or note.run is None:
            return
        runs = self._kept.get(note.line, {})
        if runs.get(note.run) != note.registration:
            return
        line = bytes.fromhex(note.line)
        state = self._read(line, note.uid)
        if state is None or state.last is None or state.last.run < note.run:
            last = previous_of(self._store, note)
            run = max(note.run, 0 if state is None else state.run)
            time = note.started if state is None else state.time
            self._write(LineState(line=line, run=run, last=last, time=time), note.uid)
        self._let_go(note.line, note.run)

    def _let_go(self, line: str, run: int) -> None:
        runs = self._kept[line]
        del runs[run]
        if not runs:
            del self._kept[line]


def previous_of(store: Store, note: ContainerNote) -> Previous:
    """Return what the next run of a line says of a run whose partition is kept.

    Raises:
        RecordError: a stored record is not what its digest says.
        OSError: its records cannot be read.
    """
    assert note.run is not None
    value, count = register.ZERO, 0
    last: Record | None = None
    for last in store.records(note.registration):
        value = register.extend(value, last.digest)
        count += 1
    content = None
    if last is not None:
        with suppress(ContentError):  # what a newer agent wrote is no end that is known here
            content = read(last)
    return Previous(
        run=note.run,
        boot_id=note.boot_id,
        registration=note.registration,
        count=count,
        cpcr=value,
        # None: the host went down before its end was seen.
        reason=content.reason if isinstance(content, Exit) else None,
    )

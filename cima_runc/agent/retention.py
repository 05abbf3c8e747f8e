"""Removes the oldest records where the settings keep no more of them."""

import errno
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from cima_runc.agent.confirmations import Confirmations
from cima_runc.agent.current import CurrentSettings
from cima_runc.agent.journald import about
from cima_runc.agent.removed import Removed
from cima_runc.agent.runs import Runs
from cima_runc.agent.wall_clock import FILE, WallClock
from cima_runc.agent.writer import Writer
from cima_runc.base import clock, limits
from cima_runc.ml.store import ContainerNote, Store, StoreError

_log = logging.getLogger(__name__)

REMOVED = "removed.jsonl"
"""File in the state directory: one object a line for each container that was removed although no
evidence had been given of all its records (:class:`.removed.Removed`)."""
_DAY_NS = 86_400 * 10**9
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_AT_ONCE = 32
"""Partitions that are removed in one turn of the writer's: each costs the disk some waits."""


@dataclass(frozen=True)
class Stored:
    """One registration's directory."""

    note: ContainerNote
    size: int
    """Bytes of its files."""
    removable: bool
    """Whether it has ended."""
    ended_ago: int | None = None
    """For how many ns it has, by a clock that nobody sets; None: it did in an earlier boot."""
    seen: str = ""
    """When it or its host was seen last, RFC 3339, where its end was not: the host went down."""

    @property
    def ended(self) -> str:
        """When it ended, RFC 3339, at the latest that is known."""
        return self.note.ended or max(self.note.started, self.seen)


def to_remove(
    stored: list[Stored],
    *,
    quota: int,
    ended_before: str | None,
    older_than: int = 0,
    wanted: Callable[[Stored], bool] = lambda _: False,
) -> list[Stored]:
    """Return which of ``stored``, oldest first, go: those that are too old or too much.

    ``quota`` is in bytes, ``ended_before`` in RFC 3339; what ended in this boot is old only if that
    was more than ``older_than`` ns ago, whatever its times say. What a boot's containers relied on
    goes after the last of them. What is ``wanted`` does not grow old, and goes last where there is
    too much. What is above a user's part is his own that goes: it costs nobody else's.
    """
    chosen = _above_their_part(stored, quota // limits.USER_PART, wanted)
    above = {one.note.registration for one in chosen}
    stored = [one for one in stored if one.note.registration not in above]
    too_much = sum(one.size for one in stored) - quota
    left = {one.note.registration: one for one in stored}

    def consider(one: Stored, *, is_last: bool = False) -> None:
        nonlocal too_much
        old = ended_before is not None and one.ended < ended_before
        if one.ended_ago is not None and one.ended_ago <= older_than:
            old = False
        if one.removable and (old or too_much > 0):
            if wanted(one) and not (is_last and too_much > 0):
                return
            chosen.append(one)
            del left[one.note.registration]
            too_much -= one.size

    for one in stored:
        if one.note.kind == "container":
            consider(one)
    if too_much > 0:
        for one in [*left.values()]:
            if one.note.kind == "container":
                consider(one, is_last=True)
    in_use = {one.note.boot_id for one in left.values() if one.note.kind == "container"}
    for one in stored:
        if one.note.kind == "dependencies" and one.note.boot_id not in in_use:
            consider(one, is_last=True)
    return chosen


def _above_their_part(
    stored: list[Stored], part: int, wanted: Callable[[Stored], bool]
) -> list[Stored]:
    """Return what of users other than root takes more than ``part`` bytes for each."""
    of_users: dict[int, list[Stored]] = {}
    for one in stored:
        if one.note.uid and one.note.kind == "container":
            of_users.setdefault(one.note.uid, []).append(one)
    chosen = []
    for own in of_users.values():
        too_much = sum(one.size for one in own) - part
        if too_much <= 0:
            continue
        for one in sorted((one for one in own if one.removable), key=wanted):
            if too_much > 0:
                chosen.append(one)
                too_much -= one.size
    return chosen


@dataclass
class Plan:
    """What goes. What is stored meanwhile is of this boot, and lives."""

    gone: list[Stored]
    """Partitions, the first ones first."""
    lines: list[tuple[int, bytes]]
    """Lines whose last run began too long ago, and the users whose they are."""
    before: int | None
    """Since when the settings keep what has ended, in ns since 1970; None: nothing is too old."""
    boots: set[str]
    """Boots of which partitions are left."""
    size: int
    """Bytes of all that are left."""
    error: OSError | None = None
    """Why one of ``gone`` could not be removed."""


class Retention:
    """Keeps the state directory within what the settings say."""

    def __init__(
        self,
        settings: CurrentSettings,
        boot_id: str,
        writer: Writer,
        store: Store,
        runs: Runs,
        *,
        confirmations: Confirmations | None = None,
        wall_clock: WallClock | None = None,
    ) -> None:
        self._settings = settings
        self._boot_id = boot_id
        self._writer = writer
        self._store = store
        self._runs = runs
        self.confirmations = confirmations or Confirmations()
        self._removed = Removed(store.root / REMOVED)
        self._clock = wall_clock or WallClock(store.root / FILE)
        self.size = 0
        """Bytes of all partitions when it was looked last."""

    @property
    def removed_unattested(self) -> int:
        """How many containers were removed of which no evidence had been given to the end."""
        return self._removed.count

    def plan(self) -> "Plan":
        """Look through all that is stored, and return what goes; in any thread.

        Raises:
            OSError: it cannot be looked through.
        """
        self._store.see(self._boot_id)
        found = filter(None, map(self._look_at, self._store.registrations()))
        stored = sorted(found, key=lambda one: one.note.started)
        storage = self._settings.value.storage
        age = storage.keep_days * _DAY_NS
        now = self._clock.believed(_newest(stored)) if age else None
        before = None if now is None else max(now - age, 0)
        ended_before = None if before is None else clock.at(before)
        gone = to_remove(
            stored,
            quota=storage.quota_mib * limits.MIB,
            ended_before=ended_before,
            older_than=age,
            wanted=lambda one: self._is_wanted(one.note),
        )
        numbers = {one.note.registration for one in gone}
        return Plan(
            gone=gone,
            lines=self._runs.begun_before(ended_before) if ended_before is not None else [],
            before=before,
            boots={one.note.boot_id for one in stored if one.note.registration not in numbers},
            size=sum(one.size for one in stored) - sum(one.size for one in gone),
        )

    def carry_out(self, plan: "Plan") -> bool:
        """Remove a few of what a plan says; returns whether there are more.

        Of the writer's time no more than others can wait.

        Raises:
            OSError: something could not be removed or written down.
        """
        for _ in range(min(_AT_ONCE, len(plan.gone))):
            try:
                self._remove_with_room(plan.gone[0])
            except OSError as error:
                if error.errno in _NO_ROOM:
                    raise
                # One that cannot be read any more keeps no other from going.
                plan.error = plan.error or error
            del plan.gone[0]
        if plan.gone:
            return True
        self._runs.forget(plan.lines)
        self._forget_unmeasured(plan.before or 0)
        self._runs.forget_above(limits.LINES)
        self.size = plan.size
        for boot_id in self._store.boots() - plan.boots - {self._boot_id}:
            self._store.remove_boot(boot_id)
        if plan.error is not None:
            raise plan.error
        return False

    def apply(self) -> None:
        """Remove at once what the settings keep no more.

        Raises:
            OSError: as for :meth:`carry_out`.
        """
        plan = self.plan()
        while self.carry_out(plan):
            pass

    def _look_at(self, registration: int) -> Stored | None:
        try:
            note = self._store.read_note(registration)
            size = self._store.size(registration)
            living = note.boot_id == self._boot_id and note.state != "stopped"
            ago, seen = None, ""
            if note.boot_id == self._boot_id:
                ago = None if note.ended_ns is None else clock.since_boot() - note.ended_ns
            elif note.ended is None:
                seen = clock.at(self._store.seen(note.boot_id, registration))
        except (StoreError, OSError):
            return None  # it is being made or removed; of a damaged one whoever reads it is told
        return Stored(note, size, not living, ago, seen)

    def _forget_unmeasured(self, before: int) -> None:
        """Remove notes of unmeasured starts from before that time (ns since 1970), and too many."""
        gone = self._store.forget_unmeasured(before, limits.UNMEASURED)
        if gone:
            _log.warning("the notes of %d containers that started unmeasured are removed", gone)

    def _is_wanted(self, note: ContainerNote) -> bool:
        try:
            return self.confirmations.wants(note, self._count(note))
        except OSError:
            return False  # it can be shown to nobody

    def _count(self, note: ContainerNote) -> int:
        return sum(1 for _ in self._store.lines(note.registration))

    def _remove_with_room(self, one: Stored) -> None:
        """Remove what is stored, on a full disk too, where what is said of it needs room first."""
        try:
            self._remove(one)
        except OSError as error:
            if error.errno not in _NO_ROOM or not self._store.give_room():
                raise
            self._remove(one)

    def _remove(self, one: Stored) -> None:
        note = one.note
        with suppress(StoreError):  # evidence may have been given since it was looked at
            note = self._store.read_note(note.registration)
        records = self._count(note)
        confirmed = self.confirmations.confirmed(note.registration)
        if note.kind == "container" and max(note.attested, confirmed) < records:
            line = {
                "registration": note.registration,
                "id": note.id,
                "uid": note.uid,
                "boot_id": note.boot_id,
                "started": note.started,
                "ended": note.ended,
                "records": records,
                "attested": note.attested,
                "confirmed": confirmed,
                "removed": clock.now(),
            }
            # Said first, done then.
            self._removed.append(line)
            _log.warning(
                "the records of container %s are removed: evidence was given of %d of %d, and the"
                " fleet's service has %d",
                note.id,
                note.attested,
                records,
                confirmed,
                extra=about("records-removed", container=note.id, registration=note.registration),
            )
        self._writer.discard(note.registration)


def _newest(stored: list[Stored]) -> int:
    """Return when something was stored last, in ns since 1970; where nothing is, now."""
    newest = max((one.ended for one in stored), default="")
    with suppress(ValueError):
        return clock.read(newest)
    return clock.since_1970()

"""The binding journal: what becomes of the binding PCR in one boot, written before it happens.

One JSON object a line, in one file a boot, which begins with what all before it adds up to:

- ``{"type":"state","version":2,"value","status","counters"}``: ``value`` is what the PCR must be
  (hexadecimal, null while it has not been read yet), ``status`` the object that binds are over,
  ``counters`` the TPM's [resetCount, restartCount] when they were seen last, or null.
- ``{"type":"initial","value","counters"}``: the PCR before our first extend of this boot.
- ``{"type":"bind","before","history","expected"}``: about to extend the PCR, whose value is
  ``before``, once or twice: ``history`` is what it is before the last extend, ``expected`` after.
- ``{"type":"done"}``: it was extended.
- ``{"type":"abandoned","value"}``: it was not, or the veil alone was; it never will be.
- ``{"type":"foreign","kind","time","value","counters"}``: the PCR is what we have not made it.
- ``{"type":"gap","kind","since","until"}``: a time in which records could not be written or bound.
- ``{"type":"counters","counters"}``: the TPM was resumed, its PCRs are as they were.

When it has become long, one line takes the place of all of it. A journal of version 1 is read
once, for its values. Source: design, section 6.
"""

import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self, cast

from pydantic import ValidationError

from cima_runc.base import limits
from cima_runc.base.durable import AppendFile, replace_file, sync_directory
from cima_runc.base.errors import CimaError
from cima_runc.base.jsonio import load_object
from cima_runc.cpcr.bind import Bind
from cima_runc.cpcr.register import DIGEST_SIZE
from cima_runc.cpcr.status import Foreign, ForeignKind, Gap, GapKind, Status
from cima_runc.evidence.fields import decode_hex

VERSION = 2

Counters = tuple[int, int]
"""The TPM's resetCount and restartCount (TPM 2.0 Library Part 1, section 36.4)."""


class JournalError(CimaError):
    """The journal on disk is not one that we wrote."""


@dataclass(frozen=True)
class Pending:
    """A bind of which it is not known whether the PCR shows it."""

    before: bytes
    history: bytes
    expected: bytes


@dataclass(frozen=True)
class JournalState:
    """What the journal's entries add up to."""

    status: Status
    value: bytes | None = None
    """What the PCR's value must be once nothing is pending; None where nothing is known of it."""
    pending: Pending | None = None
    counters: Counters | None = None
    lost: bool = False
    """Whether what came before is not known, so that no value that is found is the initial one."""

    @property
    def begun(self) -> bool:
        """Whether the PCR has been read in this boot, so that it may be extended."""
        return self.value is not None


@dataclass(frozen=True)
class Found:
    """What the TPM shows."""

    value: bytes
    """The binding PCR's, SHA-256 bank."""
    counters: Counters
    hour: str
    """When, UTC, cut to the hour."""


def apply(state: JournalState, entry: dict[str, Any]) -> JournalState:
    """Return the state after one more entry.

    Raises:
        JournalError: the entry is not one of those above, or cannot come here.
    """
    try:
        return _applied(state, entry)
    except (KeyError, TypeError, ValueError, ValidationError) as error:
        what = f"an entry of the journal cannot be read: {type(error).__name__}"
        raise JournalError(what) from error


def _applied(state: JournalState, entry: dict[str, Any]) -> JournalState:
    match entry["type"]:
        case "state" if entry["version"] == VERSION:
            value = None if entry["value"] is None else _digest(entry["value"])
            counters = None if entry["counters"] is None else _counters(entry["counters"])
            status = Status.model_validate_json(json.dumps(entry["status"]))
            return JournalState(status, value, None, counters, lost=entry.get("lost") is True)
        case "initial" if not (state.begun or state.lost):
            value = _digest(entry["value"])
            status = state.status.model_copy(update={"initial": value})
            return replace(state, status=status, value=value, counters=_counters(entry["counters"]))
        case "bind" if state.begun:
            pending = Pending(*(_digest(entry[name]) for name in ("before", "history", "expected")))
            # That the one before was done is not made durable, and may be missing.
            last = state.pending
            known = (last.before, last.history, last.expected) if last else (state.value,)
            if pending.before not in known:
                raise JournalError("a bind of the journal is not over what was before it")
            return replace(state, value=pending.before, pending=pending)
        case "done" if state.pending is not None:
            return replace(state, value=state.pending.expected, pending=None)
        case "abandoned" if state.pending is not None:
            value = _digest(entry["value"])
            if value not in (state.pending.before, state.pending.history):
                raise JournalError("an abandoned bind of the journal left another value")
            return replace(state, value=value, pending=None)
        case "foreign":
            change = Foreign(kind=entry["kind"], time=entry["time"])
            return replace(
                state,
                status=state.status.with_foreign(change),
                value=_digest(entry["value"]),
                pending=None,
                counters=_counters(entry["counters"]),
                lost=False,
            )
        case "gap":
            gap = Gap(kind=entry["kind"], since=entry["since"], until=entry["until"])
            return replace(state, status=state.status.with_gap(gap))
        case "counters":
            return replace(state, counters=_counters(entry["counters"]))
    raise JournalError("the journal has an entry that cannot come here")


def reconcile(state: JournalState, found: Found) -> dict[str, Any] | None:
    """Return the entry that explains what the TPM shows, None where all is as it must be.

    Asked before every bind, and so also after a crash or a failed extend; what it returns is
    written down, and then it is asked again.
    """
    counters = list(found.counters)
    if not state.begun:
        if state.lost:
            return foreign("journal", found)
        return {"type": "initial", "value": found.value.hex(), "counters": counters}
    if state.pending is not None:
        if found.value == state.pending.expected:
            return {"type": "done"}
        if found.value in (state.pending.history, state.pending.before):
            return {"type": "abandoned", "value": found.value.hex()}
    elif found.value == state.value:
        # A TPM that was resumed counts up and keeps its PCRs.
        as_before = state.counters == found.counters
        return None if as_before else {"type": "counters", "counters": counters}
    # Firmware may have filled the PCR of a TPM that began anew: its value tells nothing.
    same = state.counters in (None, found.counters)
    return foreign("changed" if same else "zero", found)


def foreign(kind: ForeignKind, found: Found) -> dict[str, Any]:
    """Return the entry for a PCR that is what we have not made it."""
    return {
        "type": "foreign",
        "kind": kind,
        "time": found.hour,
        "value": found.value.hex(),
        "counters": list(found.counters),
    }


class Journal:
    """The journal's file of one boot."""

    def __init__(self, path: Path, state: JournalState) -> None:
        self._path = path
        self._state = state
        self._entries = 0
        self._is_begun = False
        """Whether its file holds what it should."""
        self._lines: AppendFile | None = None

    @classmethod
    def open(cls, path: Path, *, boot_is_known: bool = False) -> Self:
        """Open or begin the journal at ``path``; a last line that was cut off is removed.

        Where it cannot be written, as on a full disk, it is begun with its first entry: nothing is
        bound before that. ``boot_is_known``: there are registrations of this boot, so that there
        must be a journal.

        Raises:
            JournalError: it holds what is not a journal's.
            OSError: it cannot be opened or mended.
        """
        state = JournalState(Status.begin())
        entries: list[dict[str, Any]] = []
        if path.exists():
            AppendFile(path).close()  # removes a cut-off line
            with path.open("rb") as file:
                entries = [
                    load_object(line, what="the journal", limit=limits.JOURNAL_ENTRY)
                    for line in file
                ]
        if entries and entries[0].get("type") == "state":
            for entry in entries:
                state = apply(state, entry)
            journal = cls(path, state)
            journal._entries = len(entries)
            journal._is_begun = True
            return journal
        # That it was lost is written down with it: an agent that is killed now must not forget it.
        state = replace(_of_version_1(entries), lost=boot_is_known and not entries)
        journal = cls(path, state)
        with suppress(OSError):
            journal._rewrite()
        return journal

    @property
    def state(self) -> JournalState:
        """What the entries so far add up to."""
        return self._state

    def reconcile(self, found: Found) -> dict[str, Any] | None:
        """Return :func:`reconcile`'s entry."""
        return reconcile(self._state, found)

    def close(self) -> None:
        """Close the file."""
        if self._lines is not None:
            self._lines.close()
            self._lines = None

    def add(self, entry: dict[str, Any], *, durable: bool = True) -> None:
        """Append an entry; unless told otherwise it is durable when this returns.

        Raises:
            OSError: it could not be written; the state is as before.
        """
        state = apply(self._state, entry)
        if not self._is_begun:
            self._rewrite()
        if self._lines is None:
            self._lines = AppendFile(self._path)
        self._lines.append(_line(entry))
        if durable:
            self._lines.sync()
        self._state = state
        self._entries += 1
        if self._entries >= limits.JOURNAL_ENTRIES and state.pending is None:
            self._rewrite()

    def add_bind(self, bind: Bind) -> None:
        """Append and make durable that the PCR is about to be extended.

        Raises:
            OSError: it could not be written; the PCR must not be extended.
        """
        self.add(
            {
                "type": "bind",
                "before": bind.before.hex(),
                "history": bind.history.hex(),
                "expected": bind.expected.hex(),
            }
        )

    def _rewrite(self) -> None:
        """Put one line in the place of all entries; a pending bind goes on after it."""
        self.close()
        state = self._state
        entries = [
            {
                "type": "state",
                "version": VERSION,
                "value": None if state.value is None else state.value.hex(),
                "status": state.status.model_dump(mode="json"),
                "counters": None if state.counters is None else list(state.counters),
                "lost": state.lost,
            }
        ]
        if state.pending is not None:
            entries.append(
                {
                    "type": "bind",
                    "before": state.pending.before.hex(),
                    "history": state.pending.history.hex(),
                    "expected": state.pending.expected.hex(),
                }
            )
        directory = self._path.parent
        if not directory.is_dir():
            directory.mkdir(mode=0o700)
            sync_directory(directory.parent)
        replace_file(self._path, b"".join(map(_line, entries)))
        self._is_begun = True
        self._entries = len(entries)


def _of_version_1(entries: Iterable[dict[str, Any]]) -> JournalState:
    """Return what a journal of version 1 says of the PCR; nothing in it knows the counters.

    Its entries are ``bind`` {history, expected}, ``done``, ``abandoned``, ``foreign`` {found, time}
    and ``gap`` {source, since, until}.

    Raises:
        JournalError: it is not one.
    """
    state = JournalState(Status.begin())
    try:
        for entry in entries:
            state = _after_version_1(state, entry)
    except (KeyError, TypeError, ValueError, ValidationError) as error:
        what = f"an entry of the journal cannot be read: {type(error).__name__}"
        raise JournalError(what) from error
    return state


def _after_version_1(state: JournalState, entry: dict[str, Any]) -> JournalState:
    match entry["type"]:
        case "bind":
            before, expected = _digest(entry["history"]), _digest(entry["expected"])
            if state.status.initial is None:
                status = state.status.model_copy(update={"initial": before})
                state = replace(state, status=status)
            # What it had found was written down before it bound, so that this is what was there.
            return replace(state, value=before, pending=Pending(before, before, expected))
        case "done" if state.pending is not None:
            return replace(state, value=state.pending.expected, pending=None)
        case "abandoned":
            return replace(state, pending=None)
        case "foreign":
            change = Foreign(kind="changed", time=_hour(entry["time"]))
            return replace(
                state,
                status=state.status.with_foreign(change),
                value=_digest(entry["found"]),
                pending=None,
            )
        case "gap":
            kind: GapKind = "tpm" if entry["source"] == "tpm" else "disk"
            gap = Gap(kind=kind, since=_hour(entry["since"]), until=_hour(entry["until"]))
            return replace(state, status=state.status.with_gap(gap))
    raise JournalError("the journal has an entry of an unknown type")


def _line(entry: dict[str, Any]) -> bytes:
    return json.dumps(entry, separators=(",", ":")).encode("ascii") + b"\n"


def _hour(time: Any) -> str:
    return f"{str(time)[:13]}:00:00Z"


def _digest(value: Any) -> bytes:
    digest = decode_hex(value) if isinstance(value, str) else b""
    if len(digest) != DIGEST_SIZE:
        raise ValueError("a value of the PCR has 32 bytes")
    return digest


def _counters(value: Any) -> Counters:
    if not isinstance(value, list) or [type(each) for each in value] != [int, int]:
        raise ValueError("two counters of the TPM are expected")
    return cast("Counters", tuple(value))

"""The binding journal: what the binding PCR was extended with, written before it is.

One JSON object a line, in one file a boot:

- ``{"type":"bind","seq","root","history","expected","time"}``: about to extend the PCR, whose
  value is ``history``; ``expected`` is its value afterwards (hexadecimal).
- ``{"type":"done","seq"}``: it was extended.
- ``{"type":"abandoned","seq"}``: it was not, and never will be.
- ``{"type":"foreign","seq","expected","found","time"}``: somebody else changed the PCR after
  bind ``seq``.
- ``{"type":"gap","source","since","until"}``: between these times records could not be written
  (``disk``) or bound (``tpm``).

Source: design, section 6.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

from cima_runc.base import limits
from cima_runc.base.durable import AppendFile, sync_directory
from cima_runc.base.errors import CimaError
from cima_runc.base.jsonio import load_object
from cima_runc.cpcr.binding import Bind


class JournalError(CimaError):
    """The journal on disk is not one that we wrote."""


@dataclass(frozen=True)
class Foreign:
    """Somebody else changed the PCR."""

    seq: int
    """The last bind before."""
    expected: bytes
    found: bytes
    time: str
    """When it was noticed, RFC 3339."""


Source = Literal["disk", "tpm"]


@dataclass(frozen=True)
class Gap:
    """For a time, records could not be written or bound; they were later."""

    source: Source
    since: str
    """RFC 3339."""
    until: str


@dataclass(frozen=True)
class JournalState:
    """What the journal's entries add up to."""

    last: Bind | None = None
    """The last bind that reached the PCR, or of which it is not known."""
    pending: bool = False
    """Whether it is not known if ``last`` reached the PCR."""
    seq: int = 0
    """The highest number used."""
    value: bytes | None = None
    """What the PCR's value must be, None where nothing is known of it."""
    foreign: int = 0
    """How often somebody else changed the PCR."""
    foreign_last: tuple[Foreign, ...] = ()
    """The latest of these changes, ``limits.FOREIGN_SHOWN`` at most, oldest first."""
    gaps: int = 0
    """How often records could not be written or bound for a time."""
    gaps_last: tuple[Gap, ...] = ()
    """The latest of these times, ``limits.FOREIGN_SHOWN`` at most, oldest first."""


def apply(state: JournalState, entry: dict[str, Any]) -> JournalState:
    """Return the state after one more entry.

    Raises:
        JournalError: the entry is not one of those above.
    """
    try:
        match entry["type"]:
            case "bind":
                bind = Bind(
                    entry["seq"], bytes.fromhex(entry["root"]), bytes.fromhex(entry["history"])
                )
                if bind.expected.hex() != entry["expected"]:
                    raise JournalError(f"bind {bind.seq} of the journal does not add up")
                return replace(state, last=bind, pending=True, seq=bind.seq, value=bind.expected)
            case "done":
                return replace(state, pending=False)
            case "abandoned":
                value = state.last.history if state.last else None
                return replace(state, last=None, pending=False, value=value)
            case "foreign":
                found = bytes.fromhex(entry["found"])
                change = Foreign(
                    entry["seq"],
                    bytes.fromhex(entry["expected"]),
                    found,
                    str(entry.get("time", "")),
                )
                return replace(
                    state,
                    pending=False,
                    value=found,
                    foreign=state.foreign + 1,
                    foreign_last=(*state.foreign_last, change)[-limits.FOREIGN_SHOWN :],
                )
            case "gap":
                source: Source = "tpm" if entry["source"] == "tpm" else "disk"
                gap = Gap(source, str(entry["since"]), str(entry["until"]))
                return replace(
                    state,
                    gaps=state.gaps + 1,
                    gaps_last=(*state.gaps_last, gap)[-limits.FOREIGN_SHOWN :],
                )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise JournalError(f"an entry of the journal cannot be read: {error}") from error
    raise JournalError("the journal has an entry of an unknown type")


def reconcile(state: JournalState, found: bytes) -> dict[str, Any] | None:
    """Return the entry that explains the PCR's value ``found``, None where it is as expected.

    Asked before every bind, and so also after a crash or a failed extend.
    """
    if state.pending and state.last is not None:
        if found == state.last.expected:
            return {"type": "done", "seq": state.seq}
        if found == state.last.history:
            return {"type": "abandoned", "seq": state.seq}
    if state.value is None or found == state.value:
        return None
    return {
        "type": "foreign",
        "seq": state.seq,
        "expected": state.value.hex(),
        "found": found.hex(),
    }


class Journal:
    """The journal's file of one boot."""

    def __init__(self, lines: AppendFile, state: JournalState) -> None:
        self._lines = lines
        self._state = state

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open or begin the journal at ``path``; a last line that was cut off is removed.

        Raises:
            JournalError: it holds what is not a journal's.
            OSError: it cannot be opened or mended.
        """
        lines = AppendFile(path)
        state = JournalState()
        with path.open("rb") as file:
            for line in file:
                entry = load_object(line, what="the journal", limit=limits.JOURNAL_ENTRY)
                state = apply(state, entry)
        sync_directory(path.parent)
        return cls(lines, state)

    @property
    def state(self) -> JournalState:
        """What the entries so far add up to."""
        return self._state

    def close(self) -> None:
        """Close the file."""
        self._lines.close()

    def add(self, entry: dict[str, Any], *, durable: bool = True) -> None:
        """Append an entry; unless told otherwise it is durable when this returns.

        Raises:
            OSError: it could not be written; the state is as before.
        """
        state = apply(self._state, entry)
        self._lines.append(json.dumps(entry, separators=(",", ":")).encode("ascii") + b"\n")
        if durable:
            self._lines.sync()
        self._state = state

    def add_bind(self, bind: Bind, time: str) -> None:
        """Append and make durable that the PCR is about to be extended."""
        self.add(
            {
                "type": "bind",
                "seq": bind.seq,
                "root": bind.root.hex(),
                "history": bind.history.hex(),
                "expected": bind.expected.hex(),
                "time": time,
            }
        )

"""The agent's one writer: records to disk, then the binding journal, then the TPM.

Everything that changes a register goes through here, in one thread, in this order: records
durable, journal durable, TPM extended. Only then may anything be acknowledged.
Source: design, section 6.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from cima_runc.agent.core import Core
from cima_runc.base import clock
from cima_runc.base.text import printable
from cima_runc.cpcr.binding import Bind
from cima_runc.cpcr.journal import Journal, JournalState, Source, reconcile
from cima_runc.ml.records import Record
from cima_runc.ml.store import Store
from cima_runc.tpm.device import Tpm, TpmError

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trouble:
    """Records cannot be made durable or bound."""

    since: str
    """RFC 3339."""
    source: Source
    reason: str
    """One line for people: it may name files."""


class Ledger:
    """Holds what is not on disk yet and what is not bound yet."""

    def __init__(
        self, core: Core, store: Store, journal: Journal, tpm: Tpm | None, pcr: int
    ) -> None:
        self._core = core
        self._store = store
        self._journal = journal
        self._tpm = tpm
        self._pcr = pcr
        self._unwritten: dict[int, list[Record]] = {}
        self._bind_failed = False
        self.trouble: Trouble | None = None
        """What keeps records from being written or bound at the moment."""

    @property
    def backlog(self) -> int:
        """Records that could not be written yet: the disk is full or broken."""
        return sum(map(len, self._unwritten.values()))

    @property
    def journal_state(self) -> JournalState:
        """What the binding journal adds up to."""
        return self._journal.state

    def add(self, registration: int, records: list[Record]) -> None:
        """Queue records, in order, for :meth:`write`."""
        if records:
            self._unwritten.setdefault(registration, []).extend(records)

    def drop(self, registration: int) -> None:
        """Forget what is queued of a container that is being removed."""
        self._unwritten.pop(registration, None)

    def write(self) -> None:
        """Make every queued record durable.

        Raises:
            OSError: a file could not be written; what is not on disk stays queued.
        """
        with self._noticing():
            failed: dict[int, OSError] = {}
            for registration, records in self._unwritten.items():
                try:
                    self._store.append(registration, records)
                except OSError as error:
                    failed[registration] = error
            failed |= self._store.sync()
            self._unwritten = {number: self._unwritten[number] for number in failed}
            if failed:
                raise next(iter(failed.values()))

    def bind(self) -> None:
        """Bind every changed register into the TPM, once; nothing changed, nothing done.

        Raises:
            OSError: the journal could not be written.
            TpmError: the TPM could not be read or extended; the next call finds out which.
        """
        with self._noticing():
            self._bind()
            self._end_trouble()

    def _bind(self) -> None:
        if self._tpm is None or not (self._core.changed or self._bind_failed):
            return
        # One reading for both: a real TPM takes milliseconds for each.
        history = self.settle()
        assert history is not None
        self._bind_failed = True
        bind = self._core.next_bind(self._journal.state.seq + 1, history)
        self._journal.add_bind(bind, clock.now())
        self._tpm.extend(self._pcr, bind.digest)
        # Not durable on purpose: should it be lost, the PCR's value says the same.
        self._journal.add({"type": "done", "seq": bind.seq}, durable=False)
        self._bind_failed = False

    def bound(self) -> Bind:
        """Bind what is not bound yet, and return the bind that the PCR now shows.

        Where somebody else has extended the PCR since the last bind, or that bind was of another
        root, all is bound anew, from the value that is there.

        Raises:
            OSError, TpmError: as for :meth:`bind`; also where there is no TPM.
        """
        if self._tpm is None:
            raise TpmError("there is no TPM to bind into", hint="see cima status")
        self.bind()
        self.settle()
        last = self._journal.state.last
        shown = last is not None and last.expected == self._journal.state.value
        if last is None or not shown or last.root != self._core.root:
            self._bind_failed = True
            self.bind()
            last = self._journal.state.last
            assert last is not None
        return last

    def settle(self) -> bytes | None:
        """Compare the PCR with the journal, write down what differs, return the PCR's value.

        None without a TPM.

        Raises:
            OSError, TpmError: as for :meth:`bind`.
        """
        if self._tpm is None:
            return None
        found = self._tpm.read_pcrs([self._pcr])[self._pcr]
        while (entry := reconcile(self._journal.state, found)) is not None:
            if entry["type"] == "foreign":
                entry["time"] = clock.now()
                _log.warning(
                    "PCR %d was changed by somebody else: expected %s, found %s",
                    self._pcr,
                    entry["expected"],
                    entry["found"],
                )
            self._journal.add(entry)
        return found

    @contextmanager
    def _noticing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, TpmError) as error:
            if self.trouble is None:
                source: Source = "tpm" if isinstance(error, TpmError) else "disk"
                self.trouble = Trouble(clock.now(), source, printable(str(error)))
            raise

    def _end_trouble(self) -> None:
        """Write down that for a time records were not written or not bound."""
        trouble = self.trouble
        if trouble is None or self._unwritten:
            return
        self._journal.add(
            {
                "type": "gap",
                "source": trouble.source,
                "since": trouble.since,
                "until": clock.now(),
            }
        )
        _log.warning("all is recorded again; since %s: %s", trouble.since, trouble.reason)
        self.trouble = None

"""Questions: what ``cima ps``, ``cima status`` and ``cima log`` show."""

from dataclasses import asdict
from typing import Any

from cima_runc.agent.current import CurrentSettings
from cima_runc.agent.events import Events
from cima_runc.agent.ledger import Bound
from cima_runc.agent.request import Body, StoredBody
from cima_runc.agent.retention import Retention
from cima_runc.agent.writer import Writer
from cima_runc.base import limits
from cima_runc.base.jsonio import load_object
from cima_runc.ima.kernel_log import KernelLog
from cima_runc.ml.listing import (
    NoSuchContainerError,
    container_row,
    find_note,
    stored_notes,
    with_unmeasured,
)
from cima_runc.ml.store import ContainerNote, Store
from cima_runc.runtime.hook_state import qualified
from cima_runc.sensor.loader import Sensor
from cima_runc.tpm.device import Tpm, TpmError


class Questions:
    """Answers questions and changes nothing; for the writer's thread."""

    def __init__(
        self,
        *,
        settings: CurrentSettings,
        boot_id: str,
        writer: Writer,
        store: Store,
        events: Events,
        retention: Retention,
        sensor: Sensor | None,
        kernel_log: KernelLog | None,
        tpm: Tpm | None,
    ) -> None:
        self._settings = settings
        self._boot_id = boot_id
        self._writer = writer
        self._store = store
        self._events = events
        self._retention = retention
        self._sensor = sensor
        self._kernel_log = kernel_log
        self._tpm = tpm

    def ps(self, uid: int = 0) -> list[dict[str, Any]]:
        """Return what ``cima ps`` shows of this boot's containers: to root all, else the own."""
        rows = [
            container_row(container.note, container.partition)
            for container in self._writer.containers
            if uid in {0, container.note.uid}
        ]
        return rows if uid else with_unmeasured(rows, self._store)

    def status(self) -> dict[str, Any]:
        """Return what ``cima status`` shows."""
        settings = self._settings.value
        pcr, ima = settings.tpm.pcr, settings.ima
        value = None
        pcrs: dict[int, bytes] = {}
        tpm = "missing"
        if self._tpm is not None:
            tpm = self._tpm.description
            try:
                self._writer.compare()
                # The PCRs first, the log after: the log may lead, never lag.
                pcrs = self._tpm.read_pcrs([pcr, ima.host_pcr, ima.container_pcr])
                value = pcrs[pcr].hex()
            except TpmError as error:
                tpm = f"{tpm}: {error}"
        status, expected = self._writer.status, self._writer.expected_value
        trouble = self._writer.trouble
        containers = list(self._writer.containers)
        return {
            "pcr": pcr,
            "pcr_value": value,
            "expected_value": expected.hex() if expected else None,
            "initial_value": status.initial.hex() if status and status.initial else None,
            "bind": _bind_row(self._writer.last_bind),
            "foreign_extends": status.foreign.count if status else 0,
            "tpm": tpm,
            "sensor": self._sensor_status(),
            "kernel_log": self._log_status(pcrs),
            "lost": sum(one.dropped for one in containers),
            "missing": list(self._writer.missing),
            "boot_id": self._boot_id,
            "containers": sum(one.note.kind == "container" for one in containers),
            "unwritten_records": self._writer.backlog,
            "trouble": asdict(trouble) if trouble else None,
            "gaps": status.gaps.count if status else 0,
            "storage": {
                "mib": self._retention.size // limits.MIB,
                "quota_mib": settings.storage.quota_mib,
                "removed_unattested": self._retention.removed_unattested,
            },
            "fleet": self._retention.confirmations.describe(),
        }

    def _sensor_status(self) -> dict[str, Any] | str:
        if self._sensor is None:
            return "missing"
        status = self._sensor.status()
        return {
            "programs": list(status.programs),
            "watched": status.watched,
            "nested": status.nested,
            "ring_bytes": status.ring_bytes,
            "dropped": status.dropped,
            "missed": status.missed,
            "orphans": self._events.orphans,
        }

    def _log_status(self, pcrs: dict[int, bytes]) -> dict[str, Any] | str:
        if self._kernel_log is None:
            return "missing"
        self._events.read_kernel_log()
        shown: dict[str, Any] = {"lines": self._kernel_log.count, "error": self._events.log_error}
        ima = self._settings.value.ima
        for pcr in (ima.host_pcr, ima.container_pcr):
            matches = None
            if pcr in pcrs:
                matches = self._kernel_log.explains(pcr, pcrs[pcr])
            shown[f"pcr{pcr}"] = {
                "lines": self._kernel_log.replay(pcr).lines,
                "matches_tpm": matches,
            }
        return shown

    def log(self, body: bytes) -> Body:
        """Return the stored records, a line each, of the container that ``{"id": ...}`` names.

        Where this boot has none of that name, an earlier one's.
        """
        try:
            return self.log_of_this_boot(body)
        except NoSuchContainerError:
            return stored_log(self._store, body)

    def log_of_this_boot(self, body: bytes, uid: int = 0) -> Body:
        """The same of a container that the agent knows.

        A user other than root gets those of his own only, and need not qualify the id.

        Raises:
            NoSuchContainerError: it knows none of that name.
        """
        notes = [container.note for container in self._writer.containers]
        if uid:
            notes = [note for note in notes if note.uid == uid]
        return _lines(self._store, find_note(notes, _wanted(body, uid)))


def stored_log(store: Store, body: bytes, uid: int = 0) -> Body:
    """Return what :meth:`Questions.log_of_this_boot` does, of whatever is stored; in any thread,
    since all notes are read.

    Raises:
        NoSuchContainerError: there is none of that name.
    """
    notes = (note for note in stored_notes(store, None) if uid in (0, note.uid))
    return _lines(store, find_note(notes, _wanted(body, uid)))


def _wanted(body: bytes, uid: int) -> str:
    wanted = str(load_object(body, what="the request", limit=limits.REQUEST).get("id"))
    return qualified(wanted.removeprefix(qualified("", uid)), uid) if uid else wanted


def _lines(store: Store, note: ContainerNote) -> Body:
    try:
        return StoredBody(*store.open_lines(note.registration))
    except FileNotFoundError:
        return b""


def _bind_row(bound: Bound | None) -> dict[str, Any] | None:
    """Return what a bind was over; None: none since the agent started."""
    if bound is None:
        return None
    return {
        "history": bound.bind.history.hex(),
        "status": bound.status.digest().hex(),
        "host": bound.host.hex(),
        "root": bound.root.hex(),
    }

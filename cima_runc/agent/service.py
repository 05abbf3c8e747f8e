"""The agent's service: what it does when a hook calls, when the sensor reports, when time passes.

All of it runs in one worker thread (:meth:`Agent._submit` of :mod:`cima_runc.agent.main` sees to
that), but for :meth:`Service.look_at`.
"""

import hashlib
import itertools
import logging
import secrets
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cima_runc.agent.candidate import Candidate, look_at
from cima_runc.agent.core import Container, Core, CoreError, dropped_in
from cima_runc.agent.dependencies import Dependencies, Look, failed
from cima_runc.agent.enforcement import Allowlist, Enforcement
from cima_runc.agent.held import Held
from cima_runc.agent.ledger import Ledger
from cima_runc.agent.process import ContainerProcess, ProcessError, examine
from cima_runc.agent.retention import Retention
from cima_runc.base import clock, limits
from cima_runc.base.errors import CimaError
from cima_runc.base.jsonio import load_object
from cima_runc.base.text import printable
from cima_runc.config import Settings
from cima_runc.evidence.owner import owner_keys
from cima_runc.ima.kernel_log import KernelLog
from cima_runc.measure.oci_config import measured_config
from cima_runc.measure.rootfs import Store as RootfsStore
from cima_runc.ml import contents
from cima_runc.ml.listing import (
    NoSuchContainerError,
    container_row,
    find_note,
    stored_notes,
    with_unmeasured,
)
from cima_runc.ml.partition import Partition
from cima_runc.ml.records import Record, RecordError
from cima_runc.ml.store import ContainerNote, Store, StoreError
from cima_runc.runtime.hook_state import HookState, parse_hook_state, qualified
from cima_runc.sensor.events import Event
from cima_runc.sensor.loader import Sensor
from cima_runc.tpm.device import Tpm, TpmError

_log = logging.getLogger(__name__)

_FIRST_RECORDS = 3
"""Records that a registration writes at least: register, config, rootfs."""
_LOG_LAG_SECONDS = 0.01
"""The sensor sees a file just before IMA logs it: how long a record waits for its line, once."""


_REGISTER_SECONDS = 5
"""Of a hook's time, what is kept for the rest when a root filesystem is measured."""
_SHARED_NUMBERS = 1 << 32
"""Partitions that containers share have random numbers below this, which do not tell when the first
of the containers was started."""


class RegistrationError(CimaError):
    """The container cannot be registered."""


class Service:
    """A running agent, without its sockets and timers."""

    def __init__(
        self,
        *,
        settings: Settings,
        boot_id: str,
        hooks_dir: str,
        core: Core,
        store: Store,
        ledger: Ledger,
        sensor: Sensor | None,
        kernel_log: KernelLog | None,
        tpm: Tpm | None,
        on_process: Callable[[int, int], None],
        held_dir: Path | None = None,
        on_progress: Callable[[], None],
    ) -> None:
        """``on_process(registration, pidfd)`` is told of each container's first process.

        ``on_progress()`` is called in the midst of long work.
        """
        self._settings = settings
        self._boot_id = boot_id
        self._hooks_dir = hooks_dir
        self._core = core
        self._store = store
        self._ledger = ledger
        self._sensor = sensor
        self._kernel_log = kernel_log
        self._tpm = tpm
        self._on_process = on_process
        self._on_progress = on_progress
        self._rootfs_store = RootfsStore.at(store.root / "rootfs")
        self._enforcement = Enforcement(settings.enforcement, sensor) if sensor else None
        self._processes: dict[int, ContainerProcess] = {}
        self._held = Held(held_dir)
        self._number = max(store.registrations(), default=0)
        self.dependencies = Dependencies(
            boot_id=boot_id,
            host_pcr=settings.ima.host_pcr,
            core=core,
            store=store,
            ledger=ledger,
            kernel_log=kernel_log,
            new_number=self._new_shared_number,
            new_secret=self._new_secret,
        )
        self.retention = Retention(settings.storage, boot_id, core, store)
        self._log_error: str | None = None
        self._released: dict[int, int] = {}
        self._ended: set[int] = set()
        self._notices: deque[tuple[str, bytes]] = deque()
        self.orphans = 0
        """Events of registrations that have ended, which should not be."""

    # -- the sensor ---------------------------------------------------------------------------

    def commit(self, *, bind: bool) -> None:
        """Turn what has come into records, make them durable, and ``bind`` them if wanted.

        Raises:
            OSError, TpmError: nothing is lost, the next call tries again.
        """
        self._take_notices()
        self._take_events()
        self._record_lost()
        self.dependencies.collect()
        self._write()
        if bind:
            self._ledger.bind()

    def _take_events(self) -> None:
        """Turn what the sensor has into durable records; only then its buffer is given back.

        Until then the buffer is what keeps them, should the agent be killed: the next one reads
        them again.
        """
        # What an earlier call could not write comes first: no more is taken while the disk is full.
        self._write()
        if self._sensor is None:
            return
        for events in self._sensor.events(limits.EVENT_BATCH):
            self._measure(events)
            self._write()
            self._sensor.release()
            self._on_progress()
        self._sensor.release()

    def _write(self) -> None:
        """Make every record durable; then the notes of containers may say that they have ended."""
        self._ledger.write()
        for number in list(self._ended):
            container = self._core.get(number)
            if container is not None:
                self._store.write_note(container.note)
                self._store.close_partition(number)
            if self._sensor is not None:
                self._sensor.forget(number)
            self._ended.discard(number)

    def _measure(self, events: list[Event]) -> None:
        now = clock.now()
        lines = self._lines_of(events)
        for event, line in zip(events, lines, strict=True):
            try:
                record = self._core.measure(event, line, now)
            except CoreError as error:
                self.orphans += 1
                _log.error("%s", error)
                continue
            if record is not None:
                self._ledger.add(event.registration, [record])

    def _lines_of(self, events: list[Event]) -> list[int | None]:
        log = self._kernel_log
        if log is None:
            return [None] * len(events)

        def line_of(event: Event) -> int | None:
            if event.digest is None or event.path is None:
                return None
            return log.line_of(event.digest, event.path)

        self._read_kernel_log()
        lines = [line_of(event) for event in events]
        if None in lines:
            time.sleep(_LOG_LAG_SECONDS)
            self._read_kernel_log()
            lines = [line_of(event) for event in events]
        return lines

    def _read_kernel_log(self) -> None:
        """Read on in the kernel's log; where that fails records are made without it, and say so."""
        if self._kernel_log is None or self._log_error:
            return
        try:
            self._kernel_log.read_new()
        except (CimaError, OSError) as error:
            self._log_error = printable(str(error))
            _log.error("the kernel's log is read no further: %s", self._log_error)

    def _record_lost(self) -> None:
        if self._sensor is None:
            return
        for registration, count in self._sensor.lost().items():
            self._count_lost(registration, count)

    def _count_lost(self, registration: int, count: int) -> None:
        container = self._core.get(registration)
        if container is None or container.note.state == "stopped":
            return
        new = count - container.dropped
        if new <= 0:
            return
        record = self._core.dropped(registration, new, clock.now())
        self._ledger.add(registration, [record])
        _log.warning("container %s: the sensor lost %d events", container.note.id, new)

    # -- hooks --------------------------------------------------------------------------------

    def look_at(self, body: bytes) -> Candidate:
        """Look at the container of this hook state; may run beside everything else.

        Raises:
            CimaError: it must not start.
        """
        return look_at(
            body, self._settings.rootfs, self._rootfs_store, self.dependencies, self.look_seconds
        )

    @property
    def look_seconds(self) -> float:
        """How long a container may be looked at before it is registered."""
        return max(self._settings.shim.hook_timeout_seconds - _REGISTER_SECONDS, 1)

    def register(self, candidate: Candidate) -> None:
        """Register a container; when this returns it may start.

        Raises:
            CimaError, OSError: it must not start; nothing of it is registered.
        """
        try:
            self._check_share(candidate.uid)
            self._take_notices()
            self._end_predecessor(candidate.state)
            self._register(candidate)
        except BaseException:
            candidate.close()
            raise

    def _check_share(self, uid: int) -> None:
        """No user but root may have more than so many containers."""
        if uid == 0:
            return
        count = sum(container.note.uid == uid for container in self._core.containers)
        if count >= limits.USER_CONTAINERS:
            raise RegistrationError(
                f"user {uid} has {count} containers, those that ended lately counted"
            )

    def _end_predecessor(self, state: HookState) -> None:
        old = self._core.live(state.id, state.bundle)
        if old is None:
            return
        process = self._processes.get(old.note.registration)
        if process is None or not process.alive():
            self._end(old, "its first process had ended")
        elif old.note.state == "created" and old.note.pid == state.pid:
            # Its hook asks again: the agent that it asked first was killed before it could answer.
            self._end(old, "registered again")
        else:
            raise RegistrationError(f"container {state.id} is registered and alive")

    def _register(self, candidate: Candidate) -> None:
        state, process = candidate.state, candidate.process
        owners = owner_keys(candidate.config, Path(self._settings.attestation.owners_dir))
        allowlist = self._enforcement.allowlist(candidate.rootfs) if self._enforcement else None
        dependencies, reason = self._dependencies_of(candidate.look)
        number = self._new_number()
        missing = self._core.missing
        try:
            secret = self._new_secret()
        except TpmError as error:
            secret = self._admitted(error)
            missing = (*missing, "tpm")
        note = ContainerNote(
            registration=number,
            id=state.id,
            boot_id=self._boot_id,
            mntns=process.mntns,
            cgroup=process.cgroup,
            pid=process.pid,
            start_ticks=process.start_ticks,
            bundle=state.bundle,
            slot=self._core.take_slot(),
            started=clock.now(),
            state="created",
            owners=owners,
            dependencies=dependencies,
            uid=candidate.uid,
        )
        try:
            records = self._begin(
                note, secret, candidate, reason, missing=missing, allowlist=allowlist
            )
        except CimaError:
            self._core.give_slot(note.slot)
            raise
        try:
            if self._sensor is not None:
                handle = allowlist.handle if allowlist else None
                self._sensor.watch(process.mntns, number, process.cgroup_id, handle)
            self._store.create(note, secret)
        except BaseException:
            self._unwatch(number)
            self._core.forget(number)
            self._store.discard(number)
            raise
        try:
            self._ledger.add(number, records)
            self._ledger.write()
            self._bind_first()
        except BaseException:
            self._unwatch(number)
            self._add_end(number, "refused")
            raise
        self._hold(note, process)
        _log.info("container %s registered as %d, mnt:[%d]", state.id, number, process.mntns)

    def _admitted(self, error: TpmError) -> bytes:
        """Return a secret of our own for a container that may start though the TPM fails."""
        if self._settings.binding.on_tpm_failure != "admit":
            raise error
        _log.error("a container is admitted without the TPM: %s", error)
        return secrets.token_bytes(32)

    def _bind_first(self) -> None:
        try:
            self._ledger.bind()
        except TpmError as error:
            if self._settings.binding.on_tpm_failure != "admit":
                raise
            _log.error("a container is admitted, and bound when the TPM works again: %s", error)

    def _dependencies_of(self, look: Look) -> tuple[int | None, str]:
        """Return the registration of the partition of dependencies, or why there is none."""
        try:
            return self.dependencies.register(look), look.error
        except (CimaError, OSError) as error:
            # What is missing here is in the record, for the verifier to judge.
            _log.error("no dependencies: %s", error)
            return None, str(error)

    def _begin(
        self,
        note: ContainerNote,
        secret: bytes,
        candidate: Candidate,
        no_dependencies: str,
        *,
        missing: tuple[str, ...],
        allowlist: Allowlist | None,
    ) -> list[Record]:
        register = contents.RegisterV1(
            id=note.id,
            boot_id=note.boot_id,
            registration=note.registration,
            cgroup=note.cgroup,
            namespaces=candidate.process.namespaces,
            dependencies=note.dependencies,
            missing=missing,
            uid=note.uid or None,
            enforced=allowlist.image if allowlist is not None else None,
        )
        config = measured_config(candidate.config, secret=secret, hooks_dir=self._hooks_dir)
        first: list[contents.Content] = [
            register,
            contents.Config(config=config),
            contents.parse_rootfs(candidate.rootfs),
        ]
        if no_dependencies:
            first.append(failed(no_dependencies))
        return self._core.register(note, secret, first, note.started)

    def _unwatch(self, registration: int) -> None:
        """Watch a container no more that came to nothing."""
        if self._sensor is not None and registration in self._sensor.registrations():
            self._sensor.unwatch(registration)
            self._sensor.forget(registration)

    def _new_number(self) -> int:
        """Return the time (microseconds since 1970): numbers grow, and count nobody's containers.

        Were they counted, or had gaps of any distribution, two of an owner's would tell how many
        of others' came between. Below 2^53, so that JSON holds them.
        """
        self._number = max(self._number + 1, time.time_ns() // 1000)
        return self._number

    def _new_shared_number(self) -> int:
        taken = {*self._store.registrations(), 0}
        while (number := secrets.randbelow(_SHARED_NUMBERS)) in taken:
            pass
        return number

    def _new_secret(self) -> bytes:
        own = secrets.token_bytes(32)
        if self._tpm is None:
            return own
        return hashlib.sha256(own + self._tpm.random(32)).digest()

    def note(self, verb: str, body: bytes) -> None:
        """Take a hook's notice: the next commit heeds it. May be called in any thread.

        Not at once, so that it does not hold up the runtime whose hook it is.
        """
        self._notices.append((verb, body))

    def _take_notices(self) -> None:
        while self._notices:
            verb, body = self._notices.popleft()
            try:
                if verb == "poststart":
                    self.poststart(body)
                else:
                    self.poststop(body)
            except (CimaError, OSError) as error:
                _log.error("%s failed: %s", verb, printable(str(error)))

    def poststart(self, body: bytes, uid: int = 0) -> None:
        """Note that the container, which is the user's, runs."""
        container = self._of_hook(body, uid)
        if container is not None and container.note.state == "created":
            note = self._core.set_state(container.note.registration, "running")
            self._store.write_note(note)

    def holds(self, body: bytes) -> bool:
        """Whether the container that a hook names is held; may be asked in any thread."""
        state = parse_hook_state(body)
        return (state.id, state.bundle) in self._held

    def release(self, body: bytes) -> None:
        """Let go of a container that was deleted: its runtime goes on once its file systems can."""
        container = self._of_hook(body)
        if container is not None:
            self._release(container)

    def poststop(self, body: bytes, uid: int = 0) -> None:
        """Record the end of the container, which is the user's, after everything that it did.

        Raises:
            RegistrationError: a user other than root says so of one that lives.
        """
        container = self._of_hook(body, uid)
        if container is None:
            return
        process = self._processes.get(container.note.registration)
        if uid != 0 and process is not None and process.alive():
            raise RegistrationError(f"container {container.note.id} has not ended")
        self._end(container, "deleted")

    def process_died(self, registration: int) -> None:
        """A container's first process has just ended: where all others have, let go of it.

        So a runtime that deletes it need not wait for that.
        """
        container = self._core.get(registration)
        process = self._processes.get(registration)
        if container is None or process is None or not process.is_init:
            return
        if not process.cgroup_populated():
            self._release(container)

    def process_ended(self, registration: int) -> bool:
        """A container's first process has ended: record its end, unless others live on in it.

        Returns whether the end is recorded.
        """
        container = self._core.get(registration)
        process = self._processes.get(registration)
        if container is None or container.note.state == "stopped":
            return True
        if process is not None and process.cgroup_populated():
            return False
        self._end(container, "its first process ended")
        return True

    def _of_hook(self, body: bytes, uid: int = 0) -> Container | None:
        state = parse_hook_state(body)
        return self._core.live(qualified(state.id, uid), state.bundle)

    def _release(self, container: Container) -> None:
        """Watch the container no more, and hold its process and namespace no more."""
        number = container.note.registration
        if self._sensor is not None and number in self._sensor.registrations():
            self._released[number] = self._sensor.unwatch(number).total
        process = self._processes.pop(number, None)
        if process is not None:
            process.close()
        self._held.remove(container.note.id, container.note.bundle)

    def _hold(self, note: ContainerNote, process: ContainerProcess) -> None:
        self._processes[note.registration] = process
        self._held.add(note.id, note.bundle)
        self._on_process(note.registration, process.pidfd)

    def _end(self, container: Container, reason: str) -> None:
        number = container.note.registration
        self._release(container)
        # What the container did is in the sensor's buffer still: first that, then its end.
        self._take_events()
        self._count_lost(number, self._released.pop(number, 0))
        self._add_end(number, reason)
        self._write()
        self._ledger.bind()
        _log.info("container %s ended: %s", container.note.id, reason)

    def _add_end(self, number: int, reason: str) -> None:
        end = self._core.end(number, reason, clock.now(), clock.since_boot())
        self._ledger.add(number, [end])
        self._ended.add(number)

    # -- start --------------------------------------------------------------------------------

    def take_over(self) -> None:
        """Take in this boot's containers that an earlier agent registered.

        The sensor has watched them all the while. Where it has not, since it was loaded anew, they
        are watched again, and that something ran in between is recorded as lost.
        """
        retained = self._retained()
        ended: dict[int, str] = {}
        for number in self._store.registrations():
            try:
                note = self._store.read_note(number)
                if note.boot_id != self._boot_id or (
                    note.ended and (note.ended_ns or 0) < retained
                ):
                    continue
                records = list(self._store.records(number))
                partition = Partition.restore(note.id, records)
                secret = self._store.read_secret(number)
            except (StoreError, RecordError) as error:
                _log.error("registration %d is damaged and left out: %s", number, error)
                continue
            if note.kind == "dependencies" and not records:
                self._store.discard(number)
                continue
            if note.state != "stopped" and records and records[-1].content.get("type") == "exit":
                # Killed between that record and the note.
                when = {"ended": records[-1].meta.get("time"), "ended_ns": clock.since_boot()}
                note = note.model_copy(update={"state": "stopped", **when})
                self._ended.add(number)
            self._core.take_slot(note.slot)
            self._core.restore(container := Container(note, secret, partition, dropped_in(records)))
            if note.kind == "dependencies":
                self.dependencies.restore(container, records)
            elif note.state != "stopped":
                ended[number] = self._readopt(container)
        self._take_events()
        for number, reason in ended.items():
            gone = self._core.get(number)
            if reason and gone is not None:
                self._end(gone, reason)
        self._forget_strangers()
        self._held.begin()
        self._ledger.write()
        self._ledger.bind()

    def _forget_strangers(self) -> None:
        """Watch nothing that is not registered: its registration was never completed."""
        if self._sensor is None:
            return
        for number in self._sensor.registrations() - self._processes.keys():
            _log.info("registration %d came to nothing and is watched no more", number)
            self._unwatch(number)
        for number in self._sensor.unwatched():
            self._sensor.forget(number)

    def forget_ended(self) -> None:
        """Let go of containers that ended so long ago that nobody may ask for them any more."""
        self._core.forget_ended(self._retained())

    def attested(self, registration: int, records: int) -> None:
        """Note that evidence of so many records was given, of a container that has ended."""
        container = self._core.get(registration)
        if container is not None and container.note.state == "stopped":
            container.note = container.note.model_copy(update={"attested": records})
            self._store.write_note(container.note)

    def _retained(self) -> int:
        """Return the time since boot, in ns, whose ended containers have been kept long enough."""
        return clock.since_boot() - self._settings.attestation.retention_seconds * 10**9

    def _readopt(self, container: Container) -> str:
        """Hold the container's process again; returns why it has ended, where it has."""
        note = container.note
        number = note.registration
        if container.partition.count < _FIRST_RECORDS:
            # Its hook had no answer, so nothing of it has run. Should it ask again: a new one.
            return "its registration was not completed"
        unwatched = self._sensor.unwatched().get(number) if self._sensor is not None else None
        if unwatched is not None:
            # Its end was being recorded.
            self._released[number] = unwatched.total
            return "ended"
        process = None
        try:
            process = examine(note.pid, note.id, note.cgroup, needs_cgroup=bool(note.cgroup))
            if (process.start_ticks, process.mntns) != (note.start_ticks, note.mntns):
                process.close()
                raise ProcessError(f"process {note.pid} is another one now")
        except ProcessError as error:
            _log.info("container %s has ended: %s", note.id, error)
            process = None
        if self._sensor is not None and number not in self._sensor.registrations():
            reason = "the sensor was not loaded"
            self._ledger.add(number, [self._core.lost(number, None, reason, clock.now())])
            if process is not None:
                handle = self._allowlist_again(number)
                self._sensor.watch(note.mntns, number, process.cgroup_id, handle)
        if process is None:
            return "ended while the agent was not running"
        self._hold(note, process)
        _log.info("container %s is taken over", note.id)
        return ""

    def _allowlist_again(self, number: int) -> int | None:
        """Return the list that the container began with, None for one that may run anything."""
        first = {
            record.content.get("type"): record.content
            for record in itertools.islice(self._store.records(number), _FIRST_RECORDS)
        }
        image = first.get("register", {}).get("enforced")
        if image is None or self._enforcement is None:
            return None
        return self._enforcement.again(image, first.get("rootfs", {"layers": []})).handle

    # -- dependencies -------------------------------------------------------------------------

    def dependents(self) -> dict[int, int]:
        """Return, for each partition of dependencies in use, a living first process that has it."""
        found = {}
        for number, process in self._processes.items():
            container = self._core.get(number)
            if container is not None and container.note.dependencies is not None:
                found[container.note.dependencies] = process.pid
        return found

    # -- questions ----------------------------------------------------------------------------

    def ps(self, uid: int = 0) -> list[dict[str, Any]]:
        """Return what ``cima ps`` shows of this boot's containers: to root all, else the own."""
        rows = [
            container_row(container.note, container.partition)
            for container in self._core.containers
            if uid in {0, container.note.uid}
        ]
        return rows if uid else with_unmeasured(rows, self._store)

    def status(self) -> dict[str, Any]:
        """Return what ``cima status`` shows."""
        pcr = self._settings.tpm.pcr
        ima = self._settings.ima
        value = None
        pcrs: dict[int, bytes] = {}
        tpm = "missing"
        if self._tpm is not None:
            tpm = self._tpm.description
            try:
                self._ledger.settle()
                # The PCRs first, the log after: the log may lead, never lag.
                pcrs = self._tpm.read_pcrs([pcr, ima.host_pcr, ima.container_pcr])
                value = pcrs[pcr].hex()
            except TpmError as error:
                tpm = f"{tpm}: {error}"
        journal = self._ledger.journal_state
        trouble = self._ledger.trouble
        return {
            "pcr": pcr,
            "pcr_value": value,
            "expected_value": journal.value.hex() if journal.value else None,
            "seq": journal.seq,
            "root": journal.last.root.hex() if journal.last else None,
            "history": journal.last.history.hex() if journal.last else None,
            "foreign_extends": journal.foreign,
            "tpm": tpm,
            "sensor": self._sensor_status(),
            "kernel_log": self._log_status(pcrs),
            "lost": sum(one.dropped for one in self._core.containers),
            "missing": list(self._core.missing),
            "boot_id": self._boot_id,
            "containers": sum(one.note.kind == "container" for one in self._core.containers),
            "unwritten_records": self._ledger.backlog,
            "trouble": asdict(trouble) if trouble else None,
            "gaps": journal.gaps,
            "storage": {
                "mib": self.retention.size // limits.MIB,
                "quota_mib": self._settings.storage.quota_mib,
                "removed_unattested": self.retention.removed_unattested,
            },
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
            "orphans": self.orphans,
        }

    def _log_status(self, pcrs: dict[int, bytes]) -> dict[str, Any] | str:
        if self._kernel_log is None:
            return "missing"
        self._read_kernel_log()
        shown: dict[str, Any] = {"lines": self._kernel_log.count, "error": self._log_error}
        for pcr in (self._settings.ima.host_pcr, self._settings.ima.container_pcr):
            matches = None
            if pcr in pcrs:
                matches = self._kernel_log.explains(pcr, pcrs[pcr])
            shown[f"pcr{pcr}"] = {
                "lines": self._kernel_log.replay(pcr).lines,
                "matches_tpm": matches,
            }
        return shown

    def log(self, body: bytes, uid: int = 0) -> bytes:
        """Return the stored records, a line each, of the container that ``{"id": ...}`` names.

        Where this boot has none of that name, an earlier one's. A user other than root gets those
        of his own only, and need not qualify the id.
        """
        wanted = str(load_object(body, what="the request", limit=limits.REQUEST).get("id"))
        notes = [container.note for container in self._core.containers]
        if uid:
            notes = [note for note in notes if note.uid == uid]
            wanted = qualified(wanted.removeprefix(qualified("", uid)), uid)
        try:
            note = find_note(notes, wanted)
        except NoSuchContainerError:
            stored = stored_notes(self._store, None)
            note = find_note((note for note in stored if uid in (0, note.uid)), wanted)
        return b"".join(line + b"\n" for line in self._store.lines(note.registration))

"""Whatever happens in whatever order, TRUSTED is shown only where a fresh report proves it.

A model beside the service knows what each host has really done, and what of it a report that was
accepted has shown; rules are what hosts, persons, time and the work in the background do.
"""

import sqlite3
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from hypothesis import HealthCheck, event, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
)
from sqlalchemy import insert, select

from cima_runc.cpcr.status import Foreign
from cima_runc.evidence.report_answer import Accepted
from cima_runc.fleet import changes, clock, enrolments, queries, setup
from cima_runc.fleet.reports import NotEnrolledError
from cima_runc.fleet.schema import Enrolment, Event, Host, new_uid, table_of
from cima_runc.fleet.service import Service
from cima_runc.fleet.settings import Settings
from tests.support.fleet_host import FleetHost
from tests.support.fleet_image import POLICY, image, reference_file, start
from tests.support.served_fleet import new_host

STRICT = f"allow_foreign_extends = false\n{POLICY}"
LENIENT = POLICY
INTERVAL, OVERDUE = 60.0, 2.0
SKEW = 5_000
_HOUR = "2026-01-31T13:00:00Z"


@dataclass
class Shown:
    """What reports have shown of a container."""

    host: int
    boot: str
    records: int = 0
    """Of its partition."""
    ended: bool = False
    foreign: bool = False
    """Whether its host's status told of a foreign extend in a report that told of it running."""
    in_table: bool = True


@dataclass
class Truth:
    """A container as it is."""

    host: int
    number: int
    name: str
    before: str | None
    """The run before."""
    bad_at: int | None = None
    """Records before the first that no reference has."""


@dataclass
class HostTruth:
    sim: FleetHost
    enrolled: bool = True
    quoted: int | None = None
    """When the nonce of the last report was made, since it was enrolled and the database put back;
    the service's clock."""
    boot: str | None = None
    foreign: dict[str, bool] = field(default_factory=dict)
    """By boot: whether a report has shown a foreign extend."""
    labels: dict[str, str] = field(default_factory=dict)


class Trust(RuleBasedStateMachine):
    """The service with two hosts; its clock is ours."""

    containers = Bundle("containers")

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        self.root = Path(self.stack.enter_context(tempfile.TemporaryDirectory()))
        patch = self.stack.enter_context(pytest.MonkeyPatch.context())
        self.now = 1_800_000_000_000
        patch.setattr(clock, "now", lambda: self.now)
        self.file = self.root / "fleet.db"
        self.settings = Settings(
            state_dir=self.root, interval=INTERVAL, overdue=OVERDUE, keep_days=1
        )
        setup.prepare(self.settings)
        self.service = self._serve()
        self.begun = self.now
        self.hosts: list[HostTruth] = []
        self.truths: dict[str, Truth] = {}
        self.shown: dict[str, Shown] = {}
        self.policies: dict[str, str] = {"default@1": ""}
        self.events = 0

    def _serve(self) -> Service:
        service = Service(self.settings)

        @sqlalchemy.event.listens_for(service.database.engine, "connect")
        def _connected(connection: Any, _: Any) -> None:
            # What is durable is tried elsewhere.
            connection.execute("PRAGMA synchronous=OFF")

        service.database.engine.dispose()
        return service

    def teardown(self) -> None:
        self.service.close()
        self.stack.close()

    def write(self, do: Any, *arguments: Any, **named: Any) -> Any:
        with self.service.database.write() as connection:
            return do(connection, *arguments, **named)

    def change(self, do: Any, *arguments: Any, **named: Any) -> Any:
        return self.write(do, "tester", *arguments, **named)

    @initialize(target=containers)
    def begin(self) -> Any:
        self.reference = image(self.root)
        self.change(changes.add_reference, "app", reference_file(self.reference))
        self.set_policy(strict=False)
        self.change(changes.add_policy, "other", STRICT)
        self.policies["other@1"] = STRICT
        self.change(changes.assign, "other", {"label": {"zone": "b"}})
        for _ in range(2):
            self.hosts.append(HostTruth(FleetHost()))
            with self.service.database.write() as connection:
                connection.execute(insert(table_of(Host)).values(**new_host(self.hosts[-1].sim)))
        keys = [self.start_container(host) for host in (0, 0, 1)]
        self.report_all()
        return multiple(*keys)

    # -- hosts ------------------------------------------------------------------------------------

    @rule(target=containers, host=st.integers(0, 1))
    def start_container(self, host: int) -> str:
        return self._start(host, f"c{len(self.truths)}", None)

    def _start(self, host: int, name: str, before: str | None) -> str:
        number = start(self.hosts[host].sim, name, self.reference)
        key = f"{name} {number}"
        self.truths[key] = Truth(host, number, name, before)
        return key

    @rule(target=containers, key=containers)
    def restart_container(self, key: str) -> str:
        if any(one.before == key for one in self.truths.values()):
            return key
        return self._start(self.truths[key].host, self.truths[key].name, key)

    @rule(key=containers)
    def run_stranger(self, key: str) -> None:
        truth = self.truths[key]
        one = self.hosts[truth.host].sim.containers[truth.number]
        if one.state == "stopped" or one.slot is None:
            return
        if truth.bad_at is None:
            truth.bad_at = one.partition.count
        self.hosts[truth.host].sim.run(truth.number, b"/tmp/miner")

    @rule(key=containers)
    def end_container(self, key: str) -> None:
        truth = self.truths[key]
        sim = self.hosts[truth.host].sim
        if sim.containers[truth.number].state != "stopped":
            sim.end(truth.number)

    @rule(key=containers)
    def give_up_register(self, key: str) -> None:
        truth = self.truths[key]
        self.hosts[truth.host].sim.forget(truth.number)

    @rule(host=st.integers(0, 1))
    def foreign_extend(self, host: int) -> None:
        sim = self.hosts[host].sim
        sim.status = sim.status.with_foreign(Foreign(kind="changed", time=_HOUR))

    @rule(host=st.integers(0, 1))
    def reboot(self, host: int) -> None:
        self.hosts[host].sim.reboot()

    @rule(host=st.integers(0, 1), pieces=st.integers(1, 8))
    def report(self, host: int, pieces: int) -> None:
        one = self.hosts[host]
        sim = one.sim
        sim.bind()
        for _ in range(pieces):
            nonce = self.service.nonces.issue(sim.tpm.ak_name, self.now / 1000)
            made = self.now
            try:
                outcome = self.service.reports.take(sim.tpm.ak_name.hex(), sim.report(nonce))
            except NotEnrolledError:
                assert not one.enrolled
                return
            sim.heed(outcome.answer)
            if isinstance(outcome.answer, Accepted):
                assert one.enrolled
                self.accepted(host, made)

    @rule()
    def report_all(self) -> None:
        for host in range(2):
            self.report(host, 8)

    @rule(seconds=st.sampled_from([1, 30]))
    def a_round(self, seconds: int) -> None:
        """As it goes most of the time."""
        self.time_goes(seconds)
        self.work(20)
        self.report_all()

    def accepted(self, host: int, made: int) -> None:
        one = self.hosts[host]
        sim = one.sim
        one.quoted, one.boot = made, sim.boot_id
        if sim.status.foreign.count:
            one.foreign[sim.boot_id] = True
        for key, truth in self.truths.items():
            if truth.host != host:
                continue
            held = sim.containers[truth.number]
            done = sim.confirmed.records.get(str(truth.number), 0)
            if key not in self.shown and not done:
                continue
            shown = self.shown.setdefault(key, Shown(host, held.boot_id))
            shown.records = max(shown.records, done)
            shown.in_table = held.slot is not None and held.boot_id == sim.boot_id
            if not shown.ended and held.boot_id == sim.boot_id and sim.status.foreign.count:
                shown.foreign = True
            last = held.records[done - 1] if done else None
            shown.ended = shown.ended or (
                last is not None and last["content"].get("type") == "exit"
            )

    # -- persons ----------------------------------------------------------------------------------

    @rule(strict=st.booleans())
    def set_policy(self, *, strict: bool) -> None:
        text = STRICT if strict else LENIENT
        self.policies[self.change(changes.add_policy, "default", text)] = text

    @rule(retires=st.integers(0, 3).map(lambda number: not number))
    def change_reference(self, *, retires: bool) -> None:
        try:
            if retires:
                self.change(changes.retire_reference, "app")
            else:
                self.change(changes.add_reference, "app", reference_file(self.reference))
        except changes.NotFoundError:
            return

    @rule(host=st.integers(0, 1), zone=st.sampled_from(["a", "b"]))
    def label(self, host: int, zone: str) -> None:
        ak = self.hosts[host].sim.tpm.ak_name.hex()
        self.change(changes.label_host, ak, {"zone": zone})

    @rule(host=st.integers(0, 1))
    def remove_host(self, host: int) -> None:
        one = self.hosts[host]
        if one.enrolled:
            self.change(changes.remove_host, one.sim.tpm.ak_name.hex())
            one.enrolled, one.quoted = False, None

    @rule(host=st.integers(0, 1), zone=st.sampled_from(["a", "b"]))
    def enrol_again(self, host: int, zone: str) -> None:
        one = self.hosts[host]
        uid, name = new_uid() + new_uid(), one.sim.tpm.ak_name.hex()
        with self.service.database.write() as connection:
            connection.execute(
                insert(table_of(Enrolment)).values(
                    uid=uid,
                    ak_name=name,
                    ak_public=one.sim.tpm.ak_public,
                    tpm=b"{}",
                    ek_digest=name[4:],
                    hardware="",
                    name="host",
                    secret=b"",
                    state="waiting",
                    reason="",
                    created=self.now,
                    expires=self.now + 60_000,
                )
            )
        self.write(
            enrolments.approve,
            uid[:24],
            actor="tester",
            labels={"zone": zone},
            without_ek_certificate=True,
            replace=False,
        )
        one.enrolled, one.quoted = True, None

    @rule()
    def copy_database(self) -> None:
        with sqlite3.connect(self.file) as source, sqlite3.connect(self.root / "copy.db") as copy:
            source.backup(copy)

    @rule()
    def put_database_back(self) -> None:
        """An older one, or this one: nothing that was proved before counts."""
        copy = self.root / "copy.db"
        self.service.database.close()
        if copy.exists():
            with sqlite3.connect(copy) as source, sqlite3.connect(self.file) as target:
                source.backup(target)
        self.service = self._serve()
        self.change(changes.restored)
        hosts = table_of(Host).c
        with self.service.database.read() as connection:
            states = dict(connection.execute(select(hosts.ak_name, hosts.state)).all())
            self.events = len(connection.execute(select(table_of(Event).c.id)).all())
        for one in self.hosts:
            one.quoted = None
            one.enrolled = states[one.sim.tpm.ak_name.hex()] == "enrolled"
        rows = self.see()
        for key in [*self.shown]:
            if self.truths[key].number not in rows:
                del self.shown[key]
                continue
            # What the copy knows is what is shown from now on.
            self.shown[key].ended = rows[self.truths[key].number]["ended"] is not None
            self.shown[key].records = rows[self.truths[key].number]["proved"]

    # -- time, and the background -----------------------------------------------------------------

    @rule(seconds=st.sampled_from([1, 30, 119, 121, 600, 90_000, -1, -30, -119, -600, -90_000]))
    def time_goes(self, seconds: int) -> None:
        self.now += seconds * 1000

    @rule(times=st.integers(1, 20))
    def work(self, times: int) -> None:
        worker = self.service.worker
        for _ in range(times):
            worker.jobs()
        worker.deadlines()

    @rule()
    def retention(self) -> None:
        self.service.worker.retention()

    # -- what must be so --------------------------------------------------------------------------

    def see(self) -> dict[int, Any]:
        with self.service.database.read() as connection:
            rows = queries.containers(connection, everything=True, limit=1000)
        return {int(row["registration"]): row for row in rows}

    def is_fresh(self, host: int) -> bool:
        one = self.hosts[host]
        if not one.enrolled or one.quoted is None:
            return False
        return one.quoted - SKEW <= self.now <= one.quoted + INTERVAL * OVERDUE * 1000

    def why_not(self, key: str, row: Any) -> str | None:
        """Why a container must not be shown as TRUSTED; None: it may."""
        truth, shown = self.truths[key], self.shown.get(key)
        if shown is None:
            return "nothing was shown of it"
        host = self.hosts[truth.host]
        if truth.bad_at is not None and truth.bad_at < shown.records:
            return "a stranger ran in it"
        if not shown.ended and (not self.is_fresh(truth.host) or host.boot != shown.boot):
            return "no fresh report"
        if not shown.ended and not shown.in_table:
            return "its register is gone"
        if row["proved"] > shown.records:
            return "more is proved than was shown"
        if row["reference"] is None or row["policy"] not in self.policies:
            return "by no policy and reference"
        if self.policies[row["policy"]] == STRICT and shown.foreign:
            return "its policy takes no foreign extends"
        if truth.before is not None:
            before = self.truths[truth.before]
            seen = self.shown.get(truth.before)
            if seen is None or not seen.ended:
                return "the run before has no end"
            if before.bad_at is not None:
                return "a stranger ran in the run before"
        return None

    @invariant()
    def trusted_is_proved(self) -> None:
        rows = self.see()
        for key, truth in self.truths.items():
            row = rows.get(truth.number)
            if row is not None and row["verdict"] == "TRUSTED":
                assert (why := self.why_not(key, row)) is None, (key, why, row)
        self.told()

    def told(self) -> None:
        """Nor do events say so of what it is not."""
        table = table_of(Event).c
        with self.service.database.read() as connection:
            new = connection.execute(
                select(table.kind, table.data).where(table.id > self.events).order_by(table.id)
            ).all()
            self.events += len(new)
            rows = self.see()
        for one in new:
            if one.data.get("verdict") == "TRUSTED":
                keys = [
                    key
                    for key, truth in self.truths.items()
                    if truth.name == one.data["container"] and truth.number in rows
                ]
                reasons = [self.why_not(key, rows[self.truths[key].number]) for key in keys]
                assert None in reasons, (one, reasons)

    @rule(host=st.integers(0, 1))
    def all_is_well(self, host: int) -> None:
        """And it is TRUSTED where everything speaks for it: the policies of now, once all work is
        done and the host has reported."""
        one = self.hosts[host]
        self.report(host, 8)
        while self.service.worker.jobs():
            pass
        rows = self.see()
        with self.service.database.read() as connection:
            shown = queries.hosts(connection, ak_name=one.sim.tpm.ak_name.hex())
            versions = queries.policies(connection)
            reference = any(not row["retired"] for row in queries.references(connection))
            waits = queries.backlog(connection)["jobs"]
        if waits:
            return  # the clock was set back: it is not due yet
        newest = max(row["version"] for row in versions if row["name"] == "default")
        policy = "other@1" if shown[0]["labels"].get("zone") == "b" else f"default@{newest}"
        for key, truth in self.truths.items():
            row, held = rows.get(truth.number), one.sim.containers.get(truth.number)
            if row is None or held is None:
                continue
            # What was forgotten after its time has the verdict that it had.
            is_kept = held.slot is not None or self.now - self.begun < 86_400_000
            if row["verdict"] == "TRUSTED" and is_kept:
                assert row["policy"] == policy, (key, row)
            if (
                one.enrolled
                and self.is_fresh(host)
                and held.slot is not None
                and held.boot_id == one.sim.boot_id == one.boot
                and held.partition.count == row["proved"]
                and truth.before is None
                and reference
                and row["reference"] is not None
                and self.why_not(key, row) is None
                # Appraised by other values, what ended is compared with what its boot has come to.
                and not (self.shown[key].ended and one.foreign.get(held.boot_id))
            ):
                event("TRUSTED where it must be")
                assert row["verdict"] == "TRUSTED", (key, row)


TestTrust = Trust.TestCase
TestTrust.settings = settings(
    max_examples=20,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)

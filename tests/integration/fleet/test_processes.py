"""Processes that are killed, a database that restarts, migrations: nothing is lost."""

import itertools
import math
import multiprocessing
import random
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import insert, select, text

from cima_runc.evidence.report_answer import Accepted
from cima_runc.fleet import changes, clock, migrate
from cima_runc.fleet.database import Database, DatabaseError
from cima_runc.fleet.schema import Container, Host, Record, new_uid, table_of
from cima_runc.verifier.reference.file import ImageReference
from tests.support.fleet_host import FleetHost
from tests.support.fleet_image import POLICY, image, reference_file, start
from tests.support.fleet_process import FleetProcess, fleet_process, write_settings
from tests.support.postgresql import PostgreSql
from tests.support.served_fleet import eventually, new_host

HOSTS, MANY = 200, 1_000
"""Hosts of the kill test; and with --everything."""


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    made = Database(database_url)
    migrate.migrate(made)
    yield made
    made.close()


def enrolled(database: Database, count: int) -> list[FleetHost]:
    hosts = [FleetHost() for _ in range(count)]
    with database.write() as connection:
        for host in hosts:
            connection.execute(insert(table_of(Host)).values(**new_host(host)))
    return hosts


class Fleet:
    """Hosts that report to whichever process lives, and what they were told is durable.

    Every second one comes to run what the image does not hold.
    """

    def __init__(
        self, hosts: list[FleetHost], urls: list[FleetProcess], reference: ImageReference
    ) -> None:
        self.hosts = hosts
        self.processes = urls
        self.confirmed: dict[int, int] = {}
        """Records by registration, as an acknowledged report has confirmed them."""
        self.bad: dict[int, int] = {}
        """Number of the record of the unknown program, by registration, once it has run."""
        self.tried: dict[str, list[tuple[float, float, bool]]] = {}
        """Of each host's reports: when its nonce was asked for, when that ended, and whether it was
        accepted."""
        self.outages: list[tuple[float, float]] = []
        """When, for some of that time, there was no service or no database."""
        self.refused: list[str] = []
        self.stop = threading.Event()
        self._reference = reference
        self._to_be_bad = {id(host) for host in hosts[1::2]}
        self._threads = [
            threading.Thread(target=self._run, args=(hosts[at::4],), daemon=True) for at in range(4)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        self.stop.set()
        for thread in self._threads:
            thread.join(300)
            assert not thread.is_alive()

    def _run(self, hosts: list[FleetHost]) -> None:
        numbers = [start(host, f"c-{id(host)}", self._reference) for host in hosts]
        for turn in itertools.count():
            for host, number in zip(hosts, numbers, strict=True):
                if self.stop.is_set():
                    return
                host.run(number, b"/srv/%d" % turn)
                is_due = id(host) in self._to_be_bad and number not in self.bad
                if is_due and (turn == 2 or random.random() < 0.3):
                    host.run(number, b"/tmp/unknown")
                    self.bad[number] = host.containers[number].partition.count
                host.bind()
                self._report(host)

    def _report(self, host: FleetHost) -> None:
        process, began = random.choice(self.processes), time.monotonic()
        tried = self.tried.setdefault(host.tpm.ak_name.hex(), [])
        try:
            answer = process.report(host)
        except (httpx.HTTPError, OSError, RuntimeError):
            tried.append((began, time.monotonic(), False))
            time.sleep(0.05)
            return
        tried.append((began, time.monotonic(), isinstance(answer, Accepted)))
        if isinstance(answer, Accepted):
            for number, count in answer.confirmed.records.items():
                self.confirmed[int(number)] = count
        elif answer.type == "refused":
            self.refused.append(f"{answer.error}: {answer.what}")

    @contextmanager
    def outage(self) -> Iterator[None]:
        """Heed that what is done in this leaves no service, or no database."""
        began = time.monotonic()
        yield
        self.outages.append((began, time.monotonic()))

    def longest_stale(self, good_for: float) -> float:
        """Return for how many seconds a host was STALE at the longest and tried to report, where a
        report is ``good_for`` seconds.

        Neither the time that passes between what it tries, nor that without any service, is the
        service's: on a busy machine both are long.
        """
        longest = 0.0
        for tried in self.tried.values():
            until, spent = math.inf, 0.0
            for began, ended, accepted in tried:
                late = max(began, until)
                if ended > late:
                    lost = sum(max(0.0, min(ended, b) - max(late, a)) for a, b in self.outages)
                    spent += ended - late - lost
                longest = max(longest, spent)
                if accepted:
                    until, spent = began + good_for, 0.0
        return longest

    def settled(self) -> None:
        """Have each host report until all is confirmed, and see that it is there."""
        for host in self.hosts:
            for _ in range(20):
                self._report(host)
                if not host.changed:
                    break

    def condemned(self) -> set[int]:
        """Return the registrations whose unknown program is confirmed."""
        return {
            number for number, at in list(self.bad.items()) if self.confirmed.get(number, 0) >= at
        }


class Watched:
    """Looks at all verdicts, again and again, for one that is wrong."""

    def __init__(self, database: Database, fleet: Fleet) -> None:
        self.wrong: list[str] = []
        self.looks = 0
        self._database, self._fleet = database, fleet
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Watched":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(60)

    def _run(self) -> None:
        while not self._stop.wait(0.5):
            condemned = self._fleet.condemned()
            try:
                found = verdicts(self._database)
            except DatabaseError:
                continue  # it is being restarted
            self.looks += 1
            self.wrong += [f"{number} is TRUSTED" for number in condemned & found["TRUSTED"]]
            bad = set(self._fleet.bad)
            self.wrong += [f"{number} is UNTRUSTED" for number in found["UNTRUSTED"] - bad]


def verdicts(database: Database) -> dict[str, set[int]]:
    """Return the registrations of each verdict."""
    column = table_of(Container).c
    found: dict[str, set[int]] = {"TRUSTED": set(), "UNTRUSTED": set(), "UNKNOWN": set()}
    with database.read() as connection:
        for row in connection.execute(select(column.registration, column.verdict)):
            found[row.verdict].add(row.registration)
    return found


def judged(database: Database, root: Path) -> ImageReference:
    """Give the service reference values, and a policy that lets more run than the image holds."""
    reference = image(root / "image")
    with database.write() as connection:
        allowing = POLICY + '[[files]]\npath = "/srv/*"\n'
        changes.add_policy(connection, "tester", "default", allowing)
        changes.add_reference(connection, "tester", "app", reference_file(reference))
        changes.assign(connection, "tester", "default", {})
    return reference


def lost(database: Database, confirmed: dict[int, int]) -> list[Any]:
    """Return registrations of which fewer records are there than were confirmed."""
    container, record = table_of(Container).c, table_of(Record).c
    with database.read() as connection:
        rows = connection.execute(
            select(container.registration, container.confirmed, container.id)
        ).all()
        counts = dict(
            connection.execute(
                text("SELECT container, count(*) FROM record GROUP BY container")
            ).all()
        )
    assert record is not None
    stored = {row.registration: (row.confirmed, counts.get(row.id, 0)) for row in rows}
    return [
        (number, count, stored.get(number))
        for number, count in confirmed.items()
        if number not in stored or min(stored[number]) < count
    ]


@pytest.fixture
def running() -> Iterator[list[FleetProcess]]:
    """Processes that end with the test, however that ends."""
    made: list[FleetProcess] = []
    yield made
    for one in made:
        one.kill()


def test_processes_are_killed_under_load(
    tmp_path: Path,
    database: Database,
    running: list[FleetProcess],
    request: pytest.FixtureRequest,
) -> None:
    # SQLite is for one process and a few hosts.
    most = MANY if request.config.getoption("--everything") else HOSTS
    hosts = enrolled(database, most if database.is_postgresql else HOSTS // 10)
    reference = judged(database, tmp_path)
    url = database.url.render_as_string(hide_password=False)
    interval, overdue = max(5.0, len(hosts) * 0.04), 2.0
    config = write_settings(tmp_path / "service", url, interval=interval, overdue=overdue)
    processes = [FleetProcess(config) for _ in range(2 if database.is_postgresql else 1)]
    running += processes
    fleet = Fleet(hosts, processes, reference)
    with Watched(database, fleet) as watched:
        fleet.start()
        for _ in range(2):
            time.sleep(2)
            victim = random.randrange(len(processes))
            with fleet.outage() if len(processes) == 1 else nullcontext():
                processes[victim].kill()
                processes[victim] = FleetProcess(config)
            running.append(processes[victim])
        if database.is_postgresql:
            time.sleep(1)
            server: PostgreSql = request.getfixturevalue("server")
            with fleet.outage():
                server.stop(kill=True)
                time.sleep(0.5)
                server.start()
        half = len(hosts) // 2
        eventually(
            lambda: len(fleet.confirmed) == len(hosts) and len(fleet.condemned()) == half, 300
        )
        fleet.end()
        assert lost(database, fleet.confirmed) == []
        fleet.settled()
    # Hosts that report less often than that, on a busy machine, are later by as much.
    assert fleet.longest_stale(overdue * interval) <= 2 * interval
    assert lost(database, fleet.confirmed) == []
    assert not fleet.refused, fleet.refused[:3]
    assert watched.looks > 3
    assert not watched.wrong, watched.wrong[:3]
    bad = set(fleet.bad)
    assert fleet.condemned() == bad
    assert verdicts(database) == {
        "TRUSTED": set(fleet.confirmed) - bad,
        "UNTRUSTED": bad,
        "UNKNOWN": set(),
    }
    # The one that is left tells of those that stop reporting; none of them twice.
    for process in processes[1:]:
        process.kill()
    eventually(lambda: stale(processes[0]) >= len(hosts) - 1, 300 + 2 * overdue * interval)
    told = processes[0].get("/v1/events", kind="host.stale", limit=1000)
    by_host = [one["host"] for one in told if one["time"] > recent(told)]
    assert len(by_host) == len(set(by_host))
    processes[0].stop()


def stale(process: FleetProcess) -> int:
    found: dict[str, int] = process.get("/v1/overview")["hosts"]
    return found["stale"]


def recent(told: list[dict[str, Any]]) -> str:
    from cima_runc.fleet.queries import when

    assert told
    found = when(clock.now() - 9_000)
    assert found is not None
    return found


def test_the_database_restarts_under_load(tmp_path: Path, server: PostgreSql) -> None:
    database = Database(server.create(f"restarted_{new_uid()}", template="template_fleet"))
    hosts = enrolled(database, 20)
    config = write_settings(
        tmp_path / "service", database.url.render_as_string(hide_password=False), interval=5.0
    )
    with fleet_process(config) as process:
        fleet = Fleet(hosts, [process], judged(database, tmp_path))
        fleet.start()
        for kill in (False, True):
            time.sleep(1.5)
            before = len(fleet.confirmed)
            server.stop(kill=kill)
            time.sleep(0.5)
            server.start()
            eventually(lambda: process.client.get("/v1/health").status_code == 200, 60)
            assert before >= 0
        eventually(lambda: len(fleet.confirmed) == len(hosts), 300)
        fleet.end()
        fleet.settled()
        assert not fleet.refused, fleet.refused[:3]
        assert lost(database, fleet.confirmed) == []
    database.close()


def _migrate_slowly(url: str, begun: Any) -> None:
    """Migrate, and stop where nothing is committed yet, in a process of its own."""
    from alembic.runtime.migration import MigrationContext

    real = MigrationContext.run_migrations

    def slow(self: MigrationContext, **named: Any) -> None:
        real(self, **named)
        begun.set()
        time.sleep(600)

    MigrationContext.run_migrations = slow  # type: ignore[method-assign]
    migrate.migrate(Database(url))


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database without tables."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'empty.db'}"
    found: PostgreSql = request.getfixturevalue("server")
    return found.create(f"empty_{new_uid()}")


def test_a_migration_that_is_interrupted_has_changed_nothing(empty_url: str) -> None:
    context = multiprocessing.get_context("spawn")
    begun = context.Event()
    process = context.Process(target=_migrate_slowly, args=(empty_url, begun))
    process.start()
    assert begun.wait(300)
    database = Database(empty_url)
    # It refuses to run twice at once.
    with pytest.raises(migrate.MigrationRunningError):
        migrate.migrate(database)
    process.kill()
    process.join()
    eventually(lambda: migrate.present(database) is None)
    with pytest.raises(migrate.SchemaError):
        migrate.check(database)
    assert eventually(lambda: _migrated(database))
    migrate.check(database)
    assert migrate.migrate(database) is False
    database.close()


def _migrated(database: Database) -> bool:
    try:
        return migrate.migrate(database)
    except migrate.MigrationRunningError:
        return False


def test_tables_of_a_later_version_are_left_alone(empty_url: str) -> None:
    database = Database(empty_url)
    migrate.migrate(database)
    with database.write() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(migrate.MigrationError, match="9999"):
        migrate.migrate(database)
    with pytest.raises(migrate.SchemaError):
        migrate.check(database)
    database.close()


def test_the_tables_are_those_of_the_models(empty_url: str) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    from cima_runc.fleet.schema import Base

    database = Database(empty_url)
    migrate.migrate(database)
    with database.read() as connection:
        found = compare_metadata(MigrationContext.configure(connection), Base.metadata)
    assert found == []
    database.close()


def test_a_process_ends_at_once_though_hosts_hold_long_polls(
    tmp_path: Path, database: Database
) -> None:
    (host,) = enrolled(database, 1)
    url = database.url.render_as_string(hide_password=False)
    process = FleetProcess(write_settings(tmp_path / "service", url))
    process.report(host)
    answers: list[int] = []
    sent = threading.Event()

    def trace(what: str, _: object) -> None:
        if what.endswith("send_request_body.complete"):
            sent.set()

    def poll() -> None:
        path = f"/v1/hosts/{host.tpm.ak_name.hex()}/nonce?wait=25"
        headers = {"Authorization": f"Bearer {host.session}"}
        context = ssl.create_default_context(cafile=process.ca)
        with httpx.Client(verify=context, timeout=60) as client:
            named = {"headers": headers, "extensions": {"trace": trace}}
            answers.append(client.request("GET", process.url + path, **named).status_code)

    polling = threading.Thread(target=poll)
    polling.start()
    assert sent.wait(60)
    # The service has read it when it has answered what came later.
    assert process.client.get("/v1/health").status_code == 200
    began = time.monotonic()
    assert not answers
    process.stop()
    polling.join(60)
    assert answers == [200]
    assert time.monotonic() - began < 20, "the poll had ended by itself"


def test_tables_of_earlier_forms_are_brought_on(empty_url: str) -> None:
    """From each form there was, with what is in them; and then they are as the models say."""
    from alembic import command
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    from cima_runc.fleet.schema import Base

    database = Database(empty_url)
    config = migrate._config()
    with database.write() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
    host = FleetHost()
    with database.write() as connection:
        connection.execute(insert(table_of(Host)).values(**new_host(host)))
    assert migrate.migrate(database)
    with database.write() as connection:
        names = connection.execute(select(table_of(Host).c.ak_name)).scalars().all()
        assert names == [host.tpm.ak_name.hex()]
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
        if database.is_postgresql:
            open_tables = connection.execute(
                text(
                    "SELECT relname FROM pg_class WHERE relkind = 'r' AND relname = ANY(:names)"
                    " AND NOT (relrowsecurity AND relforcerowsecurity)"
                ),
                {"names": sorted(Base.metadata.tables)},
            ).scalars()
            assert list(open_tables) == []
    database.close()

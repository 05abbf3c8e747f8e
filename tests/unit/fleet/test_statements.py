"""What is asked of the database where a host has very many containers."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from cima_runc.fleet import hosts
from cima_runc.fleet.database import Database, together
from cima_runc.fleet.findings import Findings
from cima_runc.fleet.schema import Base, Container, table_of
from cima_runc.verifier.report.check import Wanted
from cima_runc.verifier.result import Finding

BOOT = "00000000-0000-4000-8000-000000000000"
MOST = 32_766
"""Values in one statement: SQLite's own default (SQLITE_MAX_VARIABLE_NUMBER). PostgreSQL's protocol
has 65,535; Debian builds SQLite with 250,000."""


@pytest.fixture(name="database")
def _database(tmp_path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path}/fleet.db")
    Base.metadata.create_all(database.engine)
    yield database
    database.close()


def test_no_statement_has_more_values_than_databases_take(database: Database) -> None:
    """Kind: as many as a report may list is more than a statement takes."""
    counts: list[int] = []

    @event.listens_for(database.engine, "before_cursor_execute")
    def _count(_1: Any, _2: Any, _3: Any, given: Any, _4: Any, _5: Any) -> None:
        counts.append(len(given))

    many = frozenset(range(65_536))
    wants = Wanted(registrations=many, slots=many, followed=many, all_of_boot=True)
    with database.read() as connection:
        assert hosts._registers(connection, 1, wants, BOOT) == ({}, {})
    assert max(counts) <= MOST
    assert sum(counts) > 3 * 65_536


def test_conditions_that_are_asked_apart_are_all_asked() -> None:
    column = table_of(Container).c.id
    asked = [str(one) for one in together([column == number for number in range(100)])]
    assert sum(one.count(":id_") for one in asked) == 100
    assert len(asked) > 1
    assert not list(together([]))


def test_why_many_containers_are_untrusted(database: Database) -> None:
    """Kind: of each container all that was found of the others is looked through."""
    count = 2_000
    found = [Finding(severity="warn", rule="a", what="a")] * 20
    fails = [Finding(severity="fail", rule="file.added", what="it was added")]
    with database.read() as connection:
        kept = Findings(connection, [])
        for number in range(count):
            kept.replace(number, "observe", "own", fails, now=1)
            kept.replace(number, "enforce", "runs", found, now=1)
            if number % 2:
                kept.replace(number, "enforce", "host", fails, now=1)
                kept.replace(number, "enforce", "own", fails, now=1)
        began = time.process_time()
        said = [kept.first_failure(number) for number in range(count)]
        assert time.process_time() - began < 5
    hidden = "what the host's log shows is not as it should be: its operator sees what"
    assert said == ["", hidden] * (count // 2)

"""Each test here runs on SQLite and on PostgreSQL."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from cima_runc.fleet import migrate
from cima_runc.fleet.database import Database
from tests.support.postgresql import PostgreSql, postgresql
from tests.support.served_fleet import ServedFleet, served_fleet

_NUMBERS = itertools.count()
_TEMPLATE = "template_fleet"
_FREE: list[tuple[str, str]] = []
"""Databases that a test has left empty: name and URL."""


@pytest.fixture(scope="session")
def server() -> Iterator[PostgreSql]:
    with postgresql() as found:
        url = found.create(_TEMPLATE)
        database = Database(url)
        migrate.migrate(database)
        database.close()
        yield found


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database with tables and nothing in them."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'fleet.db'}"
        return
    found: PostgreSql = request.getfixturevalue("server")
    if _FREE:
        name, url = _FREE.pop()
    else:
        name = f"fleet_{next(_NUMBERS)}"
        url = found.create(name, template=_TEMPLATE)
    yield url
    if found.empty(name):
        _FREE.append((name, url))


@pytest.fixture
def start_service(tmp_path: Path, database_url: str) -> Iterator[Callable[..., ServedFleet]]:
    """Start a service with settings."""
    with ExitStack() as stack:

        def begin(**settings: Any) -> ServedFleet:
            (tmp_path / "state").mkdir(exist_ok=True)
            made = served_fleet(tmp_path / "state", database_url, **settings)
            return stack.enter_context(made)

        yield begin


@pytest.fixture
def fleet(start_service: Callable[..., ServedFleet]) -> ServedFleet:
    return start_service()

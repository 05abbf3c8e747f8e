"""The database: SQLite in one file, or PostgreSQL, and who sees what in it.

In PostgreSQL tenants are kept apart by row-level security, whatever a query asks for: a transaction
has a scope, the service's or one tenant's, and a connection without one sees nothing. The
database's user must be one for whom that goes: no superuser, no BYPASSRLS. In SQLite, which has no
such thing, the conditions of :mod:`cima_runc.fleet.queries` stand alone. Source: fleet, section
5.
"""

import select
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import sqlalchemy
from sqlalchemy import Connection, Engine, Table, bindparam, event, or_, text, update
from sqlalchemy.exc import DataError, DBAPIError, OperationalError
from sqlalchemy.sql.elements import ColumnElement

from cima_runc.base.errors import CimaError

SERVICE = "service"
"""The scope that sees all."""
_BUSY_SECONDS = 30
_CONNECTIONS = 16
"""As many as threads use: of requests, and in the background."""
_Value = TypeVar("_Value")
_BATCH = 500
"""Values in one statement: SQLite limits how many."""
_CONDITIONS = 32
"""Conditions of so many values each in one statement."""


class NotStorableError(CimaError):
    """What was given is no value that the database can hold."""


class DatabaseError(CimaError):
    """The database cannot be used."""


class Database:
    """The connections to the database; for any number of threads."""

    def __init__(self, url: str) -> None:
        """Prepare connections; nothing is connected yet.

        Raises:
            DatabaseError: the URL is not one.
        """
        try:
            self.url = sqlalchemy.make_url(url)
        except sqlalchemy.exc.ArgumentError as error:
            raise DatabaseError(
                "the database's URL cannot be read", hint="postgresql://user@host/name"
            ) from error
        kind = self.url.get_backend_name()
        if kind not in {"sqlite", "postgresql"}:
            raise DatabaseError(
                f"the database is {kind}", hint="sqlite and postgresql are what it can be"
            )
        self.is_postgresql = kind == "postgresql"
        self._writing = threading.Lock()
        self.engine = self._postgresql() if self.is_postgresql else self._sqlite()

    def _postgresql(self) -> Engine:
        engine = sqlalchemy.create_engine(
            self.url,
            pool_size=_CONNECTIONS,
            max_overflow=0,
            connect_args={
                "connect_timeout": 10,
                "options": f"-c cima.scope={SERVICE} -c statement_timeout=60000"
                " -c lock_timeout=20000 -c idle_in_transaction_session_timeout=60000",
            },
        )

        @event.listens_for(engine, "checkout")
        def _checked_out(connection: Any, _record: Any, _proxy: Any) -> None:
            # An idle connection has nothing to say, unless that it has ended: this costs no answer
            # of the server's, as a ping would.
            poll = select.poll()
            poll.register(connection.fileno(), select.POLLIN)
            if poll.poll(0):
                raise sqlalchemy.exc.DisconnectionError

        return engine

    def _sqlite(self) -> Engine:
        engine = sqlalchemy.create_engine(
            self.url, connect_args={"timeout": _BUSY_SECONDS, "check_same_thread": False}
        )

        @event.listens_for(engine, "connect")
        def _connected(connection: Any, _record: Any) -> None:
            # We begin and end transactions ourselves.
            connection.isolation_level = None
            for pragma in (
                "journal_mode=WAL",
                "synchronous=FULL",
                "foreign_keys=ON",
                "secure_delete=ON",
            ):
                connection.execute(f"PRAGMA {pragma}")

        @event.listens_for(engine, "begin")
        def _begun(connection: Connection) -> None:
            connection.exec_driver_sql(
                "BEGIN" if connection.get_execution_options().get("reads") else "BEGIN IMMEDIATE"
            )

        return engine

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Open a transaction that may change everything; it is durable when this ends.

        Raises:
            DatabaseError: the database is away, or busy for too long; nothing was changed.
        """
        if self.is_postgresql:
            with self._open(SERVICE) as connection:
                yield connection
            return
        # SQLite has one writer: threads wait for each other here, in order and without polling.
        with self._writing, self._open(SERVICE) as connection:
            yield connection

    @contextmanager
    def read(self, tenant: int | None = None) -> Iterator[Connection]:
        """Open a transaction that reads, as the service or as one tenant.

        Raises:
            DatabaseError: the database is away.
        """
        scope = SERVICE if tenant is None else f"tenant:{tenant}"
        with self._open(scope, reads=True) as connection:
            yield connection

    @contextmanager
    def _open(self, scope: str, *, reads: bool = False) -> Iterator[Connection]:
        try:
            with self.engine.connect() as connected:
                connection = connected.execution_options(reads=True) if reads else connected
                with connection.begin():
                    if self.is_postgresql and scope != SERVICE:
                        connection.execute(
                            text("SELECT set_config('cima.scope', :scope, true)"), {"scope": scope}
                        )
                    yield connection
        except DataError as error:
            # PostgreSQL keeps no NUL in texts, for example; SQLite takes it.
            raise NotStorableError(f"no such thing can be: {_reason(error)}") from error
        except (OperationalError, sqlalchemy.exc.TimeoutError) as error:
            raise DatabaseError(
                f"the database does not answer: {_reason(error)}", hint="cima-verifier check"
            ) from error

    def close(self) -> None:
        """Let go of all connections."""
        self.engine.dispose()


def batched(values: Sequence[_Value], size: int = _BATCH) -> Iterator[Sequence[_Value]]:
    """Yield values in parts that one statement takes."""
    for at in range(0, len(values), size):
        yield values[at : at + size]


def together(
    conditions: Sequence[ColumnElement[bool]],
) -> Iterator[ColumnElement[bool]]:
    """Yield conditions of such parts, as many at a time as one statement takes: PostgreSQL's
    protocol counts to 65,535 values, SQLite to 32,766, and it limits how deep an expression is."""
    for some in batched(conditions, _CONDITIONS):
        yield or_(*some)


def update_all(
    connection: Connection, table: Table, changed: Iterable[tuple[int, Mapping[str, Any]]]
) -> None:
    """Update rows by their numbers, each by values of its own; those of the same columns at a
    time."""
    together: dict[frozenset[str], list[dict[str, Any]]] = {}
    for number, values in changed:
        if values:
            same = together.setdefault(frozenset(values), [])
            same.append({"number_of_row": number, **values})
    for rows in together.values():
        connection.execute(update(table).where(table.c.id == bindparam("number_of_row")), rows)


def _reason(error: Exception) -> str:
    """Return the first line of what the database says; never the statement or its values."""
    said = str(error.orig) if isinstance(error, DBAPIError) else type(error).__name__
    return said.splitlines()[0][:200] if said else type(error).__name__

"""Bringing the tables to the form that this version of the program wants, once at a time.

All steps run in one transaction: a migration that is interrupted has changed nothing.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from cima_runc.base.errors import CimaError
from cima_runc.fleet.database import Database

_LOCK = 0x63696D61
"""Number of PostgreSQL's advisory lock: "cima"."""


class MigrationError(CimaError):
    """The tables cannot be brought to the form that this version wants."""


class MigrationRunningError(MigrationError):
    """Another process is at it."""


class SchemaError(CimaError):
    """The tables are not of the form that this version wants."""


def wanted() -> str:
    """Return the name of the form that this version wants."""
    head = ScriptDirectory.from_config(_config()).get_current_head()
    assert head is not None
    return head


def present(database: Database) -> str | None:
    """Return the name of the form that the tables have; None for an empty database.

    Raises:
        DatabaseError: the database is away.
    """
    with database.read() as connection:
        return _present(connection)


def migrate(database: Database) -> bool:
    """Bring the tables to the wanted form; return whether anything was to be done.

    Raises:
        MigrationRunningError: another process is migrating.
        MigrationError: the tables are of a later version's form.
        DatabaseError: the database is away.
    """
    with _alone(database), database.write() as connection:
        if database.is_postgresql:
            got = connection.execute(text(f"SELECT pg_try_advisory_xact_lock({_LOCK})")).scalar()
            if not got:
                raise _running()
        before = _present(connection)
        if before == wanted():
            return False
        config = _config()
        if before is not None and before not in _known(config):
            raise MigrationError(
                f"the tables are of the form {before}, which this version does not know",
                hint="run the version of cima-verifier that made them, or a later one",
            )
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        return True


def check(database: Database) -> None:
    """See that the tables are of the wanted form.

    Raises:
        SchemaError: they are not.
    """
    found = present(database)
    if found != wanted():
        raise SchemaError(
            f"the tables are of the form {found or 'none'}, and {wanted()} is wanted",
            hint="run: cima-verifier migrate",
        )


def _present(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return config


def _known(config: Config) -> set[str]:
    return {one.revision for one in ScriptDirectory.from_config(config).walk_revisions()}


def _running() -> MigrationRunningError:
    return MigrationRunningError(
        "another process is migrating this database", hint="wait until it has ended"
    )


@contextmanager
def _alone(database: Database) -> Iterator[None]:
    """Hold a lock beside SQLite's file, so that a second migration is refused and does not wait."""
    name = database.url.database
    if database.is_postgresql or not name or name == ":memory:":
        yield
        return
    handle = os.open(f"{name}.migrating", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _running() from None
        yield
    finally:
        os.close(handle)

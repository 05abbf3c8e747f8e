"""``cima-verifier check``: whether the service can serve; each line says what to do."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from sqlalchemy import text

from cima_runc.base.errors import CimaError
from cima_runc.fleet import audit, migrate, setup
from cima_runc.fleet.database import Database
from cima_runc.fleet.oidc import Provider
from cima_runc.fleet.settings import Oidc, Settings


@dataclass(frozen=True)
class Line:
    """One thing that was looked at."""

    name: str
    good: bool
    what: str
    next: str = ""


def check(settings: Settings) -> Iterator[Line]:
    """Yield what was looked at, in order; what cannot be looked at any more is left out."""
    yield from _files(settings)
    if settings.oidc is not None:
        oidc = settings.oidc
        yield from _try("sign-on", lambda: _sign_on(oidc), "oidc in the settings")
    try:
        database = Database(settings.database_url)
    except CimaError as error:
        yield Line("database", False, error.what, error.hint)
        return
    try:
        yield from _database(database)
    finally:
        database.close()


def _files(settings: Settings) -> Iterator[Line]:
    is_there = settings.state_dir.is_dir()
    what = f"{settings.state_dir}" + ("" if is_there else " is not there yet")
    yield Line("state_dir", is_there, what, "" if is_there else "cima-verifier serve makes it")
    own = settings.certificate is None
    yield Line(
        "certificate",
        True,
        "one of our own" if own else str(settings.certificate),
        "hosts must be given it: ca in their settings" if own else "",
    )
    try:
        if is_there:
            setup.certificate(settings)
    except (CimaError, OSError) as error:
        yield Line("key", False, str(error), "certificate and key in the settings")
    path = settings.manufacturers
    if path is None:
        yield Line(
            "manufacturers",
            False,
            "no TPM is proved to be hardware",
            "manufacturers in the settings: certificates of TPM manufacturers (PEM)",
        )
    else:
        good = path.is_file()
        yield Line("manufacturers", good, str(path), "" if good else "the file is not there")


def _sign_on(settings: Oidc) -> tuple[bool, str]:
    Provider(settings, b"").begin("/")
    return True, f"{settings.issuer} answers"


def _database(database: Database) -> Iterator[Line]:
    yield from _try("database", lambda: _connect(database), "see its log and the URL")
    yield from _try("tables", lambda: _tables(database), "run: cima-verifier migrate")
    if database.is_postgresql:
        yield from _try("row security", lambda: _row_security(database), "use a user of its own")
    yield from _try("audit chain", lambda: _audit(database), "somebody changed it: restore it")


def _try(name: str, look: Callable[[], tuple[bool, str]], next_: str) -> Iterator[Line]:
    try:
        good, what = look()
    except Exception as error:
        what = error.what if isinstance(error, CimaError) else type(error).__name__
        hint = error.hint if isinstance(error, CimaError) else next_
        yield Line(name, False, what, hint or next_)
        return
    yield Line(name, good, what, "" if good else next_)


def _connect(database: Database) -> tuple[bool, str]:
    with database.read() as connection:
        connection.execute(text("SELECT 1"))
    return True, "SQLite" if not database.is_postgresql else "PostgreSQL"


def _tables(database: Database) -> tuple[bool, str]:
    migrate.check(database)
    return True, f"of the form {migrate.wanted()}"


def _row_security(database: Database) -> tuple[bool, str]:
    with database.read() as connection:
        found = connection.execute(
            text("SELECT rolsuper OR rolbypassrls FROM pg_roles WHERE rolname = current_user")
        ).scalar()
    if found:
        return False, "the database's user sees through it: it is a superuser, or has BYPASSRLS"
    return True, "tenants are kept apart by the database"


def _audit(database: Database) -> tuple[bool, str]:
    with database.read() as connection:
        found = audit.verify(connection)
    if found.broken is not None:
        return False, f"entry {found.broken} does not follow from the one before"
    return True, f"{found.entries} entries, head {found.head}"

"""A PostgreSQL server of Debian's package, in a temporary directory, for one test run."""

import os
import pwd
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_USER = "cima"


def binaries() -> Path | None:
    """Where initdb and postgres are, None where the package is missing."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return found[-1].parent if found else None


class PostgreSql:
    """A server that runs until :meth:`stop`; it listens on a unix socket and nowhere else."""

    def __init__(self, root: Path) -> None:
        found = binaries()
        assert found is not None, "install postgresql: ./dev setup"
        self._bin = found
        self._root = root
        self._data = root / "data"
        self._process: subprocess.Popen[bytes] | None = None
        # The server refuses to run as root.
        self._as = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "--"]
        if os.getuid() != 0:
            self._as = []
        else:
            nobody = pwd.getpwnam("nobody")
            os.chown(root, nobody.pw_uid, nobody.pw_gid)
        self._run("initdb", "-D", str(self._data), "-U", "postgres", "-A", "trust", "--no-sync")
        self.start()
        self.sql("postgres", f"CREATE ROLE {_USER} LOGIN NOSUPERUSER NOBYPASSRLS")

    def _run(self, name: str, *arguments: str) -> str:
        done = subprocess.run(
            [*self._as, str(self._bin / name), *arguments],
            cwd=self._root,
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "TZ": "UTC"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def start(self) -> None:
        """Start the server and wait until it answers."""
        options = ["-c", "listen_addresses=", "-c", "fsync=off", "-c", "max_connections=60"]
        options += ["-k", str(self._root)]
        with (self._root / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*self._as, str(self._bin / "postgres"), "-D", str(self._data), *options],
                cwd=self._root,
                env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "TZ": "UTC"},
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + 60
        while True:
            ready = subprocess.run(
                [str(self._bin / "pg_isready"), "-q", "-h", str(self._root)], check=False
            )
            if ready.returncode == 0:
                return
            assert self._process.poll() is None, (self._root / "log").read_text()
            assert time.monotonic() < deadline, "PostgreSQL does not start"
            time.sleep(0.05)

    def stop(self, *, kill: bool = False) -> None:
        """Stop the server: in order, or as a power cut would."""
        if self._process is None:
            return
        mode = "immediate" if kill else "fast"
        self._run("pg_ctl", "stop", "-D", str(self._data), "-m", mode, "-w")
        self._process.wait(60)
        self._process = None

    def sql(self, database: str, statement: str) -> str:
        """Run a statement as the superuser; return what it prints."""
        options = ["-h", str(self._root), "-U", "postgres", "-d", database, "-At", "-c"]
        return self._run("psql", *options, statement)

    def create(self, name: str, template: str = "template1") -> str:
        """Make an empty database; return its URL for the service's user, who owns it."""
        self.sql("postgres", f'CREATE DATABASE "{name}" OWNER {_USER} TEMPLATE {template}')
        return f"postgresql+psycopg://{_USER}@/{name}?host={self._root}"

    def empty(self, name: str) -> bool:
        """Empty the tables of a database, but for what says of which form they are; whether
        nobody held them. A database has a thousand files: making one for each test takes longer
        than most tests."""
        statement = """SET lock_timeout = '3s'; DO $$ BEGIN EXECUTE (
            SELECT 'TRUNCATE ' || string_agg(quote_ident(tablename), ', ')
            FROM pg_tables WHERE schemaname = 'public' AND tablename <> 'alembic_version'
        ); END $$"""
        try:
            self.sql(name, statement)
        except AssertionError:
            return False
        return True


@contextmanager
def postgresql() -> Iterator[PostgreSql]:
    """Run a server."""
    root = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
    server = None
    try:
        server = PostgreSql(root)
        yield server
    finally:
        if server is not None:
            server.stop(kill=True)
        # Tens of thousands of files.
        subprocess.run(["rm", "-rf", root], check=True)

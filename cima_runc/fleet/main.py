"""``cima-verifier``: ``serve``, ``migrate``, ``check``."""

import json
import logging
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
import uvicorn
from sqlalchemy import Connection

from cima_runc import __version__
from cima_runc.base.errors import CimaError, UsageError
from cima_runc.base.pipe import nobody_reads_on
from cima_runc.base.text import printable
from cima_runc.base.unexpected import unexpected
from cima_runc.fleet import changes, issuer, migrate, setup
from cima_runc.fleet import check as checks
from cima_runc.fleet.app import application
from cima_runc.fleet.connections import Http, take_descriptors
from cima_runc.fleet.database import Database
from cima_runc.fleet.service import Service
from cima_runc.fleet.settings import FILE, Settings, read_settings

app = typer.Typer(
    name="cima-verifier",
    help="The verifier as a service: a fleet of hosts, proved all the time.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
_Config = Annotated[Path | None, typer.Option(help=f"Settings file, in place of {FILE}.")]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_CANNOT = 2
_GRACE_SECONDS = 10


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created)),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": printable(record.getMessage()),
        }
        if record.exc_info and record.exc_info[0] is not None:
            line["error"] = printable(self.formatException(record.exc_info))
        return json.dumps(line)


@app.command()
def serve(
    config: _Config = None,
    state_dir: Annotated[
        Path | None, typer.Option(help="Where to keep everything, in place of the settings'.")
    ] = None,
    address: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.")] = None,
) -> None:
    """Serve. Without settings: makes its keys, an SQLite file and a certificate of its own."""
    given = {"state_dir": state_dir, "address": address, "port": port}
    settings = read_settings(config).model_copy(
        update={key: value for key, value in given.items() if value is not None}
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    setup.prepare(settings)
    certificate, key = setup.certificate(settings)
    take_descriptors()
    listening = _listen(settings)
    settings = settings.model_copy(update={"port": int(listening.getsockname()[1])})
    service = Service(settings)
    server = uvicorn.Server(
        uvicorn.Config(
            application(service),
            ssl_certfile=certificate,
            ssl_keyfile=key,
            http=Http,
            forwarded_allow_ips=list(settings.proxies),
            lifespan="on",
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=65,
            timeout_graceful_shutdown=_GRACE_SECONDS,
        )
    )
    service.is_ending = lambda: server.should_exit
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    _greet(settings, certificate)
    server.run(sockets=[listening])
    if not server.started:
        raise setup.SetupError("the service did not begin", hint="its log says why")


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.address else socket.AF_INET
    try:
        return socket.create_server((settings.address, settings.port), family=family, backlog=1024)
    except OSError as error:
        raise setup.SetupError(
            f"{settings.address} port {settings.port} cannot be listened on: {error.strerror}",
            hint="address and port in the settings",
        ) from error


def _greet(settings: Settings, certificate: Path) -> None:
    host = f"[{settings.address}]" if ":" in settings.address else settings.address
    url = f"https://{host}:{settings.port}"
    typer.echo(f"cima-verifier {__version__}: {url}/")
    token = setup.admin_token_path(settings)
    if token.exists():
        typer.echo(f"the first administrator's token is in {token}")
    typer.echo("to enrol a host, on that host:")
    typer.echo(f"  cima configure fleet --url {url} --ca {certificate}")
    typer.echo("  with --join-token-file FILE, and in it what this prints here:")
    typer.echo("  cima-verifier join-token --config FILE")
    sys.stdout.flush()


@app.command(name="join-token")
def join_token(
    config: _Config = None,
    *,
    state_dir: Annotated[Path | None, typer.Option(help="In place of the settings'.")] = None,
    label: Annotated[
        list[str] | None, typer.Option(help="KEY=VALUE that the host is labelled with.")
    ] = None,
    hours: Annotated[float, typer.Option(help="How long it is good.")] = 1.0,
    without_ek_certificate: Annotated[
        bool,
        typer.Option(
            "--without-ek-certificate", help="Take a TPM that no manufacturer vouches for."
        ),
    ] = False,
    as_json: _Json = False,
) -> None:
    """Make a token that lets one host join, and print it."""
    settings = _settings(config, state_dir)
    labels = {}
    for one in label or []:
        key, separator, value = one.partition("=")
        if not separator:
            raise changes.ChangeError("a label is KEY=VALUE")
        labels[key] = value
    setup.prepare(settings)
    database = Database(settings.database_url)
    with database.write() as connection:
        uid, secret = changes.make_join_token(
            connection,
            f"local user {os.getuid()}",
            labels=labels,
            hours=hours,
            without_ek_certificate=without_ek_certificate,
        )
    database.close()
    _say({"uid": uid, "token": secret}, secret, as_json=as_json)


def _say(data: dict[str, Any], text: str, *, as_json: bool) -> None:
    typer.echo(json.dumps(data, indent=2) if as_json else text)


@app.command(name="migrate")
def migrate_command(
    config: _Config = None,
    state_dir: Annotated[Path | None, typer.Option(help="In place of the settings'.")] = None,
    as_json: _Json = False,
) -> None:
    """Bring the database's tables to the form that this version wants."""
    settings = _settings(config, state_dir)
    if not settings.database_url.startswith("postgresql"):
        settings.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    database = Database(settings.database_url)
    try:
        done = migrate.migrate(database)
    finally:
        database.close()
    form = migrate.wanted()
    text = f"the tables are of the form {form} now" if done else f"they are: {form}"
    _say({"form": form, "migrated": done}, text, as_json=as_json)


@contextmanager
def _changing(config: Path | None, state_dir: Path | None) -> Iterator[tuple[Connection, str]]:
    """Open the database to change it; who does so is this machine's user."""
    database = Database(_settings(config, state_dir).database_url)
    try:
        migrate.check(database)
        with database.write() as connection:
            yield connection, f"local user {os.getuid()}"
    finally:
        database.close()


@app.command()
def restore(
    config: _Config = None,
    state_dir: Annotated[Path | None, typer.Option(help="In place of the settings'.")] = None,
    as_json: _Json = False,
) -> None:
    """After an old database was put back, and before serving: nothing becomes TRUSTED by it."""
    with _changing(config, state_dir) as (connection, actor):
        done = changes.restored(connection, actor)
    text = (
        f"{done['join_tokens']} join tokens are void, {done['verdicts']} verdicts are UNKNOWN until"
        " their hosts report"
    )
    _say(done, text, as_json=as_json)


@app.command(name="rotate-keys")
def rotate_keys(
    config: _Config = None,
    state_dir: Annotated[Path | None, typer.Option(help="In place of the settings'.")] = None,
    as_json: _Json = False,
) -> None:
    """Sign tokens with a new key from now on; the one before is published for an hour more."""
    with _changing(config, state_dir) as (connection, actor):
        kid = issuer.rotate(connection, actor)
    _say({"kid": kid}, f"tokens are signed with the key {kid}", as_json=as_json)


@app.command()
def check(
    config: _Config = None,
    state_dir: Annotated[Path | None, typer.Option(help="In place of the settings'.")] = None,
    as_json: _Json = False,
) -> None:
    """See whether the service can serve: settings, database, keys. 0: yes, 2: it cannot."""
    lines = list(checks.check(_settings(config, state_dir)))
    if as_json:
        made = [vars(line) for line in lines]
        typer.echo(json.dumps(made, indent=2))
    else:
        for line in lines:
            typer.echo(f"{'ok' if line.good else '--':3} {line.name}: {printable(line.what)}")
            if line.next:
                typer.echo(f"    {printable(line.next)}")
    # A fleet without manufacturers' certificates is one on purpose.
    if any(not line.good for line in lines if line.name != "manufacturers"):
        sys.exit(_CANNOT)


@app.command()
def version(as_json: _Json = False) -> None:
    """Print the version."""
    typer.echo(json.dumps({"version": __version__}) if as_json else f"cima-verifier {__version__}")


def _settings(config: Path | None, state_dir: Path | None) -> Settings:
    settings = read_settings(config)
    return settings if state_dir is None else settings.model_copy(update={"state_dir": state_dir})


def main() -> None:
    """Run ``cima-verifier``. 0: done, 2: it could not be done; never 1, which says UNTRUSTED."""
    with nobody_reads_on(_CANNOT):
        _main()


def _main() -> None:
    try:
        sys.exit(app(prog_name="cima-verifier", standalone_mode=False) or 0)
    except CimaError as error:
        _fail(error)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)
    except _USAGE as error:
        if "--json" not in sys.argv:
            error.show()
            sys.exit(_CANNOT)
        _fail(UsageError(error.format_message(), hint="see --help"))
    except Exception as error:
        _fail(unexpected(error, "cima-verifier"))


def _fail(error: CimaError) -> NoReturn:
    """Print an error and what to do next, as JSON too where that is wanted, and end."""
    print(f"cima-verifier: {error}", file=sys.stderr)
    if "--json" in sys.argv:
        kind = type(error).__name__.removesuffix("Error")
        what = {"kind": kind, "what": printable(error.what), "hint": printable(error.hint)}
        typer.echo(json.dumps({"error": what}, indent=2))
    sys.exit(_CANNOT)


_USAGE: Any = next(one for one in typer.BadParameter.__mro__ if one.__name__ == "ClickException")
"""The root of what is wrong with a command line."""


if __name__ == "__main__":
    main()

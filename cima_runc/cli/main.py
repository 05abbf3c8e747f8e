"""``cima``: what people type."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from cima_runc import __version__
from cima_runc.agent_socket import AgentUnavailableError, call_agent
from cima_runc.cli import appraise, attest, configure, context, policy, reference, show, verify
from cima_runc.cli.output import fail, note, print_json, print_table
from cima_runc.cli.records import record_lines
from cima_runc.config import load_settings
from cima_runc.errors import CimaError
from cima_runc.ml.export import cel_json, cel_tlv, ima_ascii
from cima_runc.ml.listing import (
    boot_id,
    container_row,
    stored_notes,
    unmeasured_rows,
)
from cima_runc.ml.partition import Partition
from cima_runc.ml.records import parse_line
from cima_runc.ml.store import Store
from cima_runc.shim_settings import SETTINGS_FILE

app = typer.Typer(
    help="Measured containers: what ran in them, and the registers that say so.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

_TIMEOUT_SECONDS = 60.0
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_config_file = SETTINGS_FILE

app.command()(attest.keygen)
app.command()(attest.attest)
app.command()(verify.verify)
app.command()(configure.configure)
app.command()(show.show)
app.command()(appraise.appraise)
app.add_typer(attest.enroll_app, name="enroll")
app.add_typer(reference.app)
app.add_typer(policy.app)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"cima-runc {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    config: Annotated[str, typer.Option(help="Settings file.")] = SETTINGS_FILE,
    version: Annotated[  # noqa: ARG001 - handled by its callback
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    global _config_file  # noqa: PLW0603 - one process runs one command
    _config_file = config
    context.choose(config)


@app.command()
def ps(
    as_json: _Json = False,
    everything: Annotated[
        bool, typer.Option("--all", help="Show earlier boots' containers too.")
    ] = False,
    dependencies: Annotated[
        bool, typer.Option("--dependencies", help="Show what containers rely on instead.")
    ] = False,
) -> None:
    """List this boot's containers, those that have ended and those not measured included."""
    settings = load_settings(_config_file)
    if everything:
        rows = _stored_rows(Store(Path(settings.shim.state_dir)), None)
    else:
        try:
            rows = json.loads(
                call_agent(settings.shim.socket, "ps", b"{}", timeout=_TIMEOUT_SECONDS)
            )
        except AgentUnavailableError as error:
            note(f"{error}; showing what is stored")
            rows = _stored_rows(Store(Path(settings.shim.state_dir)), boot_id())
    kind = "dependencies" if dependencies else "container"
    rows = [row for row in rows if row["kind"] == kind]
    if as_json:
        print_json(rows)
        return
    shown = [
        (
            row["id"] if dependencies else row["id"][:12],
            row["state"],
            row["count"],
            row["cpcr"][:16] if row["cpcr"] else "not measured",
            row["mntns"] or "-",
            row["started"],
        )
        for row in rows
    ]
    print_table(("CONTAINER", "STATE", "RECORDS", "CPCR", "MNTNS", "STARTED"), shown)


@app.command()
def log(
    container: Annotated[str, typer.Argument(metavar="ID", help="Id, or how it begins.")],
    as_json: _Json = False,
    form: Annotated[
        Literal["ima-ascii", "cel-json", "cel-tlv"], typer.Option("--format", help="How.")
    ] = "ima-ascii",
) -> None:
    """Print a container's measurement log."""
    lines = record_lines(load_settings(_config_file), container)
    if as_json:
        for line in lines:
            typer.echo(line)
        return
    records = map(parse_line, lines)
    if form == "cel-json":
        sys.stdout.writelines(cel_json(records))
    elif form == "cel-tlv":
        sys.stdout.buffer.writelines(map(cel_tlv, records))
    else:
        for record in records:
            typer.echo(ima_ascii(record))


@app.command()
def status(as_json: _Json = False) -> None:
    """Show the TPM, the binding, the sensor and the kernel's log."""
    settings = load_settings(_config_file)
    answer = call_agent(settings.shim.socket, "status", b"{}", timeout=_TIMEOUT_SECONDS)
    shown = json.loads(answer)
    if as_json:
        print_json(shown)
        return
    for key, value in shown.items():
        typer.echo(f"{key:18} {_plain(value)}")
    if shown["pcr_value"] != shown["expected_value"]:
        note(f"PCR {shown['pcr']} is not what we bound: somebody else extended it")


def _stored_rows(store: Store, boot: str | None) -> list[dict[str, Any]]:
    rows = []
    for found in stored_notes(store, boot):
        records = store.records(found.registration)
        rows.append(container_row(found, Partition.restore(found.id, records)))
    return [*rows, *unmeasured_rows(store)]


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{key}={_plain(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ",".join(str(item) for item in value) or "-"
    return "-" if value is None else str(value)


def main() -> None:
    """Run ``cima``; an error ends with its own exit status."""
    try:
        app(standalone_mode=True)
    except CimaError as error:
        fail(error)
    except BrokenPipeError:
        sys.exit(0)


if __name__ == "__main__":
    main()

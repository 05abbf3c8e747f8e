"""``cima ps``, ``cima log``, ``cima status``: what the agent knows, or what is stored."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from cima_runc.cli import context
from cima_runc.cli.output import note, print_json, print_table
from cima_runc.cli.records import record_lines
from cima_runc.ml.export import cel_json, cel_tlv, ima_ascii
from cima_runc.ml.listing import boot_id, container_row, stored_notes, with_unmeasured
from cima_runc.ml.partition import Partition
from cima_runc.ml.records import parse_line
from cima_runc.ml.store import Store
from cima_runc.runtime.agent_socket import AgentUnavailableError, call_agent
from cima_runc.runtime.shim_settings import socket_of_caller

_TIMEOUT_SECONDS = 60.0
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


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
    settings = context.settings()
    if everything:
        rows = _stored_rows(Store(Path(settings.shim.state_dir)), None)
    else:
        try:
            rows = json.loads(
                call_agent(socket_of_caller(settings.shim), "ps", b"{}", timeout=_TIMEOUT_SECONDS)
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
            row["id"] if dependencies else _short(row["id"]),
            row["state"],
            row["count"],
            row["cpcr"][:16] if row["cpcr"] else "not measured",
            row["mntns"] or "-",
            row["started"],
        )
        for row in rows
    ]
    print_table(("CONTAINER", "STATE", "RECORDS", "CPCR", "MNTNS", "STARTED"), shown)


def _short(container_id: str) -> str:
    """Return twelve characters of an id, after its user's number where it has one."""
    user, slash, own = container_id.rpartition("/")
    return user + slash + own[:12]


def log(
    container: Annotated[str, typer.Argument(metavar="ID", help="Id, or how it begins.")],
    as_json: _Json = False,
    form: Annotated[
        Literal["ima-ascii", "cel-json", "cel-tlv"], typer.Option("--format", help="How.")
    ] = "ima-ascii",
) -> None:
    """Print a container's measurement log."""
    lines = record_lines(context.settings(), container)
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


def status(as_json: _Json = False) -> None:
    """Show the TPM, the binding, the sensor and the kernel's log."""
    settings = context.settings()
    answer = call_agent(settings.shim.socket, "status", b"{}", timeout=_TIMEOUT_SECONDS)
    shown = json.loads(answer)
    if as_json:
        print_json(shown)
        return
    for key, value in shown.items():
        typer.echo(f"{key:18} {_plain(value)}")
    expected = shown["expected_value"]  # None before the first bind: nothing is expected
    if expected is not None and shown["pcr_value"] != expected:
        note(f"PCR {shown['pcr']} is not what we bound: somebody else extended it")


def _stored_rows(store: Store, boot: str | None) -> list[dict[str, Any]]:
    rows = []
    for found in stored_notes(store, boot):
        records = store.records(found.registration)
        rows.append(container_row(found, Partition.restore(found.id, records)))
    return with_unmeasured(rows, store)


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{key}={_plain(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ",".join(str(item) for item in value) or "-"
    return "-" if value is None else str(value)

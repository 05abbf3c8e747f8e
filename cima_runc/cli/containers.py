"""``cima ps``, ``cima status``: what the agent knows, or what is stored."""

import json
import time
from typing import Annotated, Any

import typer

from cima_runc.base.errors import CimaError
from cima_runc.cli import context, last_verdict
from cima_runc.cli.output import note, print_json, print_table
from cima_runc.cli.records import names, rows
from cima_runc.config import Settings
from cima_runc.runtime.agent_socket import call_agent


class OptionsError(CimaError):
    """Options that do not go together."""


_TIMEOUT_SECONDS = 60.0
_WATCH_SECONDS = 2.0
_WHERE_KNOWN = ("NAME", "IMAGE", "POD", "VERDICT")
_CLEAR = "\x1b[H\x1b[2J"
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def ps(
    as_json: _Json = False,
    everything: Annotated[
        bool, typer.Option("--all", help="Show earlier boots' containers too.")
    ] = False,
    dependencies: Annotated[
        bool, typer.Option("--dependencies", help="Show what containers rely on instead.")
    ] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Show it anew every two seconds.")] = False,
) -> None:
    """List this boot's containers, those that have ended and those not measured included.

    NAME, IMAGE and POD are what engines and tenants say: they find a container, and prove nothing.
    VERDICT is what cima appraise found last on this host, of so many records, at its word: what
    came later was not looked at. What a TPM proves is for cima attest and cima verify.
    """
    if watch and as_json:
        raise OptionsError("give either --json or --watch", hint="cima log ID --follow --json")
    settings = context.settings()
    kind = "dependencies" if dependencies else "container"
    while True:
        found = [row for row in rows(settings, everything=everything) if row["kind"] == kind]
        shown = [_with_more(row, settings) for row in found]
        if watch:
            typer.echo(_CLEAR, nl=False)
        if as_json:
            print_json(shown)
        else:
            _print(shown, dependencies=dependencies)
        if not watch:
            return
        time.sleep(_WATCH_SECONDS)


def _with_more(row: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """Return a row with what the one who asks may see besides."""
    found = last_verdict.read(settings.shim.state_dir, row["registration"])
    verdict = None if found is None else found.model_dump(mode="json")
    return row | names(row, settings)._asdict() | {"verdict": verdict}


def _print(shown: list[dict[str, Any]], *, dependencies: bool) -> None:
    heads = ["CONTAINER", "NAME", "IMAGE", "POD", "STATE", "RECORDS", "VERDICT"]
    heads += ["CPCR", "STARTED"]
    cells = [
        [
            row["id"] if dependencies else _short(row["id"]),
            row["name"],
            row["image"],
            row["pod"],
            row["state"],
            row["count"],
            _verdict(row["verdict"]),
            row["cpcr"][:16] if row["cpcr"] else "not measured",
            row["started"],
        ]
        for row in shown
    ]
    # A column that says nothing of any container takes no room.
    filled = [
        at
        for at, head in enumerate(heads)
        if head not in _WHERE_KNOWN or any(row[at] not in ("", "-") for row in cells)
    ]
    print_table([heads[at] for at in filled], [[row[at] for at in filled] for row in cells])


def _verdict(found: dict[str, Any] | None) -> str:
    return "-" if found is None else f"{found['verdict']}, of {found['records']}"


def _short(container_id: str) -> str:
    """Return twelve characters of an id, after its user's number where it has one."""
    user, slash, own = container_id.rpartition("/")
    return user + slash + own[:12]


def status(as_json: _Json = False) -> None:
    """Show the TPM, the binding, the sensor and the kernel's log."""
    settings = context.settings()
    answer = call_agent(settings.shim.socket, "status", b"{}", timeout=_TIMEOUT_SECONDS)
    shown = json.loads(answer)
    if as_json:
        print_json(shown)
        return
    for line in in_words(shown):
        typer.echo(line)
    typer.echo()
    for key, value in shown.items():
        typer.echo(f"{key:18} {_plain(value)}")
    expected = shown["expected_value"]  # None before the first bind: nothing is expected
    if expected is not None and shown["pcr_value"] != expected:
        note(f"PCR {shown['pcr']} is not what we bound: somebody else extended it")


def in_words(shown: dict[str, Any]) -> list[str]:
    """Return what the status means, in a few sentences, what is wrong first."""
    wrong = []
    if shown["missing"]:
        wrong.append(f"Measured without {' and '.join(shown['missing'])}: every record says so.")
    if shown["pcr_value"] is None:
        wrong.append("The TPM cannot be read: nothing new can be proved.")
    elif shown["expected_value"] not in (None, shown["pcr_value"]):
        wrong.append(f"PCR {shown['pcr']} holds what others put there: proofs tell of it.")
    if shown["trouble"]:
        wrong.append("Records wait to be written or bound: see trouble below.")
    if shown["lost"]:
        wrong.append(f"{shown['lost']} events were lost: the partitions concerned say so.")
    count = shown["containers"]
    good = f"{count} container{'' if count == 1 else 's'} of this boot measured."
    return [*wrong, good if wrong else f"All is well: {good}"]


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{key}={_plain(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ",".join(str(item) for item in value) or "-"
    return "-" if value is None else str(value)

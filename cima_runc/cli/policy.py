"""``cima policy``: write and check what a relying party insists on."""

import hashlib
from pathlib import Path
from typing import Annotated

import typer

from cima_runc.base import limits
from cima_runc.base.errors import CimaError
from cima_runc.base.text import printable
from cima_runc.cli import files
from cima_runc.cli.app import group
from cima_runc.cli.appraise import read_partition, read_secret
from cima_runc.cli.output import note, print_json
from cima_runc.cli.references import read_references
from cima_runc.ml.records import Record, parse_line
from cima_runc.verifier.appraisal import References
from cima_runc.verifier.policy import parse_policy
from cima_runc.verifier.suggest import suggest as suggest_policy

app = group("Policies: what a container may be beside what its image is.")

_STDOUT = Path("-")


class SuggestError(CimaError):
    """There is nothing to suggest a policy from."""


@app.command()
def suggest(
    container: Annotated[
        str | None, typer.Argument(metavar="ID", help="Id, or how it begins.")
    ] = None,
    *,
    records: Annotated[
        Path | None, typer.Option(help="Records instead, as `cima log ID --json` prints them.")
    ] = None,
    reference: Annotated[
        list[Path] | None, typer.Option(help="Reference values: what they have needs no line.")
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="File to write; - is standard output.")
    ] = _STDOUT,
) -> None:
    """Write a policy that allows what a container did in a run that is known to be good.

    As root, of a container of this host, the values of its environment are compared too; otherwise
    it allows what a variable such as HOME could lead to.
    """
    if (container is None) == (records is None):
        raise SuggestError("give either a container's ID or --records FILE")
    found = read_partition(container) if container else _read_records(records or _STDOUT)
    references = read_references(reference) if reference else References()
    text = suggest_policy(found, references, read_secret(found) if container else None)
    files.write(output, text.encode("utf-8"))
    note("read each line of it before it is used")


@app.command()
def check(
    path: Annotated[Path, typer.Argument(help="The policy (TOML).")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check that a policy can be read, and say what it allows beyond the defaults."""
    raw = files.read(path)
    with files.about(path):
        policy = parse_policy(raw)
    changed = policy.model_dump(mode="json", exclude_defaults=True)
    if as_json:
        digest = hashlib.sha256(raw).hexdigest()
        print_json({"policy": str(path), "sha256": digest, "changed": changed})
        return
    for line in _keys(changed):
        typer.echo(line)
    note(f"{printable(str(path))} is a policy; {len(changed)} keys differ from their defaults")


def _keys(table: dict[str, object], before: str = "") -> list[str]:
    lines = []
    for key, value in table.items():
        name = f"{before}{printable(key)}"
        if isinstance(value, dict):
            lines += _keys(value, f"{name}.")
        elif isinstance(value, list):
            lines += [f"{name}: {printable(str(each))}" for each in value] or [f"{name}: none"]
        else:
            lines.append(f"{name}: {printable(str(value))}")
    return lines


def _read_records(path: Path) -> list[Record]:
    raw = files.read(path, limit=limits.EVIDENCE)
    if len(raw) > limits.EVIDENCE:
        raise SuggestError(f"{path} has more than {limits.EVIDENCE} bytes")
    with files.about(path):
        found = [parse_line(line) for line in raw.splitlines()]
    if not found:
        raise SuggestError(f"{path} holds no records", hint="cima log ID --json prints them")
    return found

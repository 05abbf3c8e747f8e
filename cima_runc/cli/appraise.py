"""``cima appraise``: is this container what its image is?"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from cima_runc.base import clock
from cima_runc.base.errors import CimaError
from cima_runc.base.text import printable
from cima_runc.cli import context, last_verdict
from cima_runc.cli.output import note, print_json
from cima_runc.cli.records import record_lines
from cima_runc.cli.references import values_in
from cima_runc.cli.shapes import LastVerdict
from cima_runc.ml.records import Record, parse_line
from cima_runc.ml.store import Store, StoreError
from cima_runc.verifier.appraisal import Appraised
from cima_runc.verifier.appraisal import appraise as appraise_records
from cima_runc.verifier.result import Finding, Source
from cima_runc.verifier.values import ReferencesError

COULD_NOT = 2
"""Exit status where nothing can be said."""

_LINES = (("path", "path"), ("got", "got"), ("expected", "expected"), ("next", "next"))


def appraise(
    container: Annotated[str, typer.Argument(metavar="ID", help="Id, or how it begins.")],
    reference: Annotated[
        list[Path], typer.Option(help="Reference values of the image; again for the host's.")
    ],
    policy: Annotated[Path | None, typer.Option(help="What is allowed besides (TOML).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare what was measured on this host with reference values.

    Exit status 0: TRUSTED, 1: UNTRUSTED, 2: it could not be appraised. This takes the host's own
    records at their word; to have them proved by its TPM: cima attest, and cima verify. As root the
    verdict is kept, with what was compared with, for cima ps to show.
    """
    try:
        values = values_in(reference, policy)
        if values.references is None:
            raise ReferencesError("no reference values were given", hint="give --reference")
        records = read_partition(container)
        dependencies = read_dependencies(records)
        appraised = appraise_records(
            records, values.references, values.policy, dependencies, read_secret(records)
        )
    except CimaError as error:
        error.exit_code = COULD_NOT
        raise
    _keep(records, appraised, values.sources)
    shown = records[0].cpcr if records else container
    if as_json:
        print_json(_to_json(shown, appraised))
    else:
        _print(shown, appraised)
    sys.exit(appraised.verdict.exit_code)


def _keep(records: list[Record], appraised: Appraised, sources: Sequence[Source]) -> None:
    """Leave the verdict for ``cima ps``, where this user may."""
    registration = _registration(records)
    if registration is None:
        return
    found = LastVerdict(
        verdict=appraised.verdict.value,
        records=len(records),
        when=clock.now(),
        sources=list(sources),
    )
    try:
        last_verdict.keep(context.settings().shim.state_dir, registration, found)
    except OSError as error:
        note(f"the verdict is not kept for cima ps: {error.strerror}")


def _registration(records: list[Record]) -> int | None:
    register = next((r.content for r in records if r.content.get("type") == "register"), {})
    number = register.get("registration")
    return number if isinstance(number, int) else None


def read_secret(records: list[Record]) -> bytes | None:
    """Return what the environment's values are hidden with, where this user may read it."""
    registration = _registration(records)
    if registration is None:
        return None
    try:
        return Store(Path(context.settings().shim.state_dir)).read_secret(registration)
    except StoreError:
        return None


def read_partition(wanted: str) -> list[Record]:
    """Return a partition's records, from the agent or the state directory.

    Raises:
        CimaError: there are none, or they are damaged.
    """
    return [parse_line(line) for line in record_lines(context.settings(), wanted)]


def read_dependencies(records: list[Record]) -> list[Record]:
    """Return the records of the services that a container relies on; none where it names none."""
    for record in records:
        if record.content.get("type") == "register":
            number = record.content.get("dependencies")
            return read_partition(f"dependencies:{number}") if number is not None else []
    return []


def print_finding(finding: Finding) -> None:
    """Print a finding: what it is, then where, what was found, what was expected, what to do."""
    at = f" (record {finding.record})" if finding.record is not None else ""
    rule = f" {finding.rule}" if finding.rule else ""
    typer.echo(f"{finding.severity}{rule}: {_safe(finding.what)}{at}")
    for name, label in _LINES:
        value = getattr(finding, name)
        if value:
            typer.echo(f"  {label + ':':10}{_safe(value)}")


def _safe(text: str) -> str:
    """Return what is printable already, as it should be, without doubling its escapes."""
    return text if text.isprintable() else printable(text)


def _print(container: str, appraised: Appraised) -> None:
    typer.echo(f"{appraised.verdict}: container {printable(container)}")
    order = ("fail", "warn", "info")
    for finding in sorted(appraised.findings, key=lambda each: order.index(each.severity)):
        print_finding(finding)


def _to_json(container: str, appraised: Appraised) -> dict[str, Any]:
    return {
        "verdict": appraised.verdict.value,
        "container": container,
        "compared": appraised.compared,
        "findings": [each.model_dump(mode="json") for each in appraised.findings],
    }

"""``cima verify``: the verdict on evidence, for people, programs and relying parties."""

import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

import typer

from cima_runc.base import limits
from cima_runc.base.text import printable
from cima_runc.cli import files
from cima_runc.cli.appraise import print_finding
from cima_runc.cli.attest import ArgumentError, nonce_of
from cima_runc.cli.output import print_table
from cima_runc.cli.references import appraisal, read_policy
from cima_runc.evidence.models import Evidence, EvidenceError, parse_evidence
from cima_runc.evidence.owner import parse_private
from cima_runc.verifier.ak_certificate import AkAuthority, parse_authority
from cima_runc.verifier.enrolled import EnrolledAk, parse_enrolled_ak
from cima_runc.verifier.result import Result
from cima_runc.verifier.state import StateDirectory
from cima_runc.verifier.token import sign
from cima_runc.verifier.verify import Expectation
from cima_runc.verifier.verify import verify as verify_evidence


def verify(
    evidence: Annotated[Path, typer.Argument(help="The evidence, - for standard input.")],
    nonce: Annotated[str, typer.Option(help="The nonce that was sent, hexadecimal.")],
    ak: Annotated[Path | None, typer.Option(help="The enrolled attestation key (PEM).")] = None,
    ak_ca: Annotated[
        Path | None, typer.Option(help="Or who enrols keys for us: a certificate (PEM).")
    ] = None,
    container: Annotated[str | None, typer.Option(help="The container that it must be of.")] = None,
    owner_key: Annotated[Path | None, typer.Option(help="The owner's private key (PEM).")] = None,
    reference: Annotated[
        list[Path] | None, typer.Option(help="Reference values of the image; again for the host's.")
    ] = None,
    policy: Annotated[Path | None, typer.Option(help="What is insisted on (TOML).")] = None,
    host: Annotated[
        Literal["none", "redacted", "full"],
        typer.Option(help="What was asked for of the host's log; less is refused."),
    ] = "none",
    boot_log: Annotated[bool, typer.Option(help="The firmware's log was asked for.")] = False,
    state: Annotated[
        Path | None, typer.Option(help="Directory to remember in: reboots, rollbacks.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    jwt: Annotated[Path | None, typer.Option(help="Write the result as a signed EAT.")] = None,
    jwt_key: Annotated[Path | None, typer.Option(help="EC P-256 key to sign it with.")] = None,
) -> None:
    """Verify evidence; exit status 0: TRUSTED, 1: UNTRUSTED, 2: STALE or UNKNOWN."""
    if (jwt is None) != (jwt_key is None):
        raise ArgumentError("--jwt and --jwt-key go together")
    expectation = Expectation(
        nonce=nonce_of(nonce),
        ak=_enrolled(ak, ak_ca),
        container=container,
        owner_key=parse_private(files.read(owner_key)) if owner_key is not None else None,
        host=host,
        boot_log=boot_log,
        policy=read_policy(policy),
    )
    appraised = appraisal(reference, policy) if reference else None
    raw = files.read(evidence, limit=limits.EVIDENCE)
    directory = StateDirectory(state) if state is not None else None
    parsed = _parsed(raw)
    remembered = None
    if directory is not None and isinstance(parsed, Evidence):
        remembered = directory.load(parsed.container)
    outcome = verify_evidence(parsed, expectation, remembered=remembered, appraisal=appraised)
    if directory is not None and outcome.remember is not None:
        directory.store(outcome.remember)
    result = outcome.result
    if jwt is not None and jwt_key is not None:
        token = sign(result, files.read(jwt_key), int(time.time()))
        files.write(jwt, token.encode("ascii") + b"\n")
    if as_json:
        typer.echo(result.model_dump_json(indent=2, exclude_none=True))
    else:
        _print(result)
    sys.exit(result.verdict.exit_code)


def _enrolled(ak: Path | None, authority: Path | None) -> EnrolledAk | AkAuthority:
    if ak is not None and authority is None:
        return parse_enrolled_ak(files.read(ak))
    if authority is not None and ak is None:
        return parse_authority(files.read(authority), datetime.now(UTC))
    raise ArgumentError("give either --ak or --ak-ca")


def _parsed(raw: bytes) -> Evidence | bytes:
    try:
        return parse_evidence(raw)
    except EvidenceError:
        return raw  # what is wrong with it becomes part of the result


def _print(result: Result) -> None:
    rows = [(check.step, "ok" if check.done else "-", check.detail) for check in result.checks]
    if rows:
        print_table(("STEP", "", "WHAT"), rows)
    if result.refusal is not None:
        typer.echo(f"{result.refusal.error}: {printable(result.refusal.what)}")
        for name in ("expected", "found", "hint"):
            value = getattr(result.refusal, name)
            if value:
                typer.echo(f"  {name}: {value}")
    for finding in result.findings:
        print_finding(finding)
    typer.echo(f"{result.verdict}: container {printable(result.container or '?')}")

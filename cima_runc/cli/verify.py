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
from cima_runc.cli.output import note, print_table
from cima_runc.cli.references import naming, read_files
from cima_runc.evidence.owner import parse_private
from cima_runc.verifier.ak_certificate import AkAuthority, parse_authority
from cima_runc.verifier.enrolled import EnrolledAk, parse_enrolled_ak
from cima_runc.verifier.result import Result
from cima_runc.verifier.state import StateDirectory
from cima_runc.verifier.token import LONGEST, sign
from cima_runc.verifier.verifier import Verifier


def verify(
    evidence: Annotated[Path, typer.Argument(help="The evidence, - for standard input.")],
    nonce: Annotated[str, typer.Option(help="The nonce that was sent, hexadecimal.")],
    ak: Annotated[Path | None, typer.Option(help="The enrolled attestation key (PEM).")] = None,
    ak_ca: Annotated[
        Path | None, typer.Option(help="Or who enrols keys for us: a certificate (PEM).")
    ] = None,
    ak_name: Annotated[
        str | None, typer.Option(help="With --ak-ca: TPM name of the one key that is meant.")
    ] = None,
    container: Annotated[
        str | None, typer.Option(help="The container that was asked for, by its whole id.")
    ] = None,
    owner_key: Annotated[Path | None, typer.Option(help="The owner's private key (PEM).")] = None,
    reference: Annotated[
        list[Path] | None, typer.Option(help="Reference values of the image; again for the host's.")
    ] = None,
    policy: Annotated[Path | None, typer.Option(help="What is insisted on (TOML).")] = None,
    host: Annotated[
        Literal["none", "redacted", "full"],
        typer.Option(help="What was asked for of the host's log; anything else is refused."),
    ] = "none",
    boot_log: Annotated[bool, typer.Option(help="The firmware's log was asked for.")] = False,
    state: Annotated[
        Path | None, typer.Option(help="Directory to remember in: restarts, reboots, rollbacks.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    jwt: Annotated[Path | None, typer.Option(help="Write the result as a signed EAT.")] = None,
    jwt_key: Annotated[Path | None, typer.Option(help="EC P-256 key to sign it with.")] = None,
    jwt_audience: Annotated[
        str | None, typer.Option(help="Who is to take it: nobody else may (aud).")
    ] = None,
    jwt_seconds: Annotated[
        int, typer.Option(min=1, max=LONGEST, help="How long it is good.")
    ] = 300,
) -> None:
    """Verify evidence; exit status 0: TRUSTED, 1: UNTRUSTED, 2: STALE, UNKNOWN, or an error."""
    if len({jwt is None, jwt_key is None, jwt_audience is None}) > 1:
        raise ArgumentError("--jwt, --jwt-key and --jwt-audience go together")
    references, insisted = read_files(reference or [], policy)
    private = None
    if owner_key is not None:
        private = files.read(owner_key)
        with files.about(owner_key):
            parse_private(private)
    with naming(reference or [], policy, references, insisted):
        verifier = Verifier(
            _enrolled(ak, ak_ca, ak_name),
            references=references,
            policy=insisted,
            owner_key=private,
            memory=StateDirectory(state) if state is not None else None,
        )
    sent = nonce_of(nonce)
    raw = files.read(evidence, limit=limits.EVIDENCE)
    result = verifier.verify_nonce(raw, sent, container=container, host=host, boot_log=boot_log)
    if jwt is not None and jwt_key is not None and jwt_audience is not None:
        if result.facts is not None and result.facts.ended is not None:
            note("no token: the container has ended, and a token is of something that runs")
        else:
            with files.about(jwt_key):
                key, now = files.read(jwt_key), int(time.time())
                token = sign(result, key, now, audience=jwt_audience, seconds=jwt_seconds)
            files.write(jwt, token.encode("ascii") + b"\n")
    if as_json:
        typer.echo(result.model_dump_json(indent=2, exclude_none=True))
    else:
        if result.container is None:
            note(f"{printable(str(evidence))} is not evidence that can be read")
        _print(result)
    sys.exit(result.verdict.exit_code)


def _enrolled(
    ak: Path | None, authority: Path | None, ak_name: str | None
) -> EnrolledAk | AkAuthority:
    if ak is not None and authority is None and ak_name is None:
        return files.parsed(ak, parse_enrolled_ak)
    if authority is not None and ak is None:
        name, now = _name(ak_name), datetime.now(UTC)
        return files.parsed(authority, lambda raw: parse_authority(raw, now, name))
    raise ArgumentError("give either --ak, or --ak-ca and perhaps --ak-name")


def _name(text: str | None) -> bytes | None:
    try:
        name = bytes.fromhex(text) if text is not None else None
    except ValueError as error:
        raise ArgumentError("--ak-name is not hexadecimal") from error
    if name is not None and len(name) != 34:
        raise ArgumentError("--ak-name is not a TPM name: 68 hexadecimal digits")
    return name


def _print(result: Result) -> None:
    rows = [(check.step, "ok" if check.done else "-", check.detail) for check in result.checks]
    if rows:
        print_table(("STEP", "", "WHAT"), rows)
    if result.refusal is not None:
        typer.echo(f"{result.refusal.error}: {printable(result.refusal.what)}")
        for name in ("expected", "found", "hint"):
            value = getattr(result.refusal, name)
            if value:
                typer.echo(f"  {name}: {printable(value)}")
    for finding in result.findings:
        print_finding(finding)
    for what in result.not_proved:
        typer.echo(f"not proved: {printable(what)}")
    for source in result.sources:
        named = f" {printable(source.name)}" if source.name else ""
        typer.echo(f"{source.kind}{named}, version {source.version}: sha256:{source.sha256.hex()}")
    if result.host is not None:
        label = f" ({printable(result.host.label)})" if result.host.label else ""
        typer.echo(f"host: attestation key {result.host.ak_name.hex()}{label}")
    which = ""
    if result.facts is not None:
        which = f", run {result.facts.run}"
        if result.facts.ended is not None:
            which += f", ended: {printable(result.facts.ended)}"
        elif result.facts.first_seen:
            which += ", first seen"
    typer.echo(f"{result.verdict}: container {printable(result.container or '?')}{which}")

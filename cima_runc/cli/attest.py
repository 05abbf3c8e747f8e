"""``cima attest``, ``cima enroll`` and ``cima keygen``: keys, and evidence from the agent."""

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from cima_runc.base import limits
from cima_runc.base.errors import CimaError
from cima_runc.cli import context, files
from cima_runc.cli.app import group
from cima_runc.cli.output import note, print_json, wrote
from cima_runc.cli.records import called_alone, rows
from cima_runc.cli.remote import call_url
from cima_runc.evidence.enrolment import (
    Challenge,
    EnrolmentAnswer,
    EnrolmentRequest,
    Pending,
    parse,
)
from cima_runc.evidence.fields import Model
from cima_runc.evidence.models import parse_evidence
from cima_runc.evidence.owner import generate, public_text
from cima_runc.ml.listing import NoSuchContainerError
from cima_runc.runtime.agent_socket import call_agent

enroll_app = group("Enrol a host's attestation key: request, challenge, activate, accept.")

_TIMEOUT_SECONDS = 120.0
_Url = Annotated[str | None, typer.Option(help="Ask the agent at this https address.")]
_Ca = Annotated[Path | None, typer.Option(help="Authorities for --url (PEM).")]
_Cert = Annotated[Path | None, typer.Option(help="Our certificate for --url (PEM).")]
_Key = Annotated[Path | None, typer.Option(help="Its private key (PEM).")]
_Output = Annotated[Path, typer.Option("--output", "-o", help="File to write, - for stdout.")]


class ArgumentError(CimaError):
    """An option's value is not what it should be."""


def nonce_of(text: str) -> bytes:
    """Read a nonce's hexadecimal.

    Raises:
        ArgumentError: not hexadecimal, or too short or long.
    """
    try:
        nonce = bytes.fromhex(text)
    except ValueError as error:
        raise ArgumentError(
            "--nonce is not hexadecimal", hint="make one with: openssl rand -hex 32"
        ) from error
    if not limits.NONCE_MIN <= len(nonce) <= limits.NONCE_MAX:
        raise ArgumentError(
            f"--nonce has {len(nonce)} bytes, not {limits.NONCE_MIN} to {limits.NONCE_MAX}",
            hint="make one with: openssl rand -hex 32",
        )
    return nonce


def keygen(
    name: Annotated[Path, typer.Argument(help="Writes NAME.key and NAME.pub.")] = Path("owner"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Make an owner's key pair; evidence of his containers is encrypted to it."""
    if name.is_dir() or str(name).endswith(os.sep) or name.name in ("", ".", ".."):
        raise ArgumentError(f"{name} is a directory", hint=f"give a name in it: {name / 'owner'}")
    private, public = generate()
    text = public_text(public)
    files.write_secret(Path(f"{name}.key"), private)
    files.write(Path(f"{name}.pub"), text.encode("ascii") + b"\n")
    if as_json:
        print_json({"public": text, "private_file": f"{name}.key", "public_file": f"{name}.pub"})
    else:
        typer.echo(text)
    note(f"keep {name}.key; start containers with the annotation io.cima.owner={text}")


def attest(
    container: Annotated[str, typer.Argument(metavar="ID", help="Id, or how it begins.")],
    nonce: Annotated[str, typer.Option(help="The verifier's nonce, hexadecimal.")],
    host: Annotated[
        Literal["none", "redacted", "full"], typer.Option(help="How much of the host's log.")
    ] = "none",
    state: Annotated[
        Path | None,
        typer.Option(help="What cima verify remembers: ask only for what is new since then."),
    ] = None,
    boot_log: Annotated[bool, typer.Option(help="Include the firmware's event log.")] = False,
    output: _Output = Path("evidence.json"),
    tpm2_files: Annotated[
        Path | None, typer.Option(help="Also write files for tpm2_checkquote here.")
    ] = None,
    url: _Url = None,
    ca: _Ca = None,
    cert: _Cert = None,
    key: _Key = None,
) -> None:
    """Get evidence of a container."""
    since, sent = None, nonce_of(nonce)
    if url is None and (ca or cert or key):
        raise ArgumentError("--ca, --cert and --key go with --url", hint="give the agent's address")
    full_id = container if url is not None else _full_id(container)
    if state is not None:
        from cima_runc.verifier.state import StateDirectory

        since = StateDirectory(state).since_of(full_id)
    wanted: dict[str, Any] = {
        "boot_log": boot_log,
        "container": full_id,
        "host": host,
        "nonce": sent.hex(),
        "since": None if since is None else since.model_dump(mode="json"),
    }
    raw = _call("attest", "evidence", json.dumps(wanted).encode("ascii"), url, ca, cert, key)
    files.write(output, raw, private=True)
    wrote(output, f"the verifier: cima verify {output} --nonce {nonce} --ak ak.pem")
    if tpm2_files is not None:
        # Imports cryptography: only where it is wanted.
        from cima_runc.evidence.tools_files import write_tools_files

        note(f"in {tpm2_files}: {write_tools_files(parse_evidence(raw), tpm2_files)}")


@enroll_app.command(name="open")
def open_window(
    minutes: Annotated[float, typer.Option(help="For how long, at most 60.")] = 10.0,
) -> None:
    """Host: let verifiers enrol over HTTPS for a while; it is closed otherwise."""
    answer = _window(minutes)
    note(f"open for enrolment for {minutes:g} minutes")
    if not answer["https"]:
        note("the HTTPS endpoint is off: attestation.https.enabled in the settings")


@enroll_app.command(name="close")
def close_window() -> None:
    """Host: close it before its time."""
    _window(0)
    note("closed for enrolment")


def _window(minutes: float) -> dict[str, Any]:
    body = json.dumps({"minutes": minutes}).encode("ascii")
    socket = context.settings().shim.socket
    answer: dict[str, Any] = json.loads(
        call_agent(socket, "window", body, timeout=_TIMEOUT_SECONDS)
    )
    return answer


def _full_id(wanted: str) -> str:
    """Return the id of the container that is meant: a request is for one, by its whole id.

    An id, what the engine calls it, or the beginning of an id.

    Raises:
        NoSuchContainerError: none, or more than one.
    """
    settings = context.settings()
    shown = rows(settings, everything=False)
    if any(row["id"] == wanted for row in shown):
        return wanted
    containers = [row for row in shown if row["kind"] == "container"]
    beginning = {row["id"] for row in containers if wanted and row["id"].startswith(wanted)}
    found = called_alone(containers, wanted, settings) or beginning
    if len(found) == 1:
        return found.pop()
    if found:
        names = ", ".join(sorted(found)[:5])
        raise NoSuchContainerError(f"{wanted} may be {names}", hint="give more of the id")
    raise NoSuchContainerError(f"no container {wanted} is registered", hint="see cima ps")


@enroll_app.command()
def request(
    output: _Output = Path("host.json"),
    url: _Url = None,
    ca: _Ca = None,
    cert: _Cert = None,
    key: _Key = None,
) -> None:
    """Host: get the keys that the TPM shows, for the verifier."""
    files.write(output, _call("enrolment", "enrolment", None, url, ca, cert, key))
    wrote(output, f"the verifier: cima enroll challenge {output} --ek-ca manufacturers.pem")


@enroll_app.command()
def challenge(
    host: Annotated[Path, typer.Argument(help="The host's keys, from request.")],
    ek_ca: Annotated[
        Path | None, typer.Option(help="Certificates of TPM manufacturers (PEM, DER, PKCS #7).")
    ] = None,
    ek_chain: Annotated[
        Path | None, typer.Option(help="Certificates that lead to those of --ek-ca (the same).")
    ] = None,
    ek_certificate: Annotated[
        Path | None, typer.Option(help="The endorsement key's, where the TPM holds none.")
    ] = None,
    any_ek: Annotated[bool, typer.Option(help="Trust any TPM, a software TPM too.")] = False,
    pending: Annotated[Path, typer.Option(help="What accept needs; keep it secret.")] = Path(
        "pending.json"
    ),
    output: _Output = Path("challenge.json"),
) -> None:
    """Verifier: make a credential that only this TPM with this key can open."""
    from cima_runc.verifier.enrol import challenge as make
    from cima_runc.verifier.enrol import vouched

    if (ek_ca is None) != any_ek:
        raise ArgumentError("give either --ek-ca or --any-ek")
    if ek_ca is None and (ek_chain or ek_certificate):
        raise ArgumentError("--ek-chain and --ek-certificate go with --ek-ca")
    asked = parse(EnrolmentRequest, files.read(host), str(host))
    if ek_ca is None:
        made, kept = make(asked, None)
    else:
        trusted = files.read(ek_ca)
        between = files.read(ek_chain) if ek_chain is not None else b""
        own = files.read(ek_certificate) if ek_certificate is not None else None
        with files.about(*(path for path in (ek_ca, ek_chain, ek_certificate) if path)):
            tpm = vouched(asked, trusted, between=between, certificate=own)
        for line in tpm.passed_over:
            note(f"passed over: {line}")
        note(f"a TPM {tpm.model} of {tpm.manufacturer}, vouched for by: {' < '.join(tpm.path)}")
        made, kept = make(asked, trusted, between=between, certificate=own)
    files.write_secret(pending, _dump(kept))
    files.write(output, _dump(made))
    wrote(pending)
    wrote(output, f"the host: cima enroll activate {output}")


@enroll_app.command()
def activate(
    asked: Annotated[Path, typer.Argument(metavar="CHALLENGE", help="From challenge.")],
    output: _Output = Path("answer.json"),
    url: _Url = None,
    ca: _Ca = None,
    cert: _Cert = None,
    key: _Key = None,
) -> None:
    """Host: have the TPM open the credential."""
    body = _dump(parse(Challenge, files.read(asked), str(asked)))
    files.write(output, _call("activate", "activate", body, url, ca, cert, key))
    wrote(output, f"the verifier: cima enroll accept {output}")


@enroll_app.command()
def accept(
    answer: Annotated[Path, typer.Argument(help="From activate.")],
    pending: Annotated[Path, typer.Option(help="From challenge.")] = Path("pending.json"),
    output: _Output = Path("ak.pem"),
    certificate: Annotated[
        Path | None, typer.Option(help="Also write a certificate of the key here.")
    ] = None,
    authority: Annotated[
        Path | None, typer.Option(help="Who issues it: a certificate (PEM).")
    ] = None,
    authority_key: Annotated[Path | None, typer.Option(help="Its private key (PEM).")] = None,
    label: Annotated[str, typer.Option(help="What to call the host in results.")] = "",
    replace: Annotated[
        bool, typer.Option("--replace", help="Write over another host's key.")
    ] = False,
) -> None:
    """Verifier: check what was in the credential, and write the enrolled key."""
    from cima_runc.verifier.ak_certificate import issue
    from cima_runc.verifier.enrol import accept as take
    from cima_runc.verifier.enrolled import enrolled_ak_file

    given = parse(EnrolmentAnswer, files.read(answer), str(answer))
    kept = parse(Pending, files.read(pending), str(pending))
    public = take(given, kept)
    enrolled = enrolled_ak_file(public, label)
    if not replace:
        _refuse_to_replace(output, enrolled)
    if certificate is None and (authority or authority_key):
        raise ArgumentError("--authority and --authority-key go with --certificate")
    if certificate is not None:
        if authority is None or authority_key is None:
            raise ArgumentError("--certificate takes --authority and --authority-key")
        now = datetime.now(UTC)
        issuer, own = files.read(authority), files.read(authority_key)
        with files.about(authority, authority_key):
            made = issue(public, issuer, own, now, label)
        files.write(certificate, made)
    files.write(output, enrolled)
    wrote(output, f"cima verify EVIDENCE --ak {output}")


def _refuse_to_replace(output: Path, enrolled: bytes) -> None:
    """A key that is there already is the same host's, or somebody's whom results would be of."""
    from cima_runc.verifier.enrolled import EnrolledAkError, parse_enrolled_ak

    if str(output) == "-" or not output.exists():
        return
    ours = parse_enrolled_ak(enrolled)
    try:
        kept = parse_enrolled_ak(files.read(output))
        same = kept.spki == ours.spki and kept.name in (None, ours.name)
    except EnrolledAkError:
        same = False
    if not same:
        raise ArgumentError(
            f"{output} is there, and is not this host's key",
            hint="give another --output, or --replace",
        )


def _call(
    verb: str,
    route: str,
    body: bytes | None,
    url: str | None,
    ca: Path | None,
    certificate: Path | None,
    key: Path | None,
) -> bytes:
    if url is not None:
        return call_url(
            url, route, body, ca=ca, certificate=certificate, key=key, timeout=_TIMEOUT_SECONDS
        )
    if ca or certificate or key:
        raise ArgumentError("--ca, --cert and --key go with --url", hint="give the agent's address")
    socket = context.settings().shim.socket
    return call_agent(socket, verb, body or b"{}", timeout=_TIMEOUT_SECONDS)


def _dump(model: Model) -> bytes:
    return model.model_dump_json(exclude_none=True, indent=1).encode("ascii") + b"\n"

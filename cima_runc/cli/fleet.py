"""``cima fleet``: hosts, containers and verdicts of a fleet, from its service."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from cima_runc.base import limits
from cima_runc.base.errors import CimaError
from cima_runc.base.text import printable
from cima_runc.cli import files, fleet_client
from cima_runc.cli.app import group
from cima_runc.cli.fleet_client import Client, Row
from cima_runc.cli.output import CANNOT, note, print_json, print_table

app = group("A fleet of hosts, proved all the time: what its service knows.")
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_Limit = Annotated[int, typer.Option(min=1, help="Rows at most.")]
_Uid = Annotated[str, typer.Argument(metavar="UID", help="The service's name for it.")]
_Ak = Annotated[str, typer.Argument(metavar="AK", help="Name of the host's attestation key.")]
_Name = Annotated[str, typer.Argument(metavar="NAME", help="Its name.")]
_Labels = Annotated[
    list[str] | None, typer.Option("--label", metavar="KEY=VALUE", help="A label of the host.")
]
Verdict = Literal["TRUSTED", "UNTRUSTED", "STALE", "UNKNOWN"]


class FleetArgumentError(CimaError):
    """What was given is not what is wanted."""


@app.callback()
def _options(
    url: Annotated[
        str | None, typer.Option(help=f"Address of the service; else ${fleet_client.URL}.")
    ] = None,
    ca: Annotated[
        Path | None, typer.Option(help=f"Its authorities (PEM); else ${fleet_client.CA}.")
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option(help=f"File of your token; else ${fleet_client.TOKEN_FILE}.")
    ] = None,
) -> None:
    fleet_client.choose(url, ca, token_file)


def _part(name: str, about: str, shown: Callable[[bool], None]) -> typer.Typer:
    """Return a command that shows something, and has commands that change it."""
    part = group(about)
    part.info.invoke_without_command = True
    part.info.no_args_is_help = False

    @part.callback(invoke_without_command=True)
    def show_all(ctx: typer.Context, as_json: _Json = False) -> None:
        if ctx.invoked_subcommand is None:
            shown(as_json)

    app.add_typer(part, name=name)
    return part


def _print(
    rows: Sequence[Row], columns: Sequence[tuple[str, str]], as_json: bool, limit: int | None = None
) -> None:
    """Print rows; ``columns`` are heads and the keys of the rows."""
    if as_json:
        print_json(rows)
    else:
        table = [[_cell(row.get(key)) for _, key in columns] for row in rows]
        print_table([head for head, _ in columns], table)
    if limit is not None and len(rows) >= limit:
        note(f"there may be more than {limit}: --limit")


def _cell(value: Any) -> str:
    if value is None or value in ([], {}):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ",".join(f"{key}={each}" for key, each in value.items())
    if isinstance(value, list):
        return ",".join(str(each) for each in value)
    return str(value)


def _done(what: str, as_json: bool) -> None:
    if as_json:
        print_json({"done": what})
    else:
        note(printable(what))


def _made(made: str, as_json: bool) -> None:
    if as_json:
        print_json({"made": made})
    else:
        typer.echo(printable(str(made)))


def _secret(answer: Row, key: str, as_json: bool) -> None:
    if as_json:
        print_json({"uid": answer["uid"], "secret": answer[key]})
    else:
        typer.echo(printable(str(answer[key])))
        note("it is shown this once")


def _labels(given: Sequence[str] | None) -> dict[str, str]:
    labels = {}
    for one in given or ():
        key, separator, value = one.partition("=")
        if not separator or not key:
            raise FleetArgumentError(f"{one} is no label", hint="a label is KEY=VALUE")
        labels[key] = value
    return labels


# -- seeing ---------------------------------------------------------------------------------------


@app.command()
def overview(as_json: _Json = False) -> None:
    """Show how many containers have which verdict, and how fresh the hosts are."""
    found = Client().get("overview")
    if as_json:
        print_json(found)
        return
    rows = [(f"containers {verdict}", n) for verdict, n in found["containers"].items()]
    rows += [(f"hosts {freshness}", n) for freshness, n in found.get("hosts", {}).items()]
    if "enrolments_waiting" in found:
        rows.append(("hosts that wait for approval", found["enrolments_waiting"]))
    print_table(("WHAT", "COUNT"), rows)


@app.command()
def hosts(limit: _Limit = 100, as_json: _Json = False) -> None:
    """List hosts."""
    rows = Client().rows("hosts", limit, ("after", "ak_name"))
    columns = (
        ("AK", "ak_name"),
        ("NAME", "name"),
        ("REPORT", "freshness"),
        ("QUOTED", "quoted"),
        ("HARDWARE", "hardware_proved"),
        ("LABELS", "labels"),
        ("REFUSED", "refused"),
    )
    _print(rows, columns, as_json, limit)


@app.command()
def containers(
    *,
    verdict: Annotated[Verdict | None, typer.Option(help="Only with this verdict.")] = None,
    host: Annotated[str | None, typer.Option(help="Only of the host with this AK name.")] = None,
    name: Annotated[str | None, typer.Option(help="Only ids that begin so.")] = None,
    image: Annotated[str | None, typer.Option(help="Only of this image (its digest).")] = None,
    namespace: Annotated[str | None, typer.Option(help="Only of this Kubernetes one.")] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Those too that ended or are gone.")
    ] = False,
    limit: _Limit = 100,
    as_json: _Json = False,
) -> None:
    """List containers with their verdicts."""
    rows = Client().rows(
        "containers",
        limit,
        ("after", "uid"),
        verdict=verdict,
        host=host,
        name=name,
        image=image,
        namespace=namespace,
        everything=everything or None,
    )
    columns = (
        ("UID", "uid"),
        ("CONTAINER", "container"),
        ("VERDICT", "verdict"),
        ("SINCE", "since"),
        ("STATE", "state"),
        ("POLICY", "policy"),
        ("REFERENCE", "reference"),
        ("OBSERVED", "observed"),
    )
    shown = rows if as_json else [Row(row, container=str(row["container"])[:20]) for row in rows]
    _print(shown, columns, as_json, limit)


@app.command()
def show(
    what: Annotated[
        str, typer.Argument(metavar="WHAT", help="A container's UID or id, or a host's AK name.")
    ],
    as_json: _Json = False,
) -> None:
    """Show one container, findings first, or one host."""
    client = Client()
    if len(what) == 68 and all(digit in "0123456789abcdef" for digit in what):
        found = client.get("hosts", what)
        findings: list[Row] = []
    else:
        found = client.get("containers", _uid_of(client, what))
        findings = found["findings"]
    if as_json:
        print_json(found)
        return
    head = found.get("verdict", found.get("freshness"))
    typer.echo(f"{head}  {printable(found.get('why') or found.get('name') or '')}".rstrip())
    for one in findings:
        typer.echo(f"  {printable(one['severity'])} {printable(one['rule'])}: {_about(one)}")
        if one["next"]:
            typer.echo(f"       {printable(one['next'])}")
    left_out = {"verdict", "freshness", "why", "findings", "observed_findings", "verdicts"}
    rows = [(key, _cell(value)) for key, value in found.items() if key not in left_out]
    print_table(("KEY", "VALUE"), rows)
    for one in found.get("verdicts", ()):
        typer.echo(f"{one['time']}  {one['verdict']}  {printable(one['why'])}")


def _about(finding: Row) -> str:
    text = printable(str(finding["what"]))
    for key in ("path", "got", "expected"):
        if finding[key]:
            text += f"; {key} {printable(str(finding[key]))}"
    return text


def _uid_of(client: Client, what: str) -> str:
    """Return the uid of the container that a person means: its uid, or how its id begins."""
    rows = client.listed("containers", name=what, everything=True, limit=2)
    if len(rows) > 1:
        raise FleetArgumentError(
            f"more than one container's id begins with {what}",
            hint=f"cima fleet containers --all --name {what}, and give the UID",
        )
    if rows:
        return str(rows[0]["uid"])
    if 6 <= len(what) <= 24 and all(digit in "0123456789abcdef" for digit in what):
        return what
    raise FleetArgumentError(
        f"there is no container {what}", hint="cima fleet containers --all lists them"
    )


@app.command()
def records(
    uid: _Uid,
    since: Annotated[int, typer.Option(min=0, help="Number of the first record.")] = 0,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Rows at most.")] = 100,
    as_json: _Json = False,
) -> None:
    """List a container's proved records."""
    rows = Client().listed("containers", uid, "records", since=since, limit=limit)
    if as_json:
        print_json(rows)
        return
    print_table(
        ("PROVED", "RECORD", "TYPE", "CONTENT"),
        [
            (
                row["proved"],
                row["record"].get("recnum"),
                row["record"].get("content_type"),
                _cell(row["record"].get("content")),
            )
            for row in rows
        ],
    )


@app.command()
def find(
    what: Annotated[
        str, typer.Argument(metavar="DIGEST|PATH", help="SHA-256 of a file, or its path.")
    ],
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Rows at most.")] = 100,
    as_json: _Json = False,
) -> None:
    """Show where a file ever ran: by its digest, or by its path in the container."""
    digits = what.removeprefix("sha256:").lower()
    is_digest = len(digits) == 64 and all(digit in "0123456789abcdef" for digit in digits)
    query = {"digest": digits} if is_digest else {"path": what}
    rows = Client().listed("find", limit=limit, **query)
    columns = (
        ("UID", "uid"),
        ("CONTAINER", "container"),
        ("VERDICT", "verdict"),
        ("RECORD", "record"),
        ("PROVED", "proved"),
        ("DIGEST", "digest"),
        ("PATH", "path"),
    )
    _print(rows, columns, as_json, limit)


@app.command()
def events(
    kind: Annotated[str | None, typer.Option(help="Only of this kind.")] = None,
    host: Annotated[str | None, typer.Option(help="Only of the host with this AK name.")] = None,
    container: Annotated[str | None, typer.Option(help="Only of this container (UID).")] = None,
    limit: _Limit = 100,
    as_json: _Json = False,
) -> None:
    """List what happened, the latest first."""
    rows = Client().rows(
        "events", limit, ("before", "uid"), kind=kind, host=host, container=container
    )
    columns = (
        ("TIME", "time"),
        ("KIND", "kind"),
        ("CONTAINER", "container"),
        ("HOST", "host"),
        ("DATA", "data"),
    )
    _print(rows, columns, as_json, limit)


# -- hosts that join ------------------------------------------------------------------------------


@app.command()
def enrolments(as_json: _Json = False) -> None:
    """List the hosts that wait for a person."""
    columns = (
        ("UID", "uid"),
        ("NAME", "name"),
        ("AK", "ak_name"),
        ("HARDWARE", "hardware"),
        ("WHY", "reason"),
        ("SINCE", "created"),
    )
    _print(Client().listed("enrolments"), columns, as_json)


@app.command()
def approve(
    uid: _Uid,
    label: _Labels = None,
    without_ek_certificate: Annotated[
        bool, typer.Option("--without-ek-certificate", help="Take a TPM nobody vouches for.")
    ] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Take it in place of the host with the same TPM.")
    ] = False,
    as_json: _Json = False,
) -> None:
    """Let a waiting host join; compare its AK name with what the host itself says first."""
    body = {
        "labels": _labels(label),
        "without_ek_certificate": without_ek_certificate,
        "replace": replace,
    }
    answer = Client().send("POST", "enrolments", uid, "approve", body=body)
    if as_json:
        print_json(answer)
    else:
        typer.echo(printable(str(answer["ak_name"])))


@app.command()
def reject(uid: _Uid, as_json: _Json = False) -> None:
    """Refuse a waiting host."""
    Client().send("POST", "enrolments", uid, "refuse")
    _done(f"{uid} is refused", as_json)


@app.command()
def label(ak: _Ak, label: _Labels = None, as_json: _Json = False) -> None:
    """Give a host other labels, in place of those it has."""
    Client().send("PUT", "hosts", ak, "labels", body={"labels": _labels(label)})
    _done(f"{ak} is labelled", as_json)


@app.command()
def remove(ak: _Ak, as_json: _Json = False) -> None:
    """Take a host out of the fleet; to come back it must be enrolled anew."""
    Client().send("DELETE", "hosts", ak)
    _done(f"{ak} is removed", as_json)


# -- references and policies ----------------------------------------------------------------------


def _references(as_json: bool) -> None:
    columns = (
        ("NAME", "name"),
        ("VERSION", "version"),
        ("KIND", "kind"),
        ("IMAGE", "image"),
        ("BY", "created_by"),
        ("RETIRED", "retired"),
    )
    _print(Client().listed("references"), columns, as_json)


references = _part("references", "Reference values: list them, add, retire.", _references)


@references.command("add")
def add_reference(
    name: _Name,
    path: Annotated[Path, typer.Argument(metavar="FILE", help="What cima reference wrote.")],
    as_json: _Json = False,
) -> None:
    """Make the next version of reference values; earlier ones are not used any more."""
    raw = files.read(path, limit=limits.REFERENCE)
    _made(Client().send("PUT", "references", name, body=raw)["reference"], as_json)


@references.command("retire")
def retire_reference(name: _Name, as_json: _Json = False) -> None:
    """Withdraw reference values: what was TRUSTED by them is so no more."""
    Client().send("DELETE", "references", name)
    _done(f"{name} is retired", as_json)


def _policies(as_json: bool) -> None:
    columns = (
        ("NAME", "name"),
        ("VERSION", "version"),
        ("CONTAINERS", "containers"),
        ("CREATED", "created"),
        ("BY", "created_by"),
        ("SHA256", "sha256"),
    )
    _print(Client().listed("policies"), columns, as_json)


policies = _part("policies", "Policies: list them, add, assign, compare.", _policies)


@policies.command("add")
def add_policy(
    name: _Name,
    path: Annotated[Path, typer.Argument(metavar="FILE", help="The policy (TOML).")],
    as_json: _Json = False,
) -> None:
    """Make the next version of a policy; it takes effect wherever the policy is assigned."""
    _made(Client().send("PUT", "policies", name, body=files.read(path))["policy"], as_json)


@policies.command("diff")
def diff(
    name: _Name,
    path: Annotated[Path, typer.Argument(metavar="FILE", help="The policy (TOML).")],
    as_json: _Json = False,
) -> None:
    """Show which verdicts a new version of a policy would change; nothing is changed."""
    found = Client().send("POST", "policies", name, "diff", body=files.read(path))
    if as_json:
        print_json(found)
        return
    columns = (
        ("UID", "uid"),
        ("CONTAINER", "container"),
        ("NOW", "before"),
        ("THEN", "after"),
        ("WHY", "why"),
    )
    _print(found["changes"], columns, as_json=False)
    note(f"{len(found['changes'])} of {found['containers']} containers")
    if found["left_out"]:
        note(f"{found['left_out']} more were not looked at: there was no time")


@policies.command("assign")
def assign(
    name: _Name,
    *,
    mode: Annotated[
        Literal["enforce", "observe"],
        typer.Option(help="enforce: its verdict goes; observe: it is shown beside."),
    ] = "enforce",
    image: Annotated[
        str | None, typer.Option(help="Only of this image: its digest, or a reference's name.")
    ] = None,
    owner: Annotated[str | None, typer.Option(help="Only with this owner's key.")] = None,
    namespace: Annotated[str | None, typer.Option(help="Only of this Kubernetes one.")] = None,
    label: _Labels = None,
    image_reference: Annotated[
        str | None, typer.Option(help="Reference values that they must be as.")
    ] = None,
    host_reference: Annotated[
        str | None, typer.Option(help="Reference values of the host's services.")
    ] = None,
    as_json: _Json = False,
) -> None:
    """Assign a policy to containers, without options to all; the narrowest assignment goes."""
    match: dict[str, Any] = {
        key: value
        for key, value in (("image", image), ("owner", owner), ("namespace", namespace))
        if value is not None
    }
    if label:
        match["label"] = _labels(label)
    body = {
        "policy": name,
        "match": match,
        "mode": mode,
        "image_reference": image_reference,
        "host_reference": host_reference,
    }
    _made(Client().send("POST", "assignments", body=body)["uid"], as_json)


@policies.command("assignments")
def assignments(as_json: _Json = False) -> None:
    """List which containers which policy is for."""
    columns = (
        ("UID", "uid"),
        ("POLICY", "policy"),
        ("MODE", "mode"),
        ("MATCH", "match"),
        ("IMAGE-REFERENCE", "image_reference"),
        ("HOST-REFERENCE", "host_reference"),
    )
    _print(Client().listed("assignments"), columns, as_json)


@policies.command("unassign")
def unassign(uid: _Uid, as_json: _Json = False) -> None:
    """Take an assignment back."""
    Client().send("DELETE", "assignments", uid)
    _done(f"{uid} is taken back", as_json)


# -- audit ----------------------------------------------------------------------------------------


def _audit(as_json: bool) -> None:
    rows = Client().rows("audit", 1000, ("before", "number"))
    columns = (
        ("NUMBER", "number"),
        ("TIME", "time"),
        ("WHO", "actor"),
        ("ACTION", "action"),
        ("SUBJECT", "subject"),
        ("DETAIL", "detail"),
    )
    _print(rows, columns, as_json, 1000)


audit = _part("audit", "What persons changed: list it (the last 1000), verify.", _audit)


@audit.command("verify")
def verify_audit(
    head: Annotated[
        str | None, typer.Option(help="Digest of an entry that was kept: it must be there.")
    ] = None,
    as_json: _Json = False,
) -> None:
    """Walk along the chain of audit entries. 0: it holds, 2: it does not."""
    client = Client()
    found = client.get("audit", "verify")
    if as_json:
        print_json(found)
    if found["broken"] is not None:
        note(f"entry {found['broken']} does not fit to those before it: it was changed, or removed")
        sys.exit(CANNOT)
    if head is not None and not _has_digest(client, head):
        note("no entry has this digest: the log was written anew, or cut off before it")
        sys.exit(CANNOT)
    if not as_json:
        typer.echo(f"{found['entries']} entries; the last one's digest is {found['head']}")


def _has_digest(client: Client, digest: str) -> bool:
    before: int | None = None
    while rows := client.listed("audit", before=before, limit=1000):
        if any(row["digest"] == digest for row in rows):
            return True
        before = rows[-1]["number"]
    return False


# -- tokens, tenants, webhooks --------------------------------------------------------------------


def _tokens(as_json: bool) -> None:
    columns = (
        ("UID", "uid"),
        ("NAME", "name"),
        ("ROLE", "role"),
        ("TENANT", "tenant"),
        ("EXPIRES", "expires"),
        ("REVOKED", "revoked"),
    )
    _print(Client().listed("tokens"), columns, as_json)


tokens = _part("tokens", "Tokens of people and programs: list them, add, revoke.", _tokens)


@tokens.command("add")
def add_token(
    name: _Name,
    *,
    role: Annotated[
        Literal["viewer", "operator", "admin", "tenant"], typer.Option(help="What it may do.")
    ] = "viewer",
    tenant: Annotated[str | None, typer.Option(help="Whose it is, for the role tenant.")] = None,
    days: Annotated[float | None, typer.Option(help="How long it is good.")] = None,
    as_json: _Json = False,
) -> None:
    """Make a token, and print it."""
    body = {"name": name, "role": role, "tenant": tenant, "days": days}
    _secret(Client().send("POST", "tokens", body=body), "token", as_json)


@tokens.command("revoke")
def revoke_token(uid: _Uid, as_json: _Json = False) -> None:
    """Revoke a token."""
    Client().send("DELETE", "tokens", uid)
    _done(f"{uid} is revoked", as_json)


def _join_tokens(as_json: bool) -> None:
    columns = (
        ("UID", "uid"),
        ("LABELS", "labels"),
        ("EXPIRES", "expires"),
        ("USED", "used"),
        ("VOID", "void"),
    )
    _print(Client().listed("join-tokens"), columns, as_json)


join_tokens = _part("join-tokens", "Tokens for hosts that join: list, add, void.", _join_tokens)


@join_tokens.command("add")
def add_join_token(
    *,
    label: _Labels = None,
    hours: Annotated[float, typer.Option(help="How long it is good.")] = 1.0,
    without_ek_certificate: Annotated[
        bool, typer.Option("--without-ek-certificate", help="Take a TPM nobody vouches for.")
    ] = False,
    as_json: _Json = False,
) -> None:
    """Make a token that lets one host join, and print it."""
    body = {
        "labels": _labels(label),
        "hours": hours,
        "without_ek_certificate": without_ek_certificate,
    }
    _secret(Client().send("POST", "join-tokens", body=body), "token", as_json)


@join_tokens.command("void")
def void_join_token(uid: _Uid, as_json: _Json = False) -> None:
    """Make a token void."""
    Client().send("DELETE", "join-tokens", uid)
    _done(f"{uid} is void", as_json)


def _tenants(as_json: bool) -> None:
    _print(Client().listed("tenants"), (("NAME", "name"), ("KEYS", "keys")), as_json)


tenants = _part("tenants", "Tenants: list them, add.", _tenants)


@tenants.command("add")
def add_tenant(
    name: _Name,
    key: Annotated[list[str] | None, typer.Option(help="An owner's public key.")] = None,
    as_json: _Json = False,
) -> None:
    """Make a tenant, or give one more keys."""
    Client().send("PUT", "tenants", name, body={"keys": key or []})
    _done(f"{name} is a tenant", as_json)


def _grants(as_json: bool) -> None:
    columns = (
        ("UID", "uid"),
        ("TENANT", "tenant"),
        ("POLICY", "policy"),
        ("AUDIENCE", "audience"),
    )
    _print(Client().listed("token-grants"), columns, as_json)


grants = _part("grants", "What containers' tokens may be for: list, add, remove.", _grants)


@grants.command("add")
def add_grant(
    policy: Annotated[str, typer.Argument(help="The policy that trusts the containers.")],
    audience: Annotated[str, typer.Argument(help="Who takes the tokens: their aud.")],
    tenant: Annotated[
        str | None, typer.Option(help="Whose containers; none: those of no owner's key.")
    ] = None,
    as_json: _Json = False,
) -> None:
    """Allow tokens for an audience, for containers that a policy trusts."""
    body = {"policy": policy, "audience": audience, "tenant": tenant}
    found = Client().send("POST", "token-grants", body=body)
    if as_json:
        print_json(found)
    else:
        typer.echo(f"{found['uid']} is allowed")


@grants.command("remove")
def remove_grant(uid: _Uid, as_json: _Json = False) -> None:
    """Allow it no more: tokens that are out are inactive."""
    Client().send("DELETE", "token-grants", uid)
    _done(f"{uid} is removed", as_json)


@app.command("token")
def workload_token(
    uid: Annotated[str, typer.Argument(help="The container's UID.")],
    *,
    audience: Annotated[str, typer.Option(help="Who will take the token.")],
    nonce: Annotated[
        list[str] | None, typer.Option(help="Nonce of who will take it (base64url).")
    ] = None,
    profile: Annotated[Literal["eat", "ear"], typer.Option(help="Its form.")] = "eat",
    seconds: Annotated[int, typer.Option(help="How long it is good.")] = 300,
    as_json: _Json = False,
) -> None:
    """Have a token made for a container that is TRUSTED, and print it."""
    body = {"audience": audience, "nonces": nonce or [], "profile": profile, "seconds": seconds}
    answer = Client(seconds=130.0).send("POST", "containers", uid, "tokens", body=body)
    if as_json:
        print_json(answer)
    else:
        typer.echo(printable(str(answer["token"])))


def _webhooks(as_json: bool) -> None:
    columns = (
        ("UID", "uid"),
        ("URL", "url"),
        ("KINDS", "kinds"),
        ("DELIVERED", "delivered"),
        ("WAITING", "waiting"),
        ("GIVEN-UP", "given_up"),
    )
    _print(Client().listed("webhooks"), columns, as_json)


webhooks = _part("webhooks", "Where events are sent: list, add, remove.", _webhooks)


@webhooks.command("add")
def add_webhook(
    url: Annotated[str, typer.Argument(help="Where to send events (https).")],
    kind: Annotated[list[str] | None, typer.Option(help="Only events of this kind.")] = None,
    as_json: _Json = False,
) -> None:
    """Add a webhook, and print the secret that its signatures are checked with."""
    answer = Client().send("POST", "webhooks", body={"url": url, "kinds": kind or []})
    _secret(answer, "secret", as_json)


@webhooks.command("remove")
def remove_webhook(uid: _Uid, as_json: _Json = False) -> None:
    """Remove a webhook."""
    Client().send("DELETE", "webhooks", uid)
    _done(f"{uid} is removed", as_json)


@webhooks.command("failed")
def failed_deliveries(as_json: _Json = False) -> None:
    """List events that webhooks did not take yet."""
    columns = (
        ("EVENT", "event"),
        ("KIND", "kind"),
        ("WEBHOOK", "webhook"),
        ("ATTEMPTS", "attempts"),
        ("DUE", "due"),
        ("ERROR", "error"),
    )
    _print(Client().listed("deliveries"), columns, as_json)

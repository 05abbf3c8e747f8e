"""Whether a container is given a token, and whether one that was given still holds.

A verdict is read while its host's row is held, by the policy and reference of now. What a token may
be for is said by an administrator: an audience, for a tenant's containers of one policy, and the
policy must name what a stranger could else choose. Source: fleet, section 6.
"""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, delete, insert, select

from cima_runc.base.errors import CimaError
from cima_runc.fleet import audit, changes, clock, events, hosts, issuer, verdicts, work
from cima_runc.fleet.claims import Profile, Subject, Times, claims
from cima_runc.fleet.queries import NoSuchThingError, is_tenants
from cima_runc.fleet.schema import (
    Appraisal,
    Container,
    Finding,
    Host,
    IssuedToken,
    Job,
    Owner,
    Policy,
    Tenant,
    TokenGrant,
    new_uid,
    table_of,
)
from cima_runc.fleet.values import Choice, Choosing
from cima_runc.verifier.errors import Verdict
from cima_runc.verifier.policy import parse_policy

OPERATOR = "operator"
"""In the place of a tenant's name: of containers that no owner's key is of."""
_CONTAINER, _HOST, _GRANT = table_of(Container), table_of(Host), table_of(TokenGrant)
_ISSUED = table_of(IssuedToken)
_NAMED = frozenset({"args", "mounts", "env"})


class NotIssuedError(CimaError):
    """The container is given no token."""


class NotFreshError(NotIssuedError):
    """No quote is known whose nonce was made after the request: it may come."""


@dataclass(frozen=True)
class Asked:
    """What somebody asks for."""

    uid: str
    """The container's."""
    audience: str
    profile: Profile
    seconds: int
    nonces: Sequence[str]
    time: int
    """When it was asked, milliseconds since 1970."""


# -- what an administrator allows -----------------------------------------------------------------


def grant(
    connection: Connection, actor: str, tenant: str | None, policy: str, audience: str
) -> str:
    """Allow tokens for an audience, for a tenant's containers (None: those of no owner's key) that
    are trusted by a policy; return the grant's name.

    Raises:
        NotFoundError: there is no such tenant or policy.
        ChangeError: the policy does not name what a stranger could else choose, or it is allowed.
    """
    number = changes.tenant_number(connection, tenant) if tenant is not None else None
    table = table_of(Policy)
    content = connection.execute(
        select(table.c.content)
        .where(table.c.name == policy)
        .order_by(table.c.version.desc())
        .limit(1)
    ).scalar()
    if content is None:
        raise changes.NotFoundError(f"there is no such policy {policy}", hint="cima fleet policies")
    if missing := _not_named(content):
        raise changes.ChangeError(
            f"the policy does not say which {', '.join(missing)} a container may have",
            hint="in its [config]: args, mounts and env, and not allow_any_args",
        )
    if _grants(connection, number, policy, audience):
        raise changes.ChangeError("this is allowed already")
    uid = new_uid()
    connection.execute(
        insert(_GRANT).values(
            uid=uid,
            tenant=number,
            policy=policy,
            audience=audience,
            created=clock.now(),
            created_by=actor,
        )
    )
    detail = {"tenant": tenant, "policy": policy, "audience": audience}
    audit.note(connection, actor, "token-grant.add", uid, detail)
    return uid


def withdraw(connection: Connection, actor: str, uid: str) -> None:
    """Allow it no more: nothing is issued by it, and what was is inactive.

    Raises:
        NotFoundError: there is no such grant.
    """
    done = connection.execute(delete(_GRANT).where(_GRANT.c.uid == uid))
    if not done.rowcount:
        raise changes.NotFoundError("there is no such grant", hint="cima fleet grants")
    audit.note(connection, actor, "token-grant.remove", uid, {})


def _not_named(content: str) -> list[str]:
    config = parse_policy(content.encode("utf-8", "surrogatepass")).config
    missing = set(_NAMED - config.model_fields_set)
    if config.allow_any_args:
        missing.add("args")
    return sorted(missing)


def _grants(connection: Connection, tenant: int | None, policy: str, audience: str) -> bool:
    is_whose = _GRANT.c.tenant.is_(None) if tenant is None else _GRANT.c.tenant == tenant
    found = connection.execute(
        select(_GRANT.c.id).where(
            is_whose, _GRANT.c.policy == policy, _GRANT.c.audience == audience
        )
    ).first()
    return found is not None


# -- issuing --------------------------------------------------------------------------------------


def issue(
    connection: Connection, asked: Asked, tenant: int | None, *, url: str, limit: int
) -> tuple[str, int]:
    """Return a token and when it ends (seconds since 1970).

    ``tenant`` is who asks, None for the operator; ``url`` is the issuer's; ``limit`` is how many
    seconds after a quote its tokens end.

    Raises:
        NoSuchThingError: there is no such container, or it is another's.
        NotFreshError: with nonces, a quote is wanted that was made for a later report.
        NotIssuedError: it is given none, and why.
    """
    host, container = _locked(connection, asked.uid, tenant)
    now = clock.now()
    choice = _trusted(connection, host, container, now)
    who = _tenant(connection, container, tenant)
    policy = choice.policy_name.partition("@")[0]
    if not _grants(connection, tenant, policy, asked.audience):
        raise NotIssuedError(
            "tokens for this audience are not allowed by the container's policy",
            hint="an administrator allows it: cima fleet grants add",
        )
    quoted: int = host["quoted"]
    if not _is_late_enough(asked, quoted):
        raise NotFreshError("no report came since you asked", hint="ask again")
    issued = now // 1000
    ends = min(issued + min(asked.seconds, issuer.LONGEST), quoted // 1000 + limit)
    if ends <= issued:
        raise NotIssuedError("its last report is too old", hint="ask again after its next")
    assert choice.reference_name is not None and choice.image is not None
    subject = Subject(
        tenant=who,
        policy=choice.policy_name,
        reference=choice.reference_name,
        image=choice.image,
        container=container["name"],
        registration=container["registration"],
        line=container["line"],
        run=container["run"],
        records=container["confirmed"],
        cpcr=container["cpcr"],
        ak_name=bytes.fromhex(host["ak_name"]),
        hardware=bool(host["hardware"]),
        quoted=quoted,
    )
    token_id = secrets.token_urlsafe(16)
    finding = table_of(Finding).c
    warned = connection.execute(
        select(finding.rule)
        .where(
            finding.container == container["id"],
            finding.mode == "enforce",
            finding.severity == "warn",
        )
        .distinct()
    ).scalars()
    made = claims(
        asked.profile,
        subject,
        Times(issued, ends),
        issuer=url,
        audience=asked.audience,
        token_id=token_id,
        nonces=asked.nonces,
        warned=set(warned),
    )
    token = issuer.sign(connection, asked.profile, made)
    connection.execute(
        insert(_ISSUED).values(
            jti=token_id,
            container=container["id"],
            tenant=tenant,
            audience=asked.audience,
            policy=choice.policy_name,
            issued=issued * 1000,
            expires=ends * 1000,
        )
    )
    data = {"audience": asked.audience, "jti": token_id, "profile": asked.profile.value}
    kind = events.Kind.ISSUED
    events.tell(connection, kind, data, host=host["id"], container=container["id"], now=now)
    return token, ends


def may_be_fresh(connection: Connection, asked: Asked) -> bool:
    """Whether a report has come that :func:`issue` waits for; it changes and holds nothing."""
    quoted = connection.execute(
        select(_HOST.c.quoted)
        .join(_CONTAINER, _CONTAINER.c.host == _HOST.c.id)
        .where(_CONTAINER.c.uid == asked.uid)
    ).scalar()
    return quoted is None or _is_late_enough(asked, quoted)


def _is_late_enough(asked: Asked, quoted: int) -> bool:
    return not asked.nonces or quoted > asked.time + verdicts.SKEW


def _locked(
    connection: Connection, uid: str, tenant: int | None
) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return a container's host, which nobody else changes now, and the container."""
    mine = (_CONTAINER.c.uid == uid, _CONTAINER.c.kind == "container", is_tenants(tenant))
    ak_name = connection.execute(
        select(_HOST.c.ak_name).join(_CONTAINER, _CONTAINER.c.host == _HOST.c.id).where(*mine)
    ).scalar()
    if ak_name is None:
        raise NoSuchThingError("there is no such container", hint="cima fleet containers")
    try:
        host = hosts.lock(connection, ak_name)
    except hosts.UnknownHostError:
        raise NotIssuedError("its host is not enrolled any more") from None
    row = connection.execute(select(_CONTAINER).where(*mine)).mappings().one()
    return host, dict(row)


def _trusted(
    connection: Connection, host: Mapping[str, Any], container: Mapping[str, Any], now: int
) -> Choice:
    """Return what a container is TRUSTED by, now.

    Raises:
        NotIssuedError: it is not.
    """
    deadline = verdicts.deadline_of(container, host, now)
    # Of what has ended there is a verdict, and no token.
    if container["has_ended"] or container["slot"] is None:
        raise NotIssuedError("the container has ended")
    verdict = verdicts.effective(container["verdict"], deadline, has_ended=False, now=now)
    if verdict is not Verdict.TRUSTED:
        raise NotIssuedError(f"the container is {verdict.value}", hint="see its findings")
    choices = Choosing(connection, [container["id"]]).of(container, host["labels"])
    for choice in choices.get("enforce", ()):
        by = (choice.policy_name, choice.reference_name)
        if by == (container["policy"], container["reference"]) and choice.image is not None:
            break
    else:
        raise NotIssuedError("its policy or reference is another now", hint="ask again")
    if _waits(connection, container, choice):
        raise NotIssuedError("it is to be appraised by other values", hint="ask again")
    if not {"label", "image"} <= choice.names:
        raise NotIssuedError(
            "its policy is not assigned by host label and image",
            hint="cima fleet policies assign, with --label and --image",
        )
    table = table_of(Policy).c
    content = connection.execute(
        select(table.content).where(table.id == choice.policy)
    ).scalar_one()
    if missing := _not_named(content):
        raise NotIssuedError(f"its policy does not say which {', '.join(missing)} it may have")
    return choice


def _waits(connection: Connection, container: Mapping[str, Any], choice: Choice) -> bool:
    """Whether a container waits to be appraised by these values: the host's among them may be
    others by now, which its row does not name.

    By another version of this program they are called otherwise; then no work waits.
    """
    appraised, job = table_of(Appraisal).c, table_of(Job).c
    identity = connection.execute(
        select(appraised["values"]).where(
            appraised.container == container["id"], appraised.mode == "enforce"
        )
    ).scalar()
    if identity == choice.identity:
        return False
    subjects = ("all", str(container["host"]))
    waiting = select(job.id).where(job.kind == work.REAPPRAISE, job.subject.in_(subjects))
    return connection.execute(waiting).first() is not None


def _tenant(connection: Connection, container: Mapping[str, Any], tenant: int | None) -> str:
    if tenant is not None:
        table = table_of(Tenant).c
        name = connection.execute(select(table.name).where(table.id == tenant)).scalar_one()
        if name == OPERATOR:
            raise NotIssuedError("the tenant is called as the operator is in tokens")
        return str(name)
    owner = table_of(Owner).c
    if connection.execute(select(owner.key).where(owner.container == container["id"])).first():
        raise NotIssuedError("the container has an owner: its tenant asks for tokens")
    return OPERATOR


# -- introspection --------------------------------------------------------------------------------


def introspect(connection: Connection, token: str, tenant: int | None) -> dict[str, Any]:
    """Return what RFC 7662 says of a token: its claims, or that it is not active.

    It is not where its container is not TRUSTED now, or by another policy, or the audience is not
    allowed any more. ``tenant`` is who asks, None for who may see all.
    """
    found = issuer.read(connection, token)
    inactive = {"active": False}
    if found is None:
        return inactive
    now = clock.now()
    row = connection.execute(
        select(_ISSUED, _CONTAINER.c.uid)
        .join(_CONTAINER, _CONTAINER.c.id == _ISSUED.c.container)
        .where(_ISSUED.c.jti == str(found.get("jti")), _ISSUED.c.expires > now)
    ).first()
    if row is None or (tenant is not None and row.tenant != tenant):
        return inactive
    host = (
        connection.execute(
            select(_HOST)
            .join(_CONTAINER, _CONTAINER.c.host == _HOST.c.id)
            .where(_CONTAINER.c.id == row.container)
        )
        .mappings()
        .one()
    )
    container = (
        connection.execute(select(_CONTAINER).where(_CONTAINER.c.id == row.container))
        .mappings()
        .one()
    )
    try:
        choice = _trusted(connection, dict(host), dict(container), now)
    except NotIssuedError:
        return inactive
    name, _, _ = row.policy.partition("@")
    same = choice.policy_name.partition("@")[0] == name
    if not same or not _grants(connection, row.tenant, name, row.audience):
        return inactive
    return {"active": True, "token_type": "urn:ietf:params:oauth:token-type:jwt", **found}

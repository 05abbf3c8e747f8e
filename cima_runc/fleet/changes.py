"""What persons change: policies, references, assignments, webhooks, tokens, tenants, hosts.

Each is an entry of the audit log, in the same transaction; what containers are appraised with has
them appraised again in the background. Source: fleet, section 5.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import zstandard
from sqlalchemy import Connection, func, insert, select, update

from cima_runc.base import limits
from cima_runc.base.errors import CimaError
from cima_runc.evidence.owner import parse_public
from cima_runc.fleet import access, audit, clock, events, webhooks, work
from cima_runc.fleet.access import Role
from cima_runc.fleet.labels import checked_labels
from cima_runc.fleet.schema import (
    ApiToken,
    Appraisal,
    Assignment,
    Container,
    Delivery,
    Event,
    Host,
    JoinToken,
    Policy,
    Reference,
    ReferenceLayer,
    Tenant,
    TenantKey,
    Webhook,
    new_uid,
    table_of,
)
from cima_runc.fleet.values import keys_of
from cima_runc.verifier.policy import parse_policy
from cima_runc.verifier.reference.file import ImageReference, parse_reference

_NAME = re.compile(r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?")
_DAY = 86_400_000
_MATCHES = frozenset({"image", "owner", "label", "namespace"})


class ChangeError(CimaError):
    """What is to be changed cannot be."""


class NotFoundError(CimaError):
    """There is no such thing."""


def add_policy(connection: Connection, actor: str, name: str, text: str) -> str:
    """Make the next version of a policy (TOML); return ``name@version``.

    Raises:
        ChangeError, PolicyError: the name or the policy is not one.
    """
    _check_name(name)
    parse_policy(text.encode("utf-8", "surrogatepass"))
    table = table_of(Policy)
    version = _next_version(connection, table, name)
    digest = hashlib.sha256(text.encode("utf-8")).hexdigest()
    connection.execute(
        insert(table).values(
            uid=new_uid(),
            name=name,
            version=version,
            sha256=digest,
            content=text,
            created=clock.now(),
            created_by=actor,
        )
    )
    made = f"{name}@{version}"
    audit.note(connection, actor, "policy.add", made, {"sha256": digest})
    work.later(connection, work.REAPPRAISE, "all")
    return made


@dataclass(frozen=True)
class NewReference:
    """A file of reference values, as it is written down."""

    kind: str
    image: str | None
    """Digest of the image's configuration."""
    sha256: str
    content: bytes
    """zstd."""
    layers: tuple[str, ...]
    """The keys that containers of the image may have."""


def new_reference(raw: bytes) -> NewReference:
    """Read a file of reference values. In no transaction: it may have 100 MB.

    Raises:
        ReferenceFileError: it is none.
    """
    found = parse_reference(raw)
    image = found if isinstance(found, ImageReference) else None
    return NewReference(
        kind=found.kind,
        image=image.image_id if image is not None else None,
        sha256=hashlib.sha256(raw).hexdigest(),
        content=zstandard.ZstdCompressor(level=9).compress(raw),
        layers=tuple(sorted(keys_of(image))) if image is not None else (),
    )


def add_reference(
    connection: Connection, actor: str, name: str, given: NewReference | bytes
) -> str:
    """Make the next version of reference values; earlier ones are not used any more.

    Raises:
        ChangeError, ReferenceFileError: the name or the file is not one.
    """
    _check_name(name)
    new = new_reference(given) if isinstance(given, bytes) else given
    table = table_of(Reference)
    version, now = _next_version(connection, table, name), clock.now()
    connection.execute(
        update(table).where(table.c.name == name, table.c.retired.is_(None)).values(retired=now)
    )
    made = connection.execute(
        insert(table).values(
            uid=new_uid(),
            name=name,
            version=version,
            kind=new.kind,
            image=new.image,
            sha256=new.sha256,
            content=new.content,
            created=now,
            created_by=actor,
        )
    ).inserted_primary_key
    assert made is not None
    if new.layers:
        connection.execute(
            insert(table_of(ReferenceLayer)),
            [{"reference": made[0], "key": key} for key in new.layers],
        )
    named = f"{name}@{version}"
    audit.note(connection, actor, "reference.add", named, {"sha256": new.sha256, "kind": new.kind})
    work.later(connection, work.REAPPRAISE, "all")
    return named


def retire_reference(connection: Connection, actor: str, name: str) -> None:
    """Withdraw reference values: containers are not compared with them any more.

    Raises:
        NotFoundError: there are none of this name.
    """
    table = table_of(Reference)
    done = connection.execute(
        update(table)
        .where(table.c.name == name, table.c.retired.is_(None))
        .values(retired=clock.now())
    )
    _must(done.rowcount, f"reference values {name}", "references")
    audit.note(connection, actor, "reference.retire", name, {})
    work.later(connection, work.REAPPRAISE, "all")


def assign(
    connection: Connection,
    actor: str,
    policy: str,
    match: Mapping[str, Any],
    *,
    mode: Literal["enforce", "observe"] = "enforce",
    image_reference: str | None = None,
    host_reference: str | None = None,
) -> str:
    """Assign a policy to the containers that ``match``; return the assignment's name.

    ``match`` has any of ``image`` (digest of its configuration, or name of reference values),
    ``owner`` (public key), ``namespace``, ``label`` ({key: value} of the host); all must fit.

    Raises:
        ChangeError, LabelsError, OwnerError: it is not well formed.
        NotFoundError: there is no such policy, or reference values.
    """
    _check_match(match)
    table = table_of(Policy)
    _must(_count(connection, table, table.c.name == policy), f"policy {policy}", "policies")
    reference = table_of(Reference)
    for name in (image_reference, host_reference):
        if name is not None:
            is_there = (reference.c.name == name) & reference.c.retired.is_(None)
            _must(_count(connection, reference, is_there), f"reference values {name}", "references")
    uid = new_uid()
    connection.execute(
        insert(table_of(Assignment)).values(
            uid=uid,
            policy=policy,
            mode=mode,
            match=dict(match),
            image_reference=image_reference,
            host_reference=host_reference,
            created=clock.now(),
            created_by=actor,
        )
    )
    detail = {"match": dict(match), "mode": mode, "assignment": uid}
    audit.note(connection, actor, "policy.assign", policy, detail)
    work.later(connection, work.REAPPRAISE, "all")
    return uid


def unassign(connection: Connection, actor: str, uid: str) -> None:
    """Take an assignment back.

    Raises:
        NotFoundError: there is none of this name.
    """
    table = table_of(Assignment)
    row = connection.execute(select(table).where(table.c.uid == uid)).mappings().first()
    _must(row is not None, "assignment", "policies assignments")
    assert row is not None
    connection.execute(table.delete().where(table.c.uid == uid))
    detail = {"match": row["match"], "mode": row["mode"], "assignment": uid}
    audit.note(connection, actor, "policy.unassign", row["policy"], detail)
    work.later(connection, work.REAPPRAISE, "all")


def make_join_token(
    connection: Connection,
    actor: str,
    *,
    labels: Mapping[str, str] | None = None,
    hours: float = 1.0,
    without_ek_certificate: bool = False,
) -> tuple[str, str]:
    """Make a token that lets one host join; return its name and the token itself.

    Raises:
        LabelsError, ChangeError: labels or hours are not such as can be.
    """
    given = checked_labels(labels or {})
    if not 0 < hours <= 24 * 30:
        raise ChangeError("a join token is good for an hour, for a month at most")
    uid, secret, now = new_uid(), access.new_secret(), clock.now()
    connection.execute(
        insert(table_of(JoinToken)).values(
            uid=uid,
            digest=access.digest_of(secret),
            labels=given,
            without_ek_certificate=without_ek_certificate,
            created=now,
            created_by=actor,
            expires=now + round(hours * 3_600_000),
            void=False,
        )
    )
    detail = {"labels": given, "hours": hours, "without_ek_certificate": without_ek_certificate}
    audit.note(connection, actor, "join-token.make", uid, detail)
    return uid, secret


def void_join_token(connection: Connection, actor: str, uid: str) -> None:
    """Make a join token void.

    Raises:
        NotFoundError: there is none that could still be used.
    """
    table = table_of(JoinToken)
    done = connection.execute(
        update(table)
        .where(table.c.uid == uid, table.c.used.is_(None), table.c.void.is_(False))
        .values(void=True)
    )
    _must(done.rowcount, "join token", "join-tokens")
    audit.note(connection, actor, "join-token.void", uid, {})


def make_token(
    connection: Connection,
    actor: str,
    name: str,
    role: Role,
    *,
    tenant: str | None = None,
    days: float | None = None,
) -> tuple[str, str]:
    """Make a token for a person or a program; return its name and the token itself.

    Raises:
        ChangeError: name, role and tenant do not go together.
        NotFoundError: there is no such tenant.
    """
    _check_name(name)
    if (role is Role.TENANT) != (tenant is not None):
        raise ChangeError("the role tenant, and it alone, takes a tenant")
    number = tenant_number(connection, tenant) if tenant is not None else None
    if days is not None and not 0 < days <= 3650:
        raise ChangeError("a token is good for ten years at most")
    uid, secret, now = new_uid(), access.new_secret(), clock.now()
    connection.execute(
        insert(table_of(ApiToken)).values(
            uid=uid,
            name=name,
            digest=access.digest_of(secret),
            role=role.value,
            tenant=number,
            created=now,
            created_by=actor,
            expires=now + round(days * _DAY) if days is not None else None,
        )
    )
    detail = {"name": name, "role": role.value, "tenant": tenant}
    audit.note(connection, actor, "token.make", uid, detail)
    return uid, secret


def revoke_token(connection: Connection, actor: str, uid: str) -> None:
    """Revoke a token.

    Raises:
        NotFoundError: there is none that was not revoked.
    """
    table = table_of(ApiToken)
    done = connection.execute(
        update(table)
        .where(table.c.uid == uid, table.c.revoked.is_(None))
        .values(revoked=clock.now())
    )
    _must(done.rowcount, "token", "tokens")
    audit.note(connection, actor, "token.revoke", uid, {})


def add_tenant(connection: Connection, actor: str, name: str, keys: list[str]) -> None:
    """Make a tenant, or give one more keys: whose containers name one of them sees them.

    Raises:
        ChangeError: a key is another tenant's, or the name is not one.
        OwnerError: a key is not a public key.
    """
    _check_name(name)
    if name == "operator":
        raise ChangeError("a tenant is not called operator: tokens of the operator's say so")
    for key in keys:
        parse_public(key)
    tenant, owned = table_of(Tenant), table_of(TenantKey)
    number = connection.execute(select(tenant.c.id).where(tenant.c.name == name)).scalar()
    if number is None:
        made = connection.execute(
            insert(tenant).values(uid=new_uid(), name=name, created=clock.now())
        ).inserted_primary_key
        assert made is not None
        number = made[0]
    for key in dict.fromkeys(keys):
        whose = connection.execute(select(owned.c.tenant).where(owned.c.key == key)).scalar()
        if whose is None:
            connection.execute(insert(owned).values(tenant=number, key=key))
        elif whose != number:
            raise ChangeError("the key is another tenant's")
    audit.note(connection, actor, "tenant.add", name, {"keys": keys})


def tenant_number(connection: Connection, name: str) -> int:
    """Return the number of a tenant.

    Raises:
        NotFoundError: there is none of this name.
    """
    table = table_of(Tenant)
    found = connection.execute(select(table.c.id).where(table.c.name == name)).scalar()
    _must(found is not None, f"tenant {name}", "tenants")
    assert found is not None
    return int(found)


def add_webhook(
    connection: Connection,
    actor: str,
    url: str,
    *,
    kinds: list[str],
    tenant: int | None,
    allow_private: bool,
) -> tuple[str, str]:
    """Add a webhook; return its name, and the secret that its receiver checks signatures with.

    Raises:
        WebhookError: the address is not one.
        ChangeError: there is no such kind of event, or too many webhooks.
    """
    webhooks.check_url(url, allow_private=allow_private)
    known = {kind.value for kind in events.Kind}
    if strange := sorted(set(kinds) - known):
        raise ChangeError(
            f"there is no event {strange[0][:60]}", hint="kinds are " + ", ".join(sorted(known))
        )
    hook = table_of(Webhook)
    is_whose = hook.c.tenant.is_(None) if tenant is None else hook.c.tenant == tenant
    if _count(connection, hook, is_whose & hook.c.removed.is_(None)) >= limits.WEBHOOKS:
        raise ChangeError(
            f"there are {limits.WEBHOOKS} webhooks, and no more can be", hint="remove one first"
        )
    uid, secret = new_uid(), webhooks.new_secret()
    connection.execute(
        insert(hook).values(
            uid=uid,
            tenant=tenant,
            url=url,
            secret=secret,
            kinds=sorted(set(kinds)),
            created=clock.now(),
            created_by=actor,
        )
    )
    audit.note(connection, actor, "webhook.add", uid, {"url": url, "kinds": sorted(set(kinds))})
    return uid, secret


def remove_webhook(
    connection: Connection, actor: str, uid: str, *, tenant: int | None = None
) -> None:
    """Remove a webhook; with ``tenant``, one of that tenant's alone.

    Raises:
        NotFoundError: there is none of this name.
    """
    table = table_of(Webhook)
    query = update(table).where(table.c.uid == uid, table.c.removed.is_(None))
    if tenant is not None:
        query = query.where(table.c.tenant == tenant)
    done = connection.execute(query.values(removed=clock.now()))
    _must(done.rowcount, "webhook", "webhooks")
    audit.note(connection, actor, "webhook.remove", uid, {})


def redeliver(connection: Connection, actor: str, event: str) -> int:
    """Send an event again to the webhooks that did not take it; return to how many."""
    delivery, told = table_of(Delivery), table_of(Event)
    number = select(told.c.id).where(told.c.uid == event).scalar_subquery()
    done = connection.execute(
        update(delivery)
        .where(delivery.c.event == number, delivery.c.delivered.is_(None))
        .values(due=clock.now(), attempts=0)
    )
    audit.note(connection, actor, "webhook.redeliver", event, {"deliveries": done.rowcount})
    return int(done.rowcount)


def restored(connection: Connection, actor: str) -> dict[str, int]:
    """The database is an old one that was put back: nothing becomes TRUSTED by it.

    Join tokens are void. What was TRUSTED is UNKNOWN until its host reports, and is appraised anew
    then; what was UNTRUSTED stays so. Returns how many of each.
    """
    token, host, container = table_of(JoinToken), table_of(Host), table_of(Container)
    tokens = connection.execute(
        update(token).where(token.c.used.is_(None), token.c.void.is_(False)).values(void=True)
    )
    trusted = select(container.c.id).where(container.c.verdict == "TRUSTED")
    appraised = table_of(Appraisal)
    connection.execute(appraised.delete().where(appraised.c.container.in_(trusted)))
    verdicts = connection.execute(
        update(container)
        .where(container.c.verdict == "TRUSTED")
        .values(verdict="UNKNOWN", since=clock.now())
    )
    # Without a status kept, the next report has all of the boot's containers appraised.
    connection.execute(update(host).values(deadline=None, quoted=None, status=None))
    made = {"join_tokens": int(tokens.rowcount), "verdicts": int(verdicts.rowcount)}
    audit.note(connection, actor, "database.restored", "", dict(made))
    return made


def remove_host(connection: Connection, actor: str, ak_name: str) -> None:
    """Take a host out of the fleet: its reports are refused; what it proved is kept.

    Raises:
        NotFoundError: there is no such host enrolled.
    """
    table = table_of(Host)
    done = connection.execute(
        update(table)
        .where(table.c.ak_name == ak_name, table.c.state == "enrolled")
        .values(state="removed")
    )
    _must(done.rowcount, "host", "hosts")
    audit.note(connection, actor, "host.remove", ak_name, {})


def label_host(connection: Connection, actor: str, ak_name: str, labels: Mapping[str, str]) -> None:
    """Give a host other labels.

    Raises:
        NotFoundError: there is no such host.
        LabelsError: the labels are not such as can be.
    """
    given, table = checked_labels(labels), table_of(Host)
    done = connection.execute(update(table).where(table.c.ak_name == ak_name).values(labels=given))
    _must(done.rowcount, "host", "hosts")
    audit.note(connection, actor, "host.label", ak_name, {"labels": given})
    work.later(connection, work.REAPPRAISE, "all")


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ChangeError("a name is 1 to 63 of a-z, 0-9, dot, underscore and hyphen")


def _check_match(match: Mapping[str, Any]) -> None:
    if strange := sorted(match.keys() - _MATCHES):
        raise ChangeError(
            f"a policy is not assigned by {strange[0][:60]!r}",
            hint="by image, owner, label or namespace",
        )
    labels = match.get("label", {})
    values = [*(value for key, value in match.items() if key != "label")]
    if not isinstance(labels, dict) or not all(
        isinstance(value, str) and 0 < len(value) <= 512 for value in values
    ):
        raise ChangeError("an assignment matches texts, and label an object of texts")
    if not all(isinstance(value, str) for value in labels.values()):
        raise ChangeError("a label's value is a text")
    checked_labels(labels)
    if "owner" in match:
        parse_public(match["owner"])


def _next_version(connection: Connection, table: Any, name: str) -> int:
    newest = connection.execute(
        select(func.max(table.c.version)).where(table.c.name == name)
    ).scalar()
    return 1 if newest is None else int(newest) + 1


def _count(connection: Connection, table: Any, condition: Any) -> int:
    found = connection.execute(select(func.count()).select_from(table).where(condition)).scalar()
    return int(found or 0)


def _must(found: Any, what: str, listed: str) -> None:
    if not found:
        raise NotFoundError(f"there is no such {what}", hint=f"cima fleet {listed}")

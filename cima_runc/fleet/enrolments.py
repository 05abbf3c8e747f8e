"""How hosts join: by a token that is good once, or by a person's approval.

A manufacturer's certificate of the endorsement key is wanted either way, unless the token or the
approval does without on purpose; then no verdict on the host's containers is of hardware. What a
host is labelled is said by the token or the approval, never by the host. Source: fleet, section 4.
"""

import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, delete, func, insert, select, text, update

from cima_runc.base import limits
from cima_runc.base.errors import CimaError
from cima_runc.base.text import printable
from cima_runc.evidence.enrolment import EnrolmentAnswer, EnrolmentRequest
from cima_runc.evidence.host_enrolment import EnrolmentChallenge, EnrolmentState, HostEnrolment
from cima_runc.fleet import access, audit, clock, events, work
from cima_runc.fleet.labels import checked_labels
from cima_runc.fleet.schema import Enrolment, Host, JoinToken, new_uid, table_of
from cima_runc.tpm.credential import CredentialError, ek_key_digest
from cima_runc.tpm.structures import parse_public
from cima_runc.verifier.ek_certificate import EkCertificateError
from cima_runc.verifier.enrol import EnrolmentError, challenge, vouched

_ENROLMENT, _TOKEN, _HOST = table_of(Enrolment), table_of(JoinToken), table_of(Host)
_ANSWER_WITHIN = 600_000
"""Milliseconds that a host has to open its credential."""
_WAIT = 7 * 86_400_000
"""Milliseconds that an enrolment waits for a person."""
_SERVICE = "service"
_LOCK = 0x6A6F696E
_OF_ANOTHER = "its attestation key is another TPM's"


class JoinRefusedError(CimaError):
    """The host cannot join."""


class TokenRefusedError(JoinRefusedError):
    """The join token is not one, was used, is void, or has expired."""


class NoSuchEnrolmentError(CimaError):
    """There is no such enrolment, or it is over."""


@dataclass(frozen=True)
class Hardware:
    """What vouches for a TPM, and else why nothing does; one of them is empty."""

    by: str = ""
    reason: str = ""


def hardware_of(tpm: EnrolmentRequest, manufacturers: bytes | None) -> Hardware:
    """Return what vouches for a TPM. In no transaction: whoever asks to join decides how many
    signatures are checked, and others would wait."""
    if manufacturers is None:
        return Hardware(reason="the service has no certificates of TPM manufacturers")
    try:
        found = vouched(tpm, manufacturers)
    except (EnrolmentError, EkCertificateError, CredentialError) as error:
        return Hardware(reason=printable(error.what))
    named = printable(f"{found.manufacturer} {found.model} {found.version}".strip())
    return Hardware(by=named or "vouched")


def begin(connection: Connection, asked: HostEnrolment, hardware: Hardware) -> EnrolmentChallenge:
    """Take a host's request to join, and return a credential for its TPM; ``hardware`` is what
    vouches for that.

    Raises:
        TokenRefusedError: the token is not good.
        JoinRefusedError, EnrolmentError, CredentialError: the keys are not such as can be enrolled.
    """
    now = clock.now()
    made, pending = challenge(asked.tpm, None)
    public = parse_public(asked.tpm.ak_public)
    token = None
    if asked.token is not None:
        token = _token(connection, asked.token)
        # A host that has forgotten that it joined by this token still has it in its settings.
        if token["used_by"] != public.name.hex():
            _check_token(token, now)
    if token is None and _open(connection, now) >= limits.ENROLMENTS_WAITING:
        raise JoinRefusedError(
            "too many hosts wait for approval",
            hint="use a join token: cima fleet join-tokens; or refuse those that are not yours",
        )
    uid = new_uid() + access.new_secret().removeprefix(access.PREFIX)[:24]
    connection.execute(
        insert(_ENROLMENT).values(
            uid=uid,
            ak_name=public.name.hex(),
            ak_public=asked.tpm.ak_public,
            tpm=asked.tpm.model_dump_json(exclude_none=True).encode("ascii"),
            ek_digest=ek_key_digest(asked.tpm.ek_public).hex(),
            hardware=hardware.by,
            name=printable(asked.name),
            secret=pending.secret,
            state="challenged",
            token=token["id"] if token is not None else None,
            reason=hardware.reason,
            created=now,
            expires=now + _ANSWER_WITHIN,
        )
    )
    return EnrolmentChallenge(id=uid, challenge=made)


def answer(connection: Connection, uid: str, given: EnrolmentAnswer) -> EnrolmentState:
    """Take what was in the credential: the host is enrolled, or a person has to approve.

    Raises:
        NoSuchEnrolmentError: there is none, or it took too long.
        JoinRefusedError: the credential was not opened.
        TokenRefusedError: somebody else has used the token meanwhile.
    """
    now = clock.now()
    _alone(connection)
    row = _row(connection, uid)
    if row["state"] != "challenged":
        return _state(row, connection)
    if row["expires"] < now:
        raise NoSuchEnrolmentError("the enrolment took too long", hint="begin again")
    if not hmac.compare_digest(row["secret"], given.secret):
        _set(connection, row["id"], state="refused", reason="the credential was not opened")
        return EnrolmentState(state="refused", what="the credential was not opened")
    same, known = _of_key(connection, row), _of_tpm(connection, row)
    if same is not None and same["ek_digest"] != row["ek_digest"]:
        # Whoever makes up an endorsement key opens every credential for it.
        _set(connection, row["id"], state="refused", reason=_OF_ANOTHER)
        return EnrolmentState(state="refused", what=_OF_ANOTHER)
    if same is not None and same["state"] == "enrolled":
        # The same key of the same TPM, proved: a host that has forgotten that it joined.
        _set(connection, row["id"], state="enrolled")
        return EnrolmentState(state="enrolled", labels=same["labels"])
    token = None
    if row["token"] is not None:
        token = dict(
            connection.execute(select(_TOKEN).where(_TOKEN.c.id == row["token"]).with_for_update())
            .mappings()
            .one()
        )
        _check_token(token, now)
    reason = _why_wait(row, token, known)
    if reason:
        _set(connection, row["id"], state="waiting", reason=reason, expires=now + _WAIT)
        data = {"enrolment": uid[:24], "name": row["name"], "reason": reason}
        events.tell(connection, events.Kind.ENROLMENT_WAITING, data)
        return EnrolmentState(state="waiting", what=reason)
    assert token is not None
    connection.execute(
        update(_TOKEN).where(_TOKEN.c.id == token["id"]).values(used=now, used_by=row["ak_name"])
    )
    by = f"join token {token['uid']}"
    _enrol(connection, row, labels=token["labels"], by=by, known=known)
    _set(connection, row["id"], state="enrolled")
    audit.note(connection, _SERVICE, "host.enrol", row["ak_name"], {"by": by, "name": row["name"]})
    return EnrolmentState(state="enrolled", labels=token["labels"])


def state_of(connection: Connection, uid: str) -> EnrolmentState:
    """Return how an enrolment stands.

    Raises:
        NoSuchEnrolmentError: there is none, or it is over.
    """
    return _state(_row(connection, uid, hold=False), connection)


def approve(
    connection: Connection,
    uid: str,
    *,
    actor: str,
    labels: Mapping[str, str],
    without_ek_certificate: bool,
    replace: bool,
) -> str:
    """Let a waiting host join; return its attestation key's name.

    Raises:
        NoSuchEnrolmentError: there is no such host waiting.
        JoinRefusedError: what is to be done without was not said.
        LabelsError: the labels are not such as can be.
    """
    given = checked_labels(labels)
    _alone(connection)
    row = _waiting(connection, uid)
    if not row["hardware"] and not without_ek_certificate:
        raise JoinRefusedError(
            f"no manufacturer vouches for its TPM: {row['reason']}",
            hint="approve with --without-ek-certificate, if that is meant",
        )
    same, known = _of_key(connection, row), _of_tpm(connection, row)
    if same is not None and same["ek_digest"] != row["ek_digest"]:
        raise JoinRefusedError(_OF_ANOTHER, hint="cima fleet reject")
    if known is not None and known["state"] == "enrolled" and not replace:
        raise JoinRefusedError(
            f"the TPM is enrolled with another key, {known['ak_name']}",
            hint="approve with --replace, if that is meant",
        )
    _enrol(connection, row, labels=given, by=actor, known=known)
    _set(connection, row["id"], state="enrolled")
    detail = {"name": row["name"], "labels": given, "hardware": row["hardware"]}
    audit.note(connection, actor, "host.approve", row["ak_name"], detail)
    ak_name: str = row["ak_name"]
    return ak_name


def refuse(connection: Connection, uid: str, *, actor: str) -> None:
    """Refuse a waiting host.

    Raises:
        NoSuchEnrolmentError: there is no such host waiting.
    """
    row = _waiting(connection, uid)
    _set(connection, row["id"], state="refused", reason="refused by a person")
    audit.note(connection, actor, "host.refuse", row["ak_name"], {"name": row["name"]})


def _enrol(
    connection: Connection,
    row: Mapping[str, Any],
    *,
    labels: dict[str, Any],
    by: str,
    known: Mapping[str, Any] | None,
) -> None:
    now = clock.now()
    if known is not None:
        connection.execute(update(_HOST).where(_HOST.c.id == known["id"]).values(state="replaced"))
    values = {
        "hardware": row["hardware"],
        "tpm": row["tpm"],
        "name": row["name"],
        "labels": labels,
        "state": "enrolled",
        "enrolled": now,
        "enrolled_by": by,
    }
    same = connection.execute(select(_HOST.c.id).where(_HOST.c.ak_name == row["ak_name"])).scalar()
    if same is not None:
        # It was removed, or replaced: its history, and what it must not go back behind, stay.
        # But what it proved before counts no more, and its labels may choose other policies.
        proved_nothing = {"deadline": None, "quoted": None}
        number = int(same)
        connection.execute(
            update(_HOST).where(_HOST.c.id == number).values(**values, **proved_nothing)
        )
        work.later(connection, work.REAPPRAISE, str(number))
    else:
        made = connection.execute(
            insert(_HOST).values(
                uid=new_uid(),
                ak_name=row["ak_name"],
                ak_public=row["ak_public"],
                ek_digest=row["ek_digest"],
                log={},
                log_lines=0,
                has_boot_log=False,
                stale_told=0,
                refused="",
                **values,
            )
        ).inserted_primary_key
        assert made is not None
        number = int(made[0])
    _settle_others(connection, row)
    data = {"name": row["name"], "labels": labels, "by": by, "hardware": row["hardware"]}
    events.tell(connection, events.Kind.HOST_ENROLLED, data, host=number)


def _settle_others(connection: Connection, row: Mapping[str, Any]) -> None:
    """End what else waits with the attestation key that was just enrolled: of the same TPM it is
    this host, which has asked again; and a key is of one TPM."""
    column = _ENROLMENT.c
    is_other = (column.ak_name == row["ak_name"]) & (column.state == "waiting")
    others = select(column.id, column.name, column.ek_digest).where(
        is_other, column.id != row["id"]
    )
    for other in connection.execute(others).all():
        if other.ek_digest == row["ek_digest"]:
            _set(connection, other.id, state="enrolled")
            continue
        _set(connection, other.id, state="refused", reason=_OF_ANOTHER)
        detail = {"name": other.name, "reason": _OF_ANOTHER}
        audit.note(connection, _SERVICE, "host.refuse", row["ak_name"], detail)


def forget(connection: Connection, before: int) -> None:
    """Remove enrolments that were over before a time."""
    connection.execute(delete(_ENROLMENT).where(_ENROLMENT.c.expires < before))


def _alone(connection: Connection) -> None:
    """Let one host join after the other, until this transaction has ended: of a TPM that is not
    known yet there is no row that could be held."""
    if connection.dialect.name == "postgresql":
        connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK})"))


def _open(connection: Connection, now: int) -> int:
    """Return how many hosts without a token try to join, or wait for a person."""
    column = _ENROLMENT.c
    is_open = column.state.in_(("challenged", "waiting")) & (column.expires > now)
    found = connection.execute(
        select(func.count()).where(is_open, column.token.is_(None))
    ).scalar_one()
    return int(found)


def _why_wait(
    row: Mapping[str, Any], token: Mapping[str, Any] | None, known: Mapping[str, Any] | None
) -> str:
    """Return why a person has to decide, empty where nobody has to."""
    if token is None:
        return "it came without a join token" + (f"; {row['reason']}" if row["reason"] else "")
    if known is not None:
        return f"its TPM was enrolled before, with the key {known['ak_name']}"
    if not row["hardware"] and not token["without_ek_certificate"]:
        return str(row["reason"])
    return ""


def _of_key(connection: Connection, row: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the host with this attestation key."""
    found = connection.execute(
        select(_HOST).where(_HOST.c.ak_name == row["ak_name"]).with_for_update()
    )
    one = found.mappings().first()
    return dict(one) if one is not None else None


def _of_tpm(connection: Connection, row: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the latest host with this TPM and another key, the one that is enrolled first."""
    found = connection.execute(
        select(_HOST)
        .where(_HOST.c.ek_digest == row["ek_digest"], _HOST.c.ak_name != row["ak_name"])
        .order_by(_HOST.c.state != "enrolled", _HOST.c.id.desc())
        .limit(1)
        .with_for_update()
    )
    one = found.mappings().first()
    return dict(one) if one is not None else None


def _token(connection: Connection, secret: str) -> dict[str, Any]:
    row = (
        connection.execute(select(_TOKEN).where(_TOKEN.c.digest == access.digest_of(secret)))
        .mappings()
        .first()
    )
    if row is None:
        raise TokenRefusedError(
            "the join token is not one of this service", hint="cima fleet join-tokens add"
        )
    return dict(row)


def _check_token(token: Mapping[str, Any], now: int) -> None:
    for is_bad, what in (
        (token["void"], "is void"),
        (token["used"] is not None, "was used"),
        (token["expires"] < now, "has expired"),
    ):
        if is_bad:
            raise TokenRefusedError(f"the join token {what}", hint="cima fleet join-tokens add")


def _row(connection: Connection, uid: str, *, hold: bool = True) -> dict[str, Any]:
    wanted = select(_ENROLMENT).where(_ENROLMENT.c.uid == uid)
    row = connection.execute(wanted.with_for_update() if hold else wanted).mappings().first()
    if row is None:
        raise NoSuchEnrolmentError("there is no such enrolment", hint="begin again")
    return dict(row)


def _waiting(connection: Connection, uid: str) -> dict[str, Any]:
    """Return a waiting enrolment by the beginning of its name, which is what people are shown: the
    whole of it is the host's to know."""
    if not uid.isalnum() or len(uid) < 6:
        raise NoSuchEnrolmentError("no such host is waiting", hint="cima fleet enrolments")
    rows = (
        connection.execute(
            select(_ENROLMENT)
            .where(
                _ENROLMENT.c.uid.like(f"{uid}%"),
                _ENROLMENT.c.state == "waiting",
                _ENROLMENT.c.expires > clock.now(),
            )
            .with_for_update()
        )
        .mappings()
        .all()
    )
    if len(rows) != 1:
        raise NoSuchEnrolmentError("no such host is waiting", hint="cima fleet enrolments")
    return dict(rows[0])


def _set(connection: Connection, number: int, **values: Any) -> None:
    connection.execute(update(_ENROLMENT).where(_ENROLMENT.c.id == number).values(**values))


def _state(row: Mapping[str, Any], connection: Connection) -> EnrolmentState:
    if row["state"] == "enrolled":
        labels = connection.execute(
            select(_HOST.c.labels).where(_HOST.c.ak_name == row["ak_name"])
        ).scalar()
        return EnrolmentState(state="enrolled", labels=labels or {})
    if row["state"] == "refused":
        return EnrolmentState(state="refused", what=row["reason"])
    what = row["reason"] if row["state"] == "waiting" else "the credential is not opened yet"
    return EnrolmentState(state="waiting", what=what)

"""The tables of the service, the same in SQLite and in PostgreSQL.

Times are whole milliseconds since 1970 (UTC). What others are shown of a row is its ``uid``, which
is random: a number would count what others have. Source: fleet, section 5, for the names.
"""

import re
import secrets
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    TypeDecorator,
    UniqueConstraint,
    func,
    literal_column,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.sql.elements import ColumnElement

UID_BYTES = 12
PATH_BEGINS = 1024
"""Bytes of a path that are indexed: PostgreSQL's index takes no row above 2,704, and one program of
a longer path would have each report of its host fail."""

# SQLite numbers rows only in a column that is called INTEGER.
_Number = BigInteger().with_variant(Integer, "sqlite")


def new_uid() -> str:
    """Return a random name for a row, 24 hexadecimal digits."""
    return secrets.token_hex(UID_BYTES)


class Text(TypeDecorator[str]):
    """Any text that JSON can hold, as it was: PostgreSQL's has no NUL, and neither database's has
    half of a surrogate pair, which peers can send in a name."""

    impl = String
    cache_ok = True
    _ESCAPE = "\ue000"
    _ODD = re.compile("[\x00\ud800-\udfff\ue000]")
    _ESCAPED = re.compile("\ue000([0-9a-f]{4})")

    def process_bind_param(self, value: str | None, dialect: object) -> str | None:  # noqa: ARG002
        """Return the text as it is stored."""
        if value is None:
            return None
        return self._ODD.sub(lambda found: f"{self._ESCAPE}{ord(found[0]):04x}", value)

    def process_result_value(self, value: str | None, dialect: object) -> str | None:  # noqa: ARG002
        """Return the text as it was given."""
        if value is None or self._ESCAPE not in value:
            return value
        return self._ESCAPED.sub(lambda found: chr(int(found[1], 16)), value)


class Base(DeclarativeBase):
    """What all tables have in common."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012 - read by SQLAlchemy
        int: BigInteger().with_variant(Integer, "sqlite"),
        bytes: LargeBinary,
        str: Text,
        dict[str, Any]: JSON,
        list[Any]: JSON,
    }


def table_of(kind: type[Base]) -> Table:
    """Return the table of a model, for statements."""
    assert isinstance(kind.__table__, Table)
    return kind.__table__


def _id() -> Mapped[int]:
    return mapped_column(_Number, primary_key=True, autoincrement=True)


def _uid() -> Mapped[str]:
    return mapped_column(Text(2 * UID_BYTES), unique=True, default=new_uid)


def _partial(name: str, *columns: str, where: str) -> Index:
    """Return an index of the rows that a condition (SQL) is true of."""
    return Index(name, *columns, postgresql_where=text(where), sqlite_where=text(where))


class ServiceKey(Base):
    """A key that all processes of the service share."""

    __tablename__ = "service_key"
    id: Mapped[int] = _id()
    purpose: Mapped[str] = mapped_column(index=True)
    """nonce, enrolment, webhook: what it is for."""
    kid: Mapped[str] = mapped_column(unique=True)
    secret: Mapped[bytes]
    created: Mapped[int]
    retired: Mapped[int | None]


class Host(Base):
    """A host, by its attestation key, and what its last accepted report proved."""

    __tablename__ = "host"
    id: Mapped[int] = _id()
    uid: Mapped[str] = _uid()
    ak_name: Mapped[str] = mapped_column(Text(68), unique=True)
    ak_public: Mapped[bytes]
    """TPMT_PUBLIC."""
    tpm: Mapped[bytes]
    """What its TPM showed when it joined: a ``cima-enrolment``, JSON."""
    ek_digest: Mapped[str] = mapped_column(Text(64), index=True)
    """SHA-256 over the endorsement key itself (SubjectPublicKeyInfo, DER), hexadecimal."""
    hardware: Mapped[str]
    """What vouches for the TPM: the path of its certificates, or empty: not proved."""
    name: Mapped[str]
    """What the host calls itself: a label, it proves nothing."""
    labels: Mapped[dict[str, Any]]
    """From the join token or the approval, never from the host."""
    state: Mapped[str] = mapped_column(default="enrolled")
    """enrolled; replaced, by another key of the same TPM; removed."""
    enrolled: Mapped[int]
    enrolled_by: Mapped[str]
    boot_id: Mapped[str | None]
    reset_count: Mapped[int | None]
    restart_count: Mapped[int | None]
    clock: Mapped[int | None]
    table: Mapped[bytes | None]
    """Digest of the table of registers that is proved; its slots are in ``host_table``."""
    slots: Mapped[int | None]
    status: Mapped[dict[str, Any] | None]
    """The status object of the last bind."""
    pcrs: Mapped[dict[str, Any] | None]
    """Values of the quoted PCRs, hexadecimal, by number."""
    log_lines: Mapped[int] = mapped_column(default=0)
    """Lines of the kernel's log that are proved, and PCR 10 after them."""
    log_value: Mapped[bytes | None]
    log: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """What the lines say: aggregate, violations, disclosure, violated."""
    has_boot_log: Mapped[bool] = mapped_column(default=False)
    quoted: Mapped[int | None]
    """The time of the last accepted report's quote: when its nonce was made."""
    deadline: Mapped[int | None]
    """Until when that report proves anything."""
    stale_told: Mapped[int] = mapped_column(default=0)
    """The deadline that was told of as passed."""
    stored: Mapped[int] = mapped_column(server_default="0")
    """Bytes of its log and of its containers' records that are kept, with some for each container
    itself."""
    refused: Mapped[str] = mapped_column(default="")
    """Name of the error that refused the latest report; empty where it was accepted."""
    refused_at: Mapped[int | None]


class HostTable(Base):
    """What is in the slots of a host's table of registers."""

    __tablename__ = "host_table"
    host: Mapped[int] = mapped_column(ForeignKey("host.id"), primary_key=True)
    content: Mapped[bytes]
    """As :class:`cima_runc.cpcr.sparse.SparseTable` writes it."""


class HostBoot(Base):
    """What a boot of a host's that is over had proved of it at its end."""

    __tablename__ = "host_boot"
    host: Mapped[int] = mapped_column(ForeignKey("host.id"), primary_key=True)
    boot_id: Mapped[str] = mapped_column(primary_key=True)
    status: Mapped[dict[str, Any]]
    pcrs: Mapped[dict[str, Any]]
    log_lines: Mapped[int]
    log: Mapped[dict[str, Any]]
    has_boot_log: Mapped[bool]
    ended: Mapped[int]
    """When the next one was proved."""


class HostLogPart(Base):
    """Entries of a host's log, as one report proved them."""

    __tablename__ = "host_log_part"
    host: Mapped[int] = mapped_column(ForeignKey("host.id"), primary_key=True)
    boot_id: Mapped[str] = mapped_column(primary_key=True)
    first: Mapped[int] = mapped_column(primary_key=True)
    """Number of the first of them, from 0."""
    digests: Mapped[bytes]
    """What the host's PCR was extended with, 32 bytes each."""
    shown: Mapped[bytes | None]
    """What each says, as :mod:`cima_runc.fleet.host_logs` packs it; None: only hashes came."""


class JoinToken(Base):
    """A secret that lets one host enrol."""

    __tablename__ = "join_token"
    id: Mapped[int] = _id()
    uid: Mapped[str] = _uid()
    digest: Mapped[str] = mapped_column(Text(64), unique=True)
    """SHA-256 of the token."""
    labels: Mapped[dict[str, Any]]
    without_ek_certificate: Mapped[bool] = mapped_column(default=False)
    created: Mapped[int]
    created_by: Mapped[str]
    expires: Mapped[int]
    used: Mapped[int | None]
    used_by: Mapped[str | None]
    """AK name."""
    void: Mapped[bool] = mapped_column(default=False)


class Enrolment(Base):
    """A host that wants to be enrolled."""

    __tablename__ = "enrolment"
    id: Mapped[int] = _id()
    uid: Mapped[str] = mapped_column(Text(48), unique=True)
    """The first half is shown to people; who knows the whole is the host."""
    ak_name: Mapped[str] = mapped_column(Text(68), index=True)
    ak_public: Mapped[bytes]
    tpm: Mapped[bytes]
    ek_digest: Mapped[str] = mapped_column(Text(64))
    hardware: Mapped[str]
    name: Mapped[str]
    secret: Mapped[bytes]
    """What is in the credential."""
    state: Mapped[str]
    """challenged; waiting: the TPM has opened the credential, a person decides; refused;
    enrolled."""
    token: Mapped[int | None] = mapped_column(ForeignKey("join_token.id"))
    reason: Mapped[str] = mapped_column(default="")
    """Why a person has to decide."""
    created: Mapped[int]
    expires: Mapped[int]


class Container(Base):
    """One run of a container: a registration on a host, and the verdict on it."""

    __tablename__ = "container"
    id: Mapped[int] = _id()
    uid: Mapped[str] = _uid()
    host: Mapped[int] = mapped_column(ForeignKey("host.id"), index=True)
    boot_id: Mapped[str]
    registration: Mapped[int]
    name: Mapped[str] = mapped_column(index=True)
    """The container's id, as the engine gave it."""
    kind: Mapped[str]
    """container, or dependencies: the host services that containers rely on."""
    state: Mapped[str]
    """created, running or stopped, as the host says."""
    slot: Mapped[int | None]
    """Where its register is; None: it is no longer in the table."""
    is_sealed: Mapped[bool] = mapped_column(default=False)
    """Whether it has an owner's key, and the service's is not among them: nothing of it is read."""
    line: Mapped[str | None] = mapped_column(Text(64), index=True)
    run: Mapped[int | None]
    previous: Mapped[dict[str, Any] | None]
    """What its first record says of the run before."""
    previous_registration: Mapped[int | None]
    services: Mapped[int | None]
    """Registration of the host services that it relies on."""
    layers: Mapped[str | None] = mapped_column(Text(64), index=True)
    """Digest over its image's layers, as measured: :func:`cima_runc.fleet.values.layers_key`."""
    enforced: Mapped[str | None]
    """Digest of the configuration of the image that alone may run, where the host enforces."""
    image: Mapped[str | None] = mapped_column(index=True)
    """Digest of its image's configuration, by the reference that it is compared with."""
    namespace: Mapped[str | None]
    """Of Kubernetes, from the measured configuration, where a CRI made the container."""
    pod: Mapped[str | None]
    count: Mapped[int]
    """Records, as the host says; those of ``confirmed`` are proved."""
    confirmed: Mapped[int] = mapped_column(default=0)
    cpcr: Mapped[bytes]
    """The register after ``confirmed`` records."""
    held: Mapped[int] = mapped_column(default=0)
    """Records after those that wait for the rest."""
    held_chain: Mapped[dict[str, Any] | None]
    """The partition after those."""
    secret: Mapped[bytes | None]
    has_ended: Mapped[bool] = mapped_column(default=False)
    """Whether its ``exit`` is proved."""
    end: Mapped[str] = mapped_column(default="")
    """The reason of its ``exit``."""
    late: Mapped[int] = mapped_column(default=0, server_default="0")
    """Records that are proved after its ``exit``."""
    forgotten: Mapped[bool] = mapped_column(default=False)
    """Whether its records were removed after their time: its verdict stays as it was."""
    vanished: Mapped[bool] = mapped_column(default=False)
    """Whether its slot became empty before an ``exit`` was proved."""
    first_seen: Mapped[int]
    last_change: Mapped[int]
    verdict: Mapped[str] = mapped_column(default="UNKNOWN")
    """Of what was appraised; :func:`cima_runc.fleet.verdicts.is_stale` adds the deadline."""
    place_proved: Mapped[bool] = mapped_column(default=False)
    since: Mapped[int]
    """When the verdict became what it is."""
    policy: Mapped[str | None]
    """``name@version`` of what the verdict is by; None: none is assigned."""
    reference: Mapped[str | None]
    observed: Mapped[str | None]
    """What the policy that only observes would say."""
    observed_policy: Mapped[str | None]

    __table_args__ = (
        UniqueConstraint("host", "registration", name="uq_container_registration"),
        Index("ix_container_previous", "host", "previous_registration"),
        _partial("ix_container_present", "host", where="slot IS NOT NULL"),
    )


class Owner(Base):
    """That a container names an owner's key: says who may read, never who started it."""

    __tablename__ = "owner"
    container: Mapped[int] = mapped_column(ForeignKey("container.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    """As the host lists them."""
    key: Mapped[str]
    """``x25519:`` text."""

    __table_args__ = (Index("ix_owner_key", "key"),)


class Record(Base):
    """A proved record of a container that the service may read."""

    __tablename__ = "record"
    container: Mapped[int] = mapped_column(ForeignKey("container.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    content: Mapped[bytes]
    """The record as it was sent: one line of JSON."""
    file_digest: Mapped[bytes | None]
    """SHA-256 of the file's content, 32 bytes."""
    path: Mapped[bytes | None]
    time: Mapped[int]
    """When it was proved."""

    __table_args__ = (
        Index("ix_record_file_digest", "file_digest", "container"),
        Index("ix_record_path", text(f"substr(path, 1, {PATH_BEGINS})"), "container"),
    )


def is_at_path(path: bytes) -> ColumnElement[bool]:
    """Return the condition on ``record`` that a file was at this path, as the index has it."""
    column = table_of(Record).c.path
    # Literal numbers: the index is of this very expression.
    begins = func.substr(column, literal_column("1"), literal_column(str(PATH_BEGINS)))
    return (begins == path[:PATH_BEGINS]) & (column == path)


class Held(Base):
    """Records that do not yet add up to a proved register: they wait, unconfirmed."""

    __tablename__ = "held"
    container: Mapped[int] = mapped_column(ForeignKey("container.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    content: Mapped[bytes]


class Line(Base):
    """What is remembered of a container's line on a host, over its runs and boots."""

    __tablename__ = "line"
    host: Mapped[int] = mapped_column(ForeignKey("host.id"), primary_key=True)
    line: Mapped[str] = mapped_column(Text(64), primary_key=True)
    run: Mapped[int]
    """The latest run that was proved."""
    container: Mapped[int] = mapped_column(ForeignKey("container.id"))


class Reference(Base):
    """Reference values of an image or of a host's services, named and versioned."""

    __tablename__ = "reference"
    id: Mapped[int] = _id()
    uid: Mapped[str] = _uid()
    name: Mapped[str]
    version: Mapped[int]
    kind: Mapped[str]
    image: Mapped[str | None] = mapped_column(index=True)
    """Digest of the image's configuration."""
    sha256: Mapped[str] = mapped_column(Text(64))
    content: Mapped[bytes]
    """The file, zstd."""
    created: Mapped[int]
    created_by: Mapped[str]
    retired: Mapped[int | None]
    """When it was replaced or withdrawn."""

    __table_args__ = (UniqueConstraint("name", "version", name="uq_reference_version"),)


class ReferenceLayer(Base):
    """The layers that a container of an image has, by the digest over their digests."""

    __tablename__ = "reference_layer"
    reference: Mapped[int] = mapped_column(ForeignKey("reference.id"), primary_key=True)
    key: Mapped[str] = mapped_column(Text(64), primary_key=True, index=True)


class Policy(Base):
    """What is insisted on, named and versioned."""

    __tablename__ = "policy"
    id: Mapped[int] = _id()
    uid: Mapped[str] = _uid()
    name: Mapped[str]
    version: Mapped[int]
    sha256: Mapped[str] = mapped_column(Text(64))
    content: Mapped[str]
    """TOML."""
    created: Mapped[int]
    created_by: Mapped[str]

    __table_args__ = (UniqueConstraint("name", "version", name="uq_policy_version"),)


class Assignment(Base):
    """Which containers a policy is for."""

    __tablename__ = "assignment"
    id: Mapped[int] = _id()
    uid: Mapped[str] = _uid()
    policy: Mapped[str]
    """Its name; the latest version goes."""
    mode: Mapped[str]
    """enforce: its verdict is the verdict; observe: it is shown beside it."""
    match: Mapped[dict[str, Any]]
    """Any of image, owner, label (``{key: value}`` of the host), namespace; all must fit."""
    image_reference: Mapped[str | None]
    """Name of the reference values of the image that these containers must be of; None: of the
    image whose layers a container has."""
    host_reference: Mapped[str | None]
    """Name of the reference values of the host's services."""
    created: Mapped[int]
    created_by: Mapped[str]


class Appraisal(Base):
    """How far a container was compared, with what, and what came of it."""

    __tablename__ = "appraisal"
    container: Mapped[int] = mapped_column(ForeignKey("container.id"), primary_key=True)
    mode: Mapped[str] = mapped_column(primary_key=True)
    """enforce or observe."""
    values: Mapped[str] = mapped_column(Text(64))
    """Identifies reference values and policy, as the verifier library does."""
    policy: Mapped[str]
    """``name@version``."""
    reference: Mapped[str | None]
    appraised: Mapped[int]
    """Records that were compared with them."""
    parts: Mapped[dict[str, Any]]
    """Digests of the findings of each part, so that only what has changed is written."""
    verdict: Mapped[str]


class Finding(Base):
    """What appraisal noticed in a container, by the policy that is enforced or observed."""

    __tablename__ = "finding"
    id: Mapped[int] = _id()
    container: Mapped[int] = mapped_column(ForeignKey("container.id"), index=True)
    mode: Mapped[str]
    part: Mapped[str]
    """own: its records; services: those of what it relies on; runs: earlier runs; host."""
    severity: Mapped[str]
    rule: Mapped[str]
    what: Mapped[str]
    record: Mapped[int | None]
    run: Mapped[int | None]
    path: Mapped[str]
    got: Mapped[str]
    expected: Mapped[str]
    next: Mapped[str]
    time: Mapped[int]

    __table_args__ = (_partial("ix_finding_failed", "id", where="severity = 'fail'"),)


class Verdict(Base):
    """A verdict that a container had, from a time on."""

    __tablename__ = "verdict"
    id: Mapped[int] = _id()
    container: Mapped[int] = mapped_column(ForeignKey("container.id"), index=True)
    time: Mapped[int] = mapped_column(index=True)
    verdict: Mapped[str]
    before: Mapped[str | None]
    policy: Mapped[str | None]
    reference: Mapped[str | None]
    why: Mapped[str]
    """One line: the first finding that fails, or what else made it so."""


class Event(Base):
    """Something happened that people and programs want to be told."""

    __tablename__ = "event"
    id: Mapped[int] = _id()
    uid: Mapped[str] = _uid()
    time: Mapped[int] = mapped_column(index=True)
    kind: Mapped[str]
    host: Mapped[int | None] = mapped_column(ForeignKey("host.id"), index=True)
    container: Mapped[int | None] = mapped_column(ForeignKey("container.id"), index=True)
    data: Mapped[dict[str, Any]]


class Tenant(Base):
    """Somebody whose containers run here, and who sees those and no others."""

    __tablename__ = "tenant"
    id: Mapped[int] = _id()
    uid: Mapped[str] = _uid()
    name: Mapped[str] = mapped_column(unique=True)
    created: Mapped[int]


class TenantKey(Base):
    """An owner's key of a tenant."""

    __tablename__ = "tenant_key"
    tenant: Mapped[int] = mapped_column(ForeignKey("tenant.id"), primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True, unique=True)


class ApiToken(Base):
    """A local token for a person or a program."""

    __tablename__ = "api_token"
    id: Mapped[int] = _id()
    uid: Mapped[str] = _uid()
    name: Mapped[str]
    digest: Mapped[str] = mapped_column(Text(64), unique=True)
    role: Mapped[str]
    tenant: Mapped[int | None] = mapped_column(ForeignKey("tenant.id"))
    created: Mapped[int]
    created_by: Mapped[str]
    expires: Mapped[int | None]
    revoked: Mapped[int | None]


class Webhook(Base):
    """Where events are sent."""

    __tablename__ = "webhook"
    id: Mapped[int] = _id()
    uid: Mapped[str] = _uid()
    tenant: Mapped[int | None] = mapped_column(ForeignKey("tenant.id"))
    """None: the operator's, of all hosts."""
    url: Mapped[str]
    secret: Mapped[str]
    """What the receiver checks signatures with."""
    kinds: Mapped[list[Any]]
    """Kinds of events; empty: all."""
    created: Mapped[int]
    created_by: Mapped[str]
    removed: Mapped[int | None]


class Delivery(Base):
    """An event that is to reach a webhook: the outbox."""

    __tablename__ = "delivery"
    id: Mapped[int] = _id()
    webhook: Mapped[int] = mapped_column(ForeignKey("webhook.id"), index=True)
    event: Mapped[int] = mapped_column(ForeignKey("event.id"))
    attempts: Mapped[int] = mapped_column(default=0)
    due: Mapped[int | None] = mapped_column(index=True)
    """When to try next; None: delivered, or given up."""
    delivered: Mapped[int | None]
    error: Mapped[str] = mapped_column(default="")


class Audit(Base):
    """A change by a person or the service, each chained to the one before."""

    __tablename__ = "audit"
    number: Mapped[int] = mapped_column(_Number, primary_key=True, autoincrement=False)
    time: Mapped[int]
    actor: Mapped[str]
    action: Mapped[str]
    subject: Mapped[str]
    detail: Mapped[dict[str, Any]]
    digest: Mapped[str] = mapped_column(Text(64))
    """SHA-256 over the digest before and the RFC 8785 bytes of the other columns."""


class TokenGrant(Base):
    """What tokens may be for."""

    __tablename__ = "token_grant"
    id: Mapped[int] = _id()
    uid: Mapped[str] = _uid()
    tenant: Mapped[int | None] = mapped_column(ForeignKey("tenant.id"))
    """Whose containers; None: those of no owner's key."""
    policy: Mapped[str]
    """Name of the policy that they are trusted by."""
    audience: Mapped[str]
    created: Mapped[int]
    created_by: Mapped[str]


class IssuedToken(Base):
    """A token that has not ended yet."""

    __tablename__ = "issued_token"
    jti: Mapped[str] = mapped_column(Text(32), primary_key=True)
    container: Mapped[int] = mapped_column(ForeignKey("container.id"))
    tenant: Mapped[int | None] = mapped_column(ForeignKey("tenant.id"))
    audience: Mapped[str]
    policy: Mapped[str]
    """``name@version``."""
    issued: Mapped[int]
    expires: Mapped[int] = mapped_column(index=True)


class EvidenceRequest(Base):
    """Somebody's request for evidence that the service passes on to a host."""

    __tablename__ = "evidence_request"
    id: Mapped[int] = _id()
    uid: Mapped[str] = _uid()
    host: Mapped[int] = mapped_column(ForeignKey("host.id"), index=True)
    kind: Mapped[str]
    """evidence, enrolment or activate: the route of the agent that it is for."""
    source: Mapped[str]
    body: Mapped[bytes]
    created: Mapped[int]
    expires: Mapped[int]
    taken: Mapped[int | None]
    """When the host was handed it."""
    answered: Mapped[int | None]
    status: Mapped[int | None]
    answer: Mapped[bytes | None]


class Job(Base):
    """Work that waits, or that somebody has begun: whoever lives takes it."""

    __tablename__ = "job"
    id: Mapped[int] = _id()
    kind: Mapped[str]
    subject: Mapped[str]
    due: Mapped[int] = mapped_column(index=True)
    taken_until: Mapped[int] = mapped_column(default=0)
    """Until when somebody works on it; after that, it is anybody's again."""
    attempts: Mapped[int] = mapped_column(default=0)
    error: Mapped[str] = mapped_column(default="")

    __table_args__ = (UniqueConstraint("kind", "subject", name="uq_job_subject"),)

"""What ``cima fleet … --json`` prints: what the fleet's service answers, unchanged.

Times are RFC 3339, UTC. What hosts and containers call themselves proves nothing.
"""

from typing import Annotated, Any, Literal

from pydantic import Field

from cima_runc.cli.shape import Shape

_Verdict = Literal["TRUSTED", "UNTRUSTED", "STALE", "UNKNOWN"]
_Freshness = Literal["fresh", "stale", "never"]
_Ak = Annotated[str, Field(pattern=r"^[0-9a-f]{68}$")]
_Uid = Annotated[str, Field(pattern=r"^[0-9a-f]{6,24}$")]


class Counts(Shape):
    """Containers that are there now, by verdict."""

    TRUSTED: int
    UNTRUSTED: int
    STALE: int
    UNKNOWN: int


class HostCounts(Shape):
    """Enrolled hosts, by how fresh their last report is."""

    fresh: int
    stale: int
    never: int
    """Enrolled, and no report yet."""


class Overview(Shape):
    """The whole fleet; a tenant's own containers for a tenant."""

    containers: Counts
    time: str
    hosts: HostCounts | None = None
    """Not for tenants."""
    enrolments_waiting: int | None = None
    """Not for tenants."""


class Host(Shape):
    """A host; tenants are told its keys and freshness alone."""

    ak_name: _Ak
    """Name of the TPM's attestation key: this is who it is."""
    state: str
    """``enrolled``, or why it is not."""
    freshness: _Freshness
    quoted: str | None
    """The time of its last quote."""
    deadline: str | None
    """After this, its containers are STALE."""
    hardware: str | None
    """The manufacturer's certificate of its TPM; None: hardware not proved."""
    hardware_proved: bool
    enrolled_by: str
    name: str | None = None
    """What it calls itself."""
    labels: dict[str, str] | None = None
    """From its token or approval; they select policies."""
    enrolled: str | None = None
    boot_id: str | None = None
    reset_count: int | None = None
    restart_count: int | None = None
    clock: int | None = None
    """The TPM's clock at the last quote, in milliseconds."""
    status: dict[str, Any] | None = None
    """What its agent says of itself, bound into the TPM."""
    log: dict[str, Any] | None = None
    """The kernel's log, as far as it was proved."""
    pcrs: dict[str, Any] | None = None
    stored: int | None = None
    """Bytes of its containers' records that the service keeps."""
    refused: str | None = None
    """Why its last report was refused; None: it was not."""
    refused_at: str | None = None


class OneHost(Host):
    """A host, and its containers by verdict."""

    containers: dict[str, int] | None = None


class Container(Shape):
    """One run of a container, and the verdict on it."""

    uid: _Uid
    """The service's name for this run."""
    host: _Ak
    container: str
    """The engine's id."""
    registration: str
    """The host's number for this run; 64 bits, so a text."""
    boot_id: str
    state: str
    """``created``, ``running``, ``stopped`` as the host says; ``gone``: no longer in its table."""
    verdict: _Verdict
    since: str
    """Since when the verdict is this."""
    place: str
    """Whether its place in the host's TPM is proved."""
    policy: str | None
    """``name@version``; None: none is assigned, and the verdict is UNKNOWN."""
    reference: str | None
    observed: _Verdict | None
    """What the policy that only observes would say."""
    observed_policy: str | None
    image: str | None
    """Digest of its image's configuration."""
    namespace: str | None
    pod: str | None
    line: str | None
    run: int | None
    records: int
    """As the host says."""
    proved: int
    ended: str | None
    """Why it ended."""
    vanished: bool
    """Whether its register went before its end was proved."""
    first_seen: str
    quoted: str | None
    deadline: str | None
    not_proved: list[str]
    """What the verdict does not say."""


class Finding(Shape):
    """What appraisal noticed."""

    severity: str
    rule: str
    what: str
    record: int | None
    run: int | None
    path: str
    got: str
    expected: str
    next: str | None
    """What to do about it."""
    part: str
    """``own``, ``services``, ``runs`` or ``host``."""
    time: str


class PastVerdict(Shape):
    """A verdict that it had, from a time on."""

    time: str
    verdict: _Verdict
    before: _Verdict | None
    policy: str | None
    reference: str | None
    why: str


class OneContainer(Container):
    """A container with what was found."""

    owners: list[str]
    findings: list[Finding]
    observed_findings: list[Finding]
    verdicts: list[PastVerdict]
    """The latest first."""
    why: str


class Record(Shape):
    """A proved record."""

    record: dict[str, Any]
    """As the host sent it."""
    proved: str


class Place(Shape):
    """Where a file ran."""

    container: str
    uid: _Uid
    host: _Ak
    verdict: _Verdict
    record: int
    digest: str
    path: str
    proved: str


class Waiting(Shape):
    """A host that waits for a person."""

    uid: _Uid
    ak_name: _Ak
    ek_sha256: str
    name: str
    hardware: str | None
    reason: str
    """Why a person has to decide."""
    created: str
    expires: str


class Approved(Shape):
    """A host that may join."""

    ak_name: _Ak


class Done(Shape):
    """What was changed."""

    done: str


class Made(Shape):
    """What was made: its ``name@version``, or its uid."""

    made: str


class Secret(Shape):
    """A new secret; it is shown this once."""

    uid: _Uid
    secret: str


class Reference(Shape):
    """A version of reference values."""

    uid: _Uid
    name: str
    version: int
    kind: str
    image: str | None
    sha256: str
    created: str
    created_by: str
    retired: str | None


class Policy(Shape):
    """A version of a policy."""

    name: str
    version: int
    sha256: str
    content: str
    """TOML."""
    created: str
    created_by: str
    containers: int
    """Those whose verdict is by it."""


class Assignment(Shape):
    """Which containers a policy is for."""

    uid: _Uid
    policy: str
    mode: Literal["enforce", "observe"]
    match: dict[str, Any]
    image_reference: str | None
    host_reference: str | None
    created: str
    created_by: str


class Change(Shape):
    """A container whose verdict a new policy would change."""

    uid: _Uid
    container: str
    host: _Ak
    before: _Verdict
    after: _Verdict
    why: str


class Difference(Shape):
    """What a new version of a policy would change."""

    policy: str
    containers: int
    """How many were looked at."""
    left_out: int
    """Others that the policy is for, and that there was no time for."""
    changes: list[Change]


class Event(Shape):
    """What happened."""

    uid: _Uid
    time: str
    kind: str
    host: _Ak | None
    container: _Uid | None
    data: dict[str, Any]


class AuditEntry(Shape):
    """What a person changed."""

    number: int
    time: str
    actor: str
    action: str
    subject: str
    detail: dict[str, Any]
    digest: str
    """SHA-256 over the digest before and this entry."""


class AuditVerified(Shape):
    """What a walk along the chain has found."""

    entries: int
    head: str
    """The last good entry's digest: keep it elsewhere."""
    broken: int | None
    """The first entry that does not fit."""


class Token(Shape):
    """A person's or a program's token, without what it is recognised by."""

    uid: _Uid
    name: str
    role: str
    tenant: str | None
    created: str
    created_by: str
    expires: str | None
    revoked: str | None


class JoinToken(Shape):
    """A token that lets one host join, without what it is recognised by."""

    uid: _Uid
    labels: dict[str, str]
    without_ek_certificate: bool
    created: str
    created_by: str
    expires: str
    used: str | None
    used_by: str | None
    void: bool


class Tenant(Shape):
    """Somebody whose containers run here."""

    name: str
    created: str
    keys: list[str]


class Grant(Shape):
    """What containers' tokens may be for."""

    uid: _Uid
    tenant: str | None
    policy: str
    audience: str
    created: str
    created_by: str


class Granted(Shape):
    """What was allowed."""

    uid: _Uid


class WorkloadToken(Shape):
    """A container's token."""

    token: str
    expires: str


class Webhook(Shape):
    """Where events are sent."""

    uid: _Uid
    url: str
    kinds: list[str]
    created: str
    delivered: int
    waiting: int
    given_up: int


class Undelivered(Shape):
    """An event that a webhook did not take yet."""

    event: _Uid
    kind: str
    webhook: _Uid
    attempts: int
    due: str | None
    """When it is tried next; None: given up."""
    error: str

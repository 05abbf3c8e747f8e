"""What ``--json`` prints: one frozen model for each command, from which docs and tests are made.

``VERSION`` counts changes that could break a reader: a key that goes or means something else. Keys
are added without one, so readers pass over keys that they do not know. Tests do not: what a command
prints and no model has is refused there.
"""

from typing import Annotated, Any, Literal, NamedTuple

from pydantic import ConfigDict, Field, TypeAdapter, create_model

from cima_runc.cli import fleet_shapes as fleet
from cima_runc.cli.shape import Shape as _Shape
from cima_runc.measure.config_summary import NOT_SHOWN, ConfigSummary
from cima_runc.verifier.result import Finding, Result, Source

VERSION = 1
"""Of all shapes together; ``cima version --json`` tells it."""

_Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class LastVerdict(_Shape):
    """What ``cima appraise`` found last; nothing of it is proved by the TPM."""

    verdict: Literal["TRUSTED", "UNTRUSTED", "STALE", "UNKNOWN"]
    records: int
    """Of how many records it was: those that came later were not looked at."""
    when: str
    """RFC 3339."""
    sources: list[Source]
    """The reference values and the policy that were compared with."""


class PsRow(_Shape):
    """A container of this host, or with ``--dependencies`` the services that containers rely on."""

    id: str
    """The id in the engine, after ``UID/`` where it is a user's own container."""
    name: str
    """What the engine or the tenant calls it, empty where nothing tells; it proves nothing."""
    image: str
    """The same for the image."""
    pod: str
    """The same for the pod, ``namespace/name``."""
    state: Literal["created", "running", "stopped", "unmeasured"]
    """``unmeasured``: it started without the agent, and nothing is recorded of it."""
    count: int
    """Records in its log."""
    cpcr: _Hash | None
    """Its register after them."""
    verdict: LastVerdict | None
    """None: never appraised on this host, or not for the one who asks to see."""
    started: str
    """When it was registered, RFC 3339."""
    ended: str | None
    """When its end was recorded."""
    registration: int | None
    """Of this start alone; ``cima log`` takes it for an id."""
    dependencies: int | None
    """Registration of the services that it relies on."""
    kind: Literal["container", "dependencies"]
    pid: int | None
    """Its first process."""
    uid: int
    """The host's user whose container it is."""
    mntns: int | None
    """Inode number of its mount namespace."""
    cgroup: str | None
    bundle: str
    """Directory of its OCI configuration."""


class Bind(_Shape):
    """What the last bind put into the binding PCR (design, section 6)."""

    history: _Hash
    status: _Hash
    host: _Hash
    root: _Hash


class PcrLines(_Shape):
    """The kernel's log for one PCR."""

    lines: int
    matches_tpm: bool | None
    """Whether the lines add up to the PCR; None: the TPM could not be read."""


class KernelLog(_Shape):
    """The kernel's measurement log."""

    model_config = ConfigDict(extra="allow")

    lines: int
    error: str | None
    """Why it cannot be read on, in words."""
    __pydantic_extra__: dict[str, PcrLines]
    """``pcr10`` and ``pcr11``, or what else the settings say."""


class SensorStatus(_Shape):
    """The eBPF sensor."""

    programs: list[str]
    watched: int
    """Mount namespaces that are watched."""
    nested: int
    """Those that were made inside containers."""
    ring_bytes: int
    """Bytes that wait to be read."""
    dropped: int
    """Events for which there was no room."""
    missed: int
    """Runs of a program that the kernel left out."""
    orphans: int
    """Events of no container that is known."""


class Trouble(_Shape):
    """Why records are not durable or not bound."""

    since: str
    kind: Literal["disk", "tpm"]
    reason: str


class Storage(_Shape):
    """The state directory."""

    mib: int
    quota_mib: int
    """0: no quota."""
    removed_unattested: int
    """Containers removed before all of them was attested."""


class Fleet(_Shape):
    """Reports to the fleet's service."""

    url: str
    enrolled: bool
    """Whether the service has said that it knows this host."""
    last_report_seconds: float | None
    """Seconds since the last report that was accepted; None: none since the agent started."""
    trouble: str | None
    """Why reports are not accepted at the moment."""


class Status(_Shape):
    """What the agent says of itself."""

    pcr: int
    """The PCR that registers are bound into."""
    pcr_value: _Hash | None
    """None: the TPM cannot be read."""
    expected_value: _Hash | None
    """What it must be; None before it was read in this boot."""
    initial_value: _Hash | None
    """What it was before the first bind of this boot."""
    bind: Bind | None
    """None: none since the agent started."""
    foreign_extends: int
    """How often somebody else extended it."""
    tpm: str
    """The TPM, or what is wrong with it; ``missing``."""
    sensor: SensorStatus | Literal["missing"]
    kernel_log: KernelLog | Literal["missing"]
    lost: int
    """Events lost; the partitions concerned say so."""
    missing: list[str]
    """Sources that the agent runs without: ``ima``, ``sensor``, ``tpm``."""
    boot_id: str
    containers: int
    """Of this boot."""
    unwritten_records: int
    """Records that wait for the disk."""
    trouble: Trouble | None
    gaps: int
    """Times in which records were not written, or not bound."""
    storage: Storage
    fleet: Fleet | None
    """None: the host reports to nobody."""


class Reload(_Shape):
    """What became of the settings."""

    in_force: list[str]
    """Keys that changed and are in force."""
    take_a_restart: list[str]
    """Keys that changed and wait for the agent's restart."""


class RecordDigest(_Shape):
    """A digest of what is measured."""

    hashAlg: Literal["sha256"]
    digest: _Hash


class LogRecord(_Shape):
    """A record, as it is stored: one a line."""

    recnum: int
    """Number in its partition, from 0."""
    cpcr: str
    """The container's id."""
    digests: list[RecordDigest]
    content_type: Literal["ima_template", "cima"]
    content: dict[str, Any]
    """What is measured: see the formats of evidence for each ``type``."""
    meta: dict[str, Any]
    """What is not measured: ``time``, ``pid``, ``uid``, ``ima_line``, ``missing``."""


_OF_SUMMARY: dict[str, Any] = {
    name: (field.annotation, field)
    for name, field in ConfigSummary.model_fields.items()
    if name not in NOT_SHOWN
}
ShownConfig = create_model(
    "ShownConfig",
    __base__=_Shape,
    __doc__="The measured configuration, summed up.",
    **_OF_SUMMARY,
    privileged=(bool, Field(description="Whether it is a container in name only.")),
    capabilities_beyond_default=(
        tuple[str, ...],
        Field(description="Those that engines do not give every container."),
    ),
)


class ShownEnv(_Shape):
    """An environment variable of the bundle."""

    name: str
    value: str | None
    """None: it was measured, and the bundle has none such any more."""
    measured: bool
    """Whether this value is the measured one."""


class ShownService(_Shape):
    """A service that the container relies on."""

    role: str
    path: str
    digest: str


class ShownUnmeasured(_Shape):
    """A file of a service that the kernel did not measure."""

    role: str
    path: str | None
    digest: str | None
    reason: str


class ShownDependencies(_Shape):
    """The services that the container relies on."""

    partition: str
    """What ``cima log`` takes to show all of them."""
    measured: int
    """Files of services that were measured."""
    services: list[ShownService]
    unmeasured: list[ShownUnmeasured]


class Shown(_Shape):
    """What a container was configured to be."""

    id: str
    registration: int
    config: ShownConfig  # type: ignore[valid-type]
    rootfs: dict[str, Any] | None
    """The content of the ``rootfs`` record; None: not measured."""
    dependencies: ShownDependencies | None
    env: list[ShownEnv] | None = None
    """With ``--env`` only."""


class Diagnosis(_Shape):
    """One check of a host."""

    check: str
    state: Literal["ok", "warn", "fail"]
    """``fail``: the host cannot measure as it is set up."""
    what: str
    next: str
    """What to do about it; empty where there is nothing to do."""


class Appraisal(_Shape):
    """What the host's own records came to."""

    verdict: Literal["TRUSTED", "UNTRUSTED", "UNKNOWN"]
    container: str
    compared: int
    """Layers' and files' records that were compared with the image."""
    findings: list[Finding]


class CheckedPolicy(_Shape):
    """A policy that can be read."""

    policy: str
    """The file."""
    sha256: _Hash
    """Of the file."""
    changed: dict[str, Any]
    """The keys that differ from their defaults."""


class Configured(_Shape):
    """A change of an engine's settings."""

    engine: str
    path: str
    changed: bool
    """Whether there was anything to change; with ``--dry-run`` nothing is written all the same."""
    written: bool
    diff: str
    """The change, as a unified diff."""
    next: list[str]
    """What to do for the engine to see it."""


class OwnerKeys(_Shape):
    """A new key pair."""

    public: str
    """What goes into the annotation ``io.cima.owner``."""
    private_file: str
    public_file: str


class Version(_Shape):
    """This program."""

    version: str
    json_version: int
    """Of the shapes on this page."""


class ErrorOf(_Shape):
    """What could not be done."""

    kind: str
    """The class of error, for programs."""
    what: str
    """The same for people, in one line."""
    hint: str
    """What to do next; may be empty."""


class Failure(_Shape):
    """What every command prints in place of its own shape, with exit status 2."""

    error: ErrorOf


class Output(NamedTuple):
    """What one command prints."""

    command: str
    type: Any
    """A model, or a list of them."""
    lines: bool = False
    """Whether each line is a value of its own."""


OUTPUTS = (
    Output("ps", list[PsRow]),
    Output("status", Status),
    Output("reload", Reload),
    Output("log", LogRecord, lines=True),
    Output("show", Shown),
    Output("doctor", list[Diagnosis]),
    Output("appraise", Appraisal),
    Output("verify", Result),
    Output("policy check", CheckedPolicy),
    Output("configure", Configured),
    Output("keygen", OwnerKeys),
    Output("version", Version),
    Output("fleet overview", fleet.Overview),
    Output("fleet hosts", list[fleet.Host]),
    Output("fleet containers", list[fleet.Container]),
    Output("fleet show", fleet.OneContainer | fleet.OneHost),
    Output("fleet records", list[fleet.Record]),
    Output("fleet find", list[fleet.Place]),
    Output("fleet enrolments", list[fleet.Waiting]),
    Output("fleet approve", fleet.Approved),
    Output("fleet reject", fleet.Done),
    Output("fleet label", fleet.Done),
    Output("fleet remove", fleet.Done),
    Output("fleet references", list[fleet.Reference]),
    Output("fleet references add", fleet.Made),
    Output("fleet references retire", fleet.Done),
    Output("fleet policies", list[fleet.Policy]),
    Output("fleet policies add", fleet.Made),
    Output("fleet policies assign", fleet.Made),
    Output("fleet policies assignments", list[fleet.Assignment]),
    Output("fleet policies unassign", fleet.Done),
    Output("fleet policies diff", fleet.Difference),
    Output("fleet events", list[fleet.Event]),
    Output("fleet audit", list[fleet.AuditEntry]),
    Output("fleet audit verify", fleet.AuditVerified),
    Output("fleet tokens", list[fleet.Token]),
    Output("fleet tokens add", fleet.Secret),
    Output("fleet tokens revoke", fleet.Done),
    Output("fleet join-tokens", list[fleet.JoinToken]),
    Output("fleet join-tokens add", fleet.Secret),
    Output("fleet join-tokens void", fleet.Done),
    Output("fleet tenants", list[fleet.Tenant]),
    Output("fleet tenants add", fleet.Done),
    Output("fleet grants", list[fleet.Grant]),
    Output("fleet grants add", fleet.Granted),
    Output("fleet grants remove", fleet.Done),
    Output("fleet token", fleet.WorkloadToken),
    Output("fleet webhooks", list[fleet.Webhook]),
    Output("fleet webhooks add", fleet.Secret),
    Output("fleet webhooks remove", fleet.Done),
    Output("fleet webhooks failed", list[fleet.Undelivered]),
)
FAILURE = Output("every command that fails", Failure)


class UndocumentedError(Exception):
    """A command printed what its shape has not."""


def check(arguments: tuple[str, ...], printed: str) -> None:
    """See that what ``cima ARGUMENTS… --json`` printed is of the command's shape.

    Raises:
        UndocumentedError: it is not, or the command has none.
    """
    said = [word for word in arguments if not word.startswith("-")]
    # The longest first: `fleet show` is no `show`.
    for output in sorted(OUTPUTS, key=lambda one: -len(one.command.split())):
        words = output.command.split()
        if any(said[at : at + len(words)] == words for at in range(len(said))):
            break
    else:
        raise UndocumentedError(f"no shape is known of cima {' '.join(arguments)}")
    failed = printed.startswith('{\n  "error": {')
    form = TypeAdapter(Failure if failed else output.type)
    for part in printed.splitlines() if output.lines and not failed else [printed]:
        try:
            form.validate_json(part)
        except ValueError as error:
            raise UndocumentedError(f"cima {output.command} --json: {error}") from error

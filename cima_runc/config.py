"""The settings in /etc/cima/config.toml, checked as a whole.

Every key has a default, so that no file is needed; a key or value that is not known is an error.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from cima_runc.base import limits
from cima_runc.base.text import printable
from cima_runc.runtime.shim_settings import (
    SETTINGS_FILE,
    SettingsError,
    ShimSettings,
    read_settings_file,
    shim_settings_of,
)
from cima_runc.validation import first_of

NamePattern = Annotated[
    str, StringConstraints(pattern=r"\A(\*[!-)+-.0-~]{0,29}|[!-)+-.0-~]{1,29}\*?)\z")
]
"""A file's name, the beginning of one and ``*``, or ``*`` and the end of one; 29 characters of
ASCII without space (NAME_PATTERN_SIZE in sensor.h)."""
Sha256 = Annotated[str, StringConstraints(pattern=r"\A[0-9a-f]{64}\z")]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ImaSettings(_Section):
    """The kernel's measurement log."""

    required: bool = True
    """Whether the agent refuses to run without IMA and its policy."""
    directory: str = "/sys/kernel/security/ima"
    """IMA's directory in securityfs."""
    host_pcr: Annotated[int, Field(ge=0, le=23)] = 10
    """The PCR of host files."""
    container_pcr: Annotated[int, Field(ge=0, le=23)] = 11
    """The PCR of container files, as the policy says."""


class SensorSettings(_Section):
    """The eBPF sensor."""

    required: bool = True
    """Whether the agent refuses to run without the sensor."""
    ring_mib: Annotated[int, Field(ge=1, le=1024)] = 16
    """Size of the ring buffer between the kernel and the agent, MiB, a power of two."""
    measure_reads: Annotated[list[NamePattern], Field(max_length=limits.NAME_PATTERNS)] = []
    """Names of files that are measured when they are read, too: scripts for interpreters. ``*``
    stands at the beginning or at the end. Before Linux 6.12 the kernel takes no digest at that
    moment: a file that was not executed before is a violation with its name."""
    largest_file_mib: Annotated[int, Field(ge=1, le=1 << 30)] = 4096
    """MiB of a file that a container may execute, map executable or have measured; a larger one is
    refused, since hashing it cannot be ended."""

    @model_validator(mode="after")
    def _power_of_two(self) -> Self:
        if self.ring_mib & (self.ring_mib - 1):
            raise ValueError("ring_mib is a power of two")
        return self


class LimitSettings(_Section):
    """What one container may take of what is everybody's; above it, its events are lost."""

    records: Annotated[int, Field(ge=100)] = 1_000_000
    """Records of one container."""
    bytes: Annotated[int, Field(ge=limits.MIB)] = 1024 * limits.MIB
    """Bytes of one container's records on disk."""
    mib_per_second: Annotated[int, Field(ge=1, le=1024)] = 4
    """MiB of events, in the buffer between the kernel and the agent, in one second."""


class EnforcementSettings(_Section):
    """Whether the kernel lets a container run what is not in its image."""

    enforce: bool = False
    """Whether a file that is not in the container's image is denied, and not only recorded."""
    references: str = "/etc/cima/references"
    """Directory of reference values, a file an image, as ``cima reference image`` writes them."""
    unknown_images: Literal["refuse", "admit"] = "refuse"
    """What becomes of a container whose layers are of no image with reference values: it does not
    start, or it starts and may run anything, as without enforcement."""
    memory: Literal["admit", "deny"] = "admit"
    """What becomes of memory that is no file and is to become executable, as just-in-time compilers
    want it: it is recorded, or refused too. Goes for all containers, whatever ``enforce`` says."""
    allow: Annotated[list[Sha256], Field(max_length=1024)] = []
    """SHA-256 digests of files that may run in every container, such as the engine's init."""
    files: Annotated[int, Field(ge=1, le=16_000_000)] = 250_000
    """Files of one image at most: each takes some 100 bytes of the kernel's memory."""


class TpmSettings(_Section):
    """The TPM."""

    required: bool = True
    """Whether the agent refuses to run without a TPM."""
    tcti: Annotated[str, Field(max_length=1024, pattern=r"^[a-z]+(:[^\x00-\x1f]*)?$")] = (
        "device:/dev/tpmrm0"
    )
    """How the TPM is reached, as tpm2-tss writes it: ``device:/dev/tpmrm0``, ``swtpm:host=...``."""
    pcr: Annotated[int, Field(ge=0, le=23)] = 12
    """The binding PCR, in the SHA-256 bank."""


class RootfsSettings(_Section):
    """The measurement of root filesystems before a container starts."""

    mode: Literal["full", "layers-digest-only", "off"] = "full"
    """``full`` keeps each layer's manifest; ``layers-digest-only`` only its digest; ``off``
    measures nothing, and each container's record says so."""
    cache: Literal["on", "off"] = "on"
    """Whether a layer whose tree has not changed (inodes, sizes, times) is not read again."""


class BindingSettings(_Section):
    """When records are bound into the TPM."""

    mode: Literal["sync", "group", "quote"] = "group"
    """``sync``: with each batch of records; ``group``: at most ``group_ms`` after the first of
    many; ``quote``: when evidence is asked for, and at a container's start and end."""
    group_ms: Annotated[int, Field(ge=1, le=60_000)] = 100
    """Milliseconds that records may wait for a bind in the mode ``group``."""
    slots: Annotated[int, Field(ge=1 << 10, le=1 << 20)] = 1 << 10
    """Places in the tree of registers to begin with, a power of two: it doubles when there are more
    containers, and shows that to tenants."""
    on_tpm_failure: Literal["refuse", "admit"] = "refuse"
    """What becomes of new containers while the TPM fails: ``admit`` lets them start, and their
    first record says that the TPM was missing; they are bound when it works again."""

    @model_validator(mode="after")
    def _power_of_two(self) -> Self:
        if self.slots & (self.slots - 1):
            raise ValueError("slots is a power of two")
        return self


class StorageSettings(_Section):
    """How much is kept of containers that have ended."""

    quota_mib: Annotated[int, Field(ge=1, le=1 << 30)] = 4096
    """MiB of records; above it those of the containers that were registered first go."""
    keep_days: Annotated[int, Field(ge=0, le=36_600)] = 0
    """Days after a container's end, by the wall clock, that its records are kept; 0: no limit.
    While the clock is more than a day from what is known nothing goes for its age."""


class HttpsSettings(_Section):
    """The HTTPS endpoint for verifiers elsewhere."""

    enabled: bool = False
    """Whether verifiers on other machines may ask over HTTPS."""
    address: Annotated[str, Field(max_length=255)] = "0.0.0.0"  # noqa: S104 - for other machines
    """The address to listen on."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8443
    """Port to listen on; 0: any that is free."""
    certificate: str = "/etc/cima/https/cert.pem"
    """PEM file of the endpoint's certificate and chain."""
    key: str = "/etc/cima/https/key.pem"
    """PEM file of its private key."""
    client_ca: str | None = None
    """PEM file of the authorities whose clients may ask; without one everybody may."""
    requests_per_minute: Annotated[int, Field(ge=1, le=60_000)] = 60
    """How many requests one address may make."""
    redacted: bool = False
    """Whether the hashes of the host's log are given too: those of known files can be recognised,
    so that they tell what the host runs."""


class AttestationSettings(_Section):
    """Evidence for verifiers."""

    ak_handle: Annotated[int, Field(ge=0x81000000, le=0x817FFFFF)] | None = None
    """Persistent handle to keep the attestation key at; without one it is made at each start."""
    ak_certificate: str | None = None
    """PEM file of the attestation key's certificate, which then is in evidence."""
    boot_pcrs: Annotated[list[Annotated[int, Field(ge=0, le=23)]], Field(min_length=1)] = [
        *(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 14)
    ]
    """The PCRs of firmware, loader and kernel that are quoted beside the binding PCR."""
    event_log: str = "/sys/kernel/security/tpm0/binary_bios_measurements"
    """The firmware's event log."""
    owner_variable: bool = False
    """Whether the variable ``CIMA_OWNER`` names a container's owner, too, where no annotation does.
    An image can set one: then who makes images says who may read evidence."""
    owners_dir: str = "/etc/cima/owners"
    """Directory of files that a container may name as its owner, a public key a line."""
    retention_seconds: Annotated[int, Field(ge=0, le=366 * 86_400)] = 86_400
    """How long evidence of an ended container can be asked for."""
    https: HttpsSettings = HttpsSettings()


class UsersSettings(_Section):
    """Containers of users other than root (rootless Podman)."""

    group: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    """The group whose members may have their own containers measured; without one nobody may."""


class FleetSettings(_Section):
    """The fleet's service, which the host proves itself to; nothing on the host listens for it."""

    url: Annotated[str, Field(max_length=2048, pattern=r"^https://[^\s?#@]+$")] | None = None
    """Where the service is; without it nothing is reported. ``cima configure fleet`` sets it."""
    ca: str | None = None
    """PEM file of the authorities for its certificate; without one the system's."""
    join_token_file: str = "/etc/cima/fleet-token"  # noqa: S105 - a file
    """File of the token that this host joins with; without one a person has to approve."""
    name: (
        Annotated[str, Field(max_length=limits.HOST_NAME, pattern=r"^[A-Za-z0-9_.-]+$")] | None
    ) = None
    """What the host calls itself when it joins; without it its host name. It proves nothing."""
    service_key: Annotated[str, Field(pattern=r"^x25519:[A-Za-z0-9+/=_-]{20,100}$")] | None = None
    """The service's own owner's key: records of containers that it is an owner of are reported.
    Without it, only those of containers without an owner's key are."""
    host_log: Literal["none", "redacted", "full"] = "redacted"
    """How much of the kernel's log of the host is reported."""
    interval: Annotated[float, Field(ge=1, le=86_400)] = 60
    """Seconds between reports, where nothing changes and the service has not said otherwise."""
    min_interval: Annotated[float, Field(ge=0.1, le=3600)] = 2
    """Seconds between reports at least, until the service says otherwise."""
    tenants_may_enrol: bool = False
    """Whether tenants may have the attestation key prove itself to them through the service."""


class MetricsSettings(_Section):
    """What Prometheus is told of this host: counts, no names."""

    port: Annotated[int, Field(ge=0, le=65535)] | None = None
    """Port of 127.0.0.1 that gives ``/metrics``, 0: any that is free; without one nothing does."""


class Settings(_Section):
    """All settings."""

    shim: ShimSettings = ShimSettings()
    """The top-level keys, which the shim and the hooks read too."""
    ima: ImaSettings = ImaSettings()
    sensor: SensorSettings = SensorSettings()
    enforcement: EnforcementSettings = EnforcementSettings()
    limits: LimitSettings = LimitSettings()
    tpm: TpmSettings = TpmSettings()
    rootfs: RootfsSettings = RootfsSettings()
    binding: BindingSettings = BindingSettings()
    attestation: AttestationSettings = AttestationSettings()
    storage: StorageSettings = StorageSettings()
    users: UsersSettings = UsersSettings()
    fleet: FleetSettings = FleetSettings()
    metrics: MetricsSettings = MetricsSettings()

    @model_validator(mode="after")
    def _enforcement_takes_what_is_measured(self) -> Self:
        if self.enforcement.enforce and not (self.sensor.required and self.ima.required):
            raise ValueError("enforcement.enforce takes sensor.required and ima.required")
        if self.enforcement.enforce and self.rootfs.mode == "off":
            raise ValueError("enforcement.enforce takes rootfs.mode other than off")
        return self

    @model_validator(mode="after")
    def _container_pcr_is_never_quoted(self) -> Self:
        boot = set(self.attestation.boot_pcrs)
        if not boot.isdisjoint({self.ima.container_pcr, self.ima.host_pcr, self.tpm.pcr}):
            raise ValueError("attestation.boot_pcrs holds a PCR of files or of the binding")
        return self


def parse_settings(values: dict[str, Any]) -> Settings:
    """Check the ``values`` of a settings file.

    Raises:
        SettingsError: names the key, the value and what is allowed.
    """
    sections = Settings.model_fields.keys() - {"shim"}
    top = {key: value for key, value in values.items() if key not in sections}
    known = ShimSettings.__dataclass_fields__.keys()
    for key in top:
        if key not in known:
            raise SettingsError(f"{key} is no setting: allowed are {_names(known | sections)}")
    shim = shim_settings_of(top)
    try:
        rest = {key: value for key, value in values.items() if key in sections}
        return Settings.model_validate({"shim": shim, **rest})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            section = Settings.model_fields[str(first["loc"][0])].annotation
            allowed = section.model_fields.keys() if section is not None else ()
            raise SettingsError(f"{key} is no setting: allowed are {_names(allowed)}") from error
        value = printable(repr(first["input"])[:200])
        raise SettingsError(f"{key} = {value} is not allowed: {first_of(error)}") from error


def load_settings(path: str = SETTINGS_FILE) -> Settings:
    """Read and check the settings file; no file means the defaults.

    Raises:
        SettingsError: the file cannot be read, or holds what is not allowed.
    """
    return parse_settings(read_settings_file(path))


def _names(keys: Any) -> str:
    return ", ".join(sorted(keys))

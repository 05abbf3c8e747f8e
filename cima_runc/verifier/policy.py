"""What a relying party insists on, as a TOML file."""

import re
import tomllib
from typing import Annotated, Any, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    ValidationError,
    field_validator,
)

from cima_runc.base import limits
from cima_runc.base.errors import CimaError
from cima_runc.base.text import printable
from cima_runc.evidence.errors import first_of
from cima_runc.evidence.fields import Digest, Model, PcrNumber
from cima_runc.ml.contents import MemoryKind, ViolationKind
from cima_runc.verifier.pattern import PatternError, compile_pattern, matches


class PolicyError(CimaError):
    """The policy file has a key or a value that is not allowed."""


def _to_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _to_tuples(value: object) -> object:
    return tuple(map(_to_tuple, value)) if isinstance(value, list) else value


def _to_kinds(value: object) -> object:
    if isinstance(value, bool):
        return get_args(ViolationKind) if value else ()
    return _to_tuple(value)


def _check_pattern(pattern: str) -> str:
    try:
        compile_pattern(pattern)
    except PatternError as error:
        raise ValueError(str(error)) from error
    return pattern


_Pcrs = Annotated[tuple[PcrNumber, ...], BeforeValidator(_to_tuple), Field(min_length=1)]
_Names = Annotated[tuple[str, ...], BeforeValidator(_to_tuple)]
_Numbers = Annotated[tuple[Annotated[int, Field(ge=0, lt=2**32)], ...], BeforeValidator(_to_tuple)]
_Kinds = Annotated[tuple[ViolationKind, ...], BeforeValidator(_to_kinds)]
_Digests = Annotated[tuple[Digest, ...], BeforeValidator(_to_tuple)]
_Pattern = Annotated[str, AfterValidator(_check_pattern)]
_Patterns = Annotated[tuple[_Pattern, ...], BeforeValidator(_to_tuple)]
_HostUser = Annotated[str, Field(pattern=r"\A[^:\x00-\x1f\x7f]+(:[^:\x00-\x1f\x7f]*)?\z")]
_HostUsers = Annotated[tuple[_HostUser, ...], BeforeValidator(_to_tuple)]
_Commands = Annotated[tuple[tuple[str, ...], ...], BeforeValidator(_to_tuples)]


class AllowedFile(Model):
    """A file that may run though the reference values do not have it."""

    path: _Pattern
    """Pattern of its path (:mod:`cima_runc.verifier.pattern`)."""
    sha256: _Digests | None = None
    """What its content may be, nothing where the list is empty; any content, where there is no such
    key, and the result says so."""

    def allows(self, path: bytes, digest: bytes) -> bool:
        """Return whether a file with this path and SHA-256 may run."""
        is_content = self.sha256 is None or digest in self.sha256
        return is_content and matches(self.path, path)


_Files = Annotated[tuple[AllowedFile, ...], BeforeValidator(_to_tuple)]


class AllowedMemory(Model):
    """A program that may make memory executable that is no measured file."""

    program: _Pattern
    """Pattern of its path."""
    kinds: Annotated[tuple[MemoryKind, ...], BeforeValidator(_to_tuple)]
    """``execmem``, ``execmod``, ``execstack``, ``execheap``, by SELinux's names."""

    def allows(self, program: bytes, kind: MemoryKind) -> bool:
        """Return whether the program with this path may do this."""
        return kind in self.kinds and matches(self.program, program)


class AllowedUnstable(Model):
    """A file that may run though nothing vouches that what ran is what its digest says.

    Its digest is compared with the image's all the same. Where there is none, nothing is: such a
    record is allowed by a line with ``without_digest`` alone, and that line allows no other.
    """

    path: _Pattern
    """Pattern of its path."""
    why: Annotated[_Names, Field(min_length=1)]
    """The reasons that are accepted for it, by the names that the record has, such as
    ``server-can-answer-twice`` for a FUSE or network file system."""
    func: Annotated[_Names, Field(min_length=1)] | None = None
    """How it may be used, by the names that the record has: ``BPRM_CHECK`` executed, ``MMAP_CHECK``
    mapped to be executed, ``FILE_CHECK`` read; None: in any of these ways."""
    without_digest: bool = False
    """Whether it is for records without a digest, of whose content nothing is known."""

    def allows(self, path: bytes, why: str, func: str | None, *, has_digest: bool) -> bool:
        """Return whether the file with this path may run in spite of this reason."""
        return (
            has_digest is not self.without_digest
            and why in self.why
            and (self.func is None or func in self.func)
            and matches(self.path, path)
        )


_Unstable = Annotated[tuple[AllowedUnstable, ...], BeforeValidator(_to_tuple)]


_Memory = Annotated[tuple[AllowedMemory, ...], BeforeValidator(_to_tuple)]


class HostPolicy(Model):
    """What the kernel's log of the host may hold, where it is asked for."""

    allow_not_comparable_boot_aggregate: bool = False
    """Whether ``boot_aggregate`` may be of another hash than SHA-256, or the PCRs that it is of not
    quoted: then nothing ties the log to this boot."""
    allow_violations: bool = False
    """Whether files may have changed while IMA measured them, though their paths are not shown
    (``redacted``), or are those of the host services."""


class AllowedWritten(Model):
    """What the container's own layer may hold though no engine makes it."""

    path: _Pattern
    """Pattern of its path."""
    sha256: _Digests | None = None
    """What its content may be, if it is a plain file without more rights than its owner's (setuid,
    capabilities); None: it may be anything."""

    def allows(self, path: bytes) -> bool:
        """Return whether this path may be anything."""
        return self.sha256 is None and matches(self.path, path)

    def allows_file(self, path: bytes, digest: bytes) -> bool:
        """Return whether a plain file with this path and SHA-256 may be there."""
        is_content = self.sha256 is None or digest in self.sha256
        return is_content and matches(self.path, path)


def _to_tables(value: object) -> object:
    if not isinstance(value, list):
        return value
    return tuple({"path": each} if isinstance(each, str) else each for each in value)


_WrittenFiles = Annotated[tuple[AllowedWritten, ...], BeforeValidator(_to_tables)]


class RootfsPolicy(Model):
    """What the root filesystem may be, beside the image's layers."""

    allow_unmeasured: bool = False
    """Whether it may be unmeasured (``rootfs.mode = "off"`` in the agent's settings)."""
    allow_changing: bool = False
    """Whether files may change while they are measured."""
    allow_tree: bool = False
    """Whether it may be something else than an overlay, which no layers can be told of."""
    allow_written: _WrittenFiles = ()
    """What the container's own layer may hold when it starts, as after a restart; what engines
    make there is allowed anyhow. What it hides of the image must be allowed as well. A text alone
    is a pattern of the path, of whatever type and content."""
    host_users: _HostUsers = ()
    """Users of the host, each as ``NAME`` or ``NAME:FULL NAME``, by whom Podman may call the
    container's own user in the line that it adds to ``/etc/passwd`` where the image does not know
    that number and the host does."""


class AllowedMount(Model):
    """A mount that the container may have, beside those that engines make."""

    destination: _Pattern
    """Where it is in the container."""
    source: _Pattern | None = None
    """Directory or file of the host, or what a filesystem of ``type`` is of; None: anything."""
    type: str | None = None
    """Type of the filesystem, ``bind`` for a directory or file of the host. None: ``bind`` where
    there is a source, which says nothing of an overlay's layers, and else any."""
    layers: _Patterns | None = None
    """Of an overlay: which directories it may be made of, lower ones and upper one. None: any."""
    read_only: bool = False
    """Whether it must be mounted read-only."""


_Mounts = Annotated[tuple[AllowedMount, ...], BeforeValidator(_to_tuple)]


_DEVICE_NUMBER = re.compile(r"[abcp] (?:\*|dynamic|0|[1-9][0-9]{0,9}):(?:\*|0|[1-9][0-9]{0,9})")
DYNAMIC_MAJORS = {"b": range(240, 255), "c": (*range(234, 255), *range(384, 512))}
"""Major numbers that drivers get when they are loaded, other ones at the next boot perhaps, by the
type of device. Source: Documentation/admin-guide/devices.txt of Linux; CHRDEV_MAJOR_DYN_END and
CHRDEV_MAJOR_DYN_EXT_START in include/linux/fs.h."""


def _check_number(number: str) -> str:
    if not _DEVICE_NUMBER.fullmatch(number):
        raise ValueError(f"devices are as 'c 10:229' or 'b 8:*', not {printable(number[:40])}")
    return number


_Number = Annotated[str, AfterValidator(_check_number)]


def covers(allowed: str, number: str) -> bool:
    """Return whether devices by their numbers, as ``c 10:*``, hold all those of ``number``, which
    has numbers or stars alone."""
    if not _DEVICE_NUMBER.fullmatch(number):
        return False
    (kind, major, minor), (other_kind, other_major, other_minor) = (
        text.replace(":", " ").split(" ") for text in (allowed, number)
    )
    if major == "dynamic":
        majors = {str(each) for each in DYNAMIC_MAJORS.get(other_kind, ())}
    else:
        majors = {major, other_major if major == "*" else major}
    return kind in {"a", other_kind} and other_major in majors and minor in {"*", other_minor}


class AllowedDevice(Model):
    """A device of the host that the container may have."""

    path: _Pattern
    """Pattern of its path in the container."""
    number: _Number | None = None
    """Type and numbers, as ``c 10:229``, ``c 195:*`` or, for a major number that the kernel gives
    out as drivers are loaded, ``c dynamic:*``; None: whatever device is there."""


_Devices = Annotated[tuple[AllowedDevice, ...], BeforeValidator(_to_tables)]


class ConfigPolicy(Model):
    """What the container's OCI configuration may say."""

    allow_privileged: bool = False
    """Whether it may reach all devices and all of /proc and /sys, with whatever capabilities."""
    allow_unmasked: bool = False
    """Whether no part of /proc and /sys need be hidden from it, or read-only for it
    (``systempaths=unconfined``)."""
    masked_paths: _Patterns = ()
    """What may be hidden from it (``linux.maskedPaths``) beside parts of /proc and /sys."""
    host_namespaces: _Names = ("cgroup", "time", "user")
    """Kinds of namespaces that it may share with the host, and ``mount`` with anybody."""
    capabilities: _Names = (
        "CAP_AUDIT_WRITE",
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_FOWNER",
        "CAP_FSETID",
        "CAP_KILL",
        "CAP_MKNOD",
        "CAP_NET_BIND_SERVICE",
        "CAP_NET_RAW",
        "CAP_SETFCAP",
        "CAP_SETGID",
        "CAP_SETPCAP",
        "CAP_SETUID",
        "CAP_SYS_CHROOT",
    )
    """Capabilities that it may have; the default is Docker's and containerd's."""
    ambient: _Names = ()
    """Those by which it may do as root does (``CAP_SETUID``) though its user, as the image's, is
    another: Podman gives a user what ``--cap-add`` names."""
    mounts: _Mounts = ()
    """Mounts beside those that engines make."""
    devices: _Devices = ()
    """Devices of the host. A text alone is a pattern of the path in the container, whatever device
    whoever started it has put there."""
    device_rules: Annotated[tuple[_Number, ...], BeforeValidator(_to_tuple)] = ()
    """Devices that it may use without having them by a path (``--device-cgroup-rule``), as
    ``c 195:*``; ``a *:*``: all."""
    allow_any_args: bool = False
    """Whether it may run any command."""
    args: _Commands = ()
    """Commands, with all their arguments, that it may run beside the image's own."""
    users: _Names = ()
    """Users, as ``UID`` or ``UID:GID``, that it may run as beside the image's own."""
    groups: _Numbers = ()
    """Numbers of groups that it may be in beside those of its user in the image, though some file
    of the image gives them other rights than everybody; other groups need no word."""
    working_dirs: _Names = ()
    """Working directories that it may start in beside the image's own."""
    env: _Names = ()
    """Environment variables it may have though they change what programs load, such as
    ``LD_PRELOAD``, and the image does not set them."""
    hooks: _Commands = ()
    """Hooks that may run in the container's namespaces before its command, each as its path and
    all arguments."""
    hook_env: _Names = ()
    """The same as ``env`` of those hooks, each of which may have them."""
    annotations: _Names = ()
    """Annotations that it may have though crun does otherwise by them than its configuration says,
    such as ``run.oci.handler=krun``; the name alone is with any value."""
    require_seccomp: bool = False
    """Whether it must have a seccomp filter; containerd's ctr sets none."""
    allow_seccomp_answers: bool = False
    """Whether its filter may answer system calls itself: with a success though nothing was done
    (an ``errnoRet`` of 0), or by a program of the host's (``SCMP_ACT_NOTIFY``)."""


class DependenciesPolicy(Model):
    """What the services of the host may be that the container relies on."""

    required: bool = False
    """Whether they must be in the evidence, and a host's reference values be given."""
    allow_unmeasured: _Patterns = ("/usr/lib/python3*", "/usr/local/lib/python3*")
    """Files that may be missing from the kernel's log, and from the host's reference values; the
    default is Python's own library, of which the agent always says so."""
    files: _Files = ()
    """Files that may run though the host's reference values do not have them."""


class Policy(Model):
    """A policy; every key has a default."""

    boot_pcrs: _Pcrs = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 14)
    """The PCRs of firmware, loader and kernel that must be quoted beside the binding PCR."""
    binding_pcr: PcrNumber = 12
    """The PCR that registers are bound into; never 16 or 23, which anybody can reset."""
    host_pcr: PcrNumber = 10
    """The PCR of the host's log: quoted where any of that log is shown."""
    require_safe_clock: bool = True
    """Whether a clock that the TPM does not vouch for (after a power cut) is refused."""
    allow_lost: bool = False
    """Whether events that the sensor lost are tolerated."""
    allow_violations: _Kinds = ()
    """Kinds of violations that are tolerated; true: all, false: none. What ran without a digest or
    a path (``unnamed``), what reached for the sensor (``guard``), who entered with more rights
    (``entry``). ``unstable`` is the narrow way for files."""
    allow_missing: _Names = ()
    """Sources of measurement that may be missing: ``ima``, ``sensor``, ``tpm``; ``bundle``, where
    others may write that; ``memory``, where it was restored from a checkpoint."""
    allow_restarts: bool = False
    """Whether a container may be trusted though an earlier run of it was not, or was not seen to
    its end."""
    allow_foreign_extends: bool = True
    """Whether the binding PCR may have been extended by somebody else; it is shown anyhow."""
    pcr_values: dict[str, _Digests] = Field(default_factory=dict)
    """Allowed values (hexadecimal) of a boot PCR, by its number."""
    files: _Files = ()
    """Files that may run though the image does not have them."""
    unstable: _Unstable = ()
    """Files that may run though their digest may not be of what ran."""
    memory: _Memory = ()
    """Programs that may make memory executable, such as those that compile as they run."""
    rootfs: RootfsPolicy = RootfsPolicy()
    config: ConfigPolicy = ConfigPolicy()
    dependencies: DependenciesPolicy = DependenciesPolicy()
    host: HostPolicy = HostPolicy()

    @field_validator("pcr_values")
    @classmethod
    def _numbers_are_canonical(cls, value: dict[str, object]) -> dict[str, object]:
        if not value.keys() <= {str(pcr) for pcr in range(24)}:
            raise ValueError("a PCR is a decimal number from 0 to 23")
        return value

    def allows_violation(self, kind: ViolationKind) -> bool:
        """Return whether violations of this kind are tolerated."""
        return kind in self.allow_violations

    def selection(self, host: str) -> tuple[int, ...]:
        """Return the PCRs that a quote must show at this disclosure of the host's log."""
        shown = {*self.boot_pcrs, self.binding_pcr}
        return tuple(sorted(shown | {self.host_pcr} if host != "none" else shown))


_SUGGEST = "cima policy suggest writes one"


def parse_policy(raw: bytes) -> Policy:
    """Read a policy.

    Raises:
        PolicyError: names the key and what is wrong with it.
    """
    if len(raw) > limits.VERIFIER_INPUT:
        raise PolicyError(f"the policy has more than {limits.VERIFIER_INPUT} bytes")
    try:
        policy = Policy.model_validate(tomllib.loads(raw.decode("utf-8-sig")))
    except ValidationError as error:
        place = error.errors(include_url=False, include_input=False, include_context=False)[0]
        allowed = ", ".join(sorted(_table(place["loc"]).model_fields))
        raise PolicyError(f"the policy: {first_of(error)}", hint=f"keys are {allowed}") from error
    except UnicodeDecodeError as error:
        raise PolicyError("the policy is not TOML: it is not UTF-8", hint=_SUGGEST) from error
    except (ValueError, RecursionError) as error:
        raise PolicyError(f"the policy is not TOML: {error}", hint=_SUGGEST) from error
    if policy.binding_pcr in {*policy.boot_pcrs, policy.host_pcr, 16, 23}:
        raise PolicyError(f"binding_pcr = {policy.binding_pcr} is not a PCR of its own")
    return policy


def _table(place: tuple[int | str, ...]) -> type[BaseModel]:
    """Return the model of the table that a key is in."""
    table: type[BaseModel] = Policy
    for key in place:
        field = table.model_fields.get(str(key))
        if field is not None:
            table = next(iter(_models(field.annotation)), table)
    return table


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in get_args(annotation) for model in _models(inner)]

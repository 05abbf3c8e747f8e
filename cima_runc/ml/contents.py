"""What records say: one type for each kind of content, built and read through it everywhere.

A content is what of a record is measured. :func:`read` gives that of a record, and refuses by name
what it does not know; :meth:`Content.to_json` gives the object that is measured. Both are exact:
what was read is written again as it was, key by key, so that its digest stays.

``docs/evidence.md`` describes every content for those who write a verifier of their own.
Source: design, section 5.
"""

import hashlib
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Discriminator, Field, Tag, TypeAdapter, ValidationError, model_validator

from cima_runc.base import limits
from cima_runc.base.text import printable
from cima_runc.evidence.fields import Base64, Digest, Hex, Model
from cima_runc.ima.template import Func, TemplateError, unpack_cima_ng
from cima_runc.ml.records import (
    CIMA,
    IMA_TEMPLATE,
    Record,
    RecordError,
    digest_of,
    template_data,
)
from cima_runc.validation import first_of

Hook = Literal["BPRM_CHECK", "MMAP_CHECK", "FILE_CHECK"]
"""The kernel's check that saw a file, as in an IMA policy."""

_Number = Annotated[int, Field(ge=0, lt=2**53)]
"""What RFC 8785 holds exactly."""
_Inum = Annotated[int, Field(ge=0, lt=2**32)]
"""Inode number of a namespace."""
_List = Field(strict=False)
"""JSON's arrays are lists, our models' are tuples."""


class ContentError(RecordError):
    """A record's content is not one that records have."""


class UnknownTypeError(ContentError):
    """Of a type that this program does not know."""


class ShapeError(ContentError):
    """Of a known type, and not of the shape that this type has."""


class Content(Model):
    """What all contents of the type ``cima`` have in common."""

    def to_json(self) -> dict[str, Any]:
        """Return the object that is measured, for RFC 8785."""
        value = self.model_dump(mode="json")
        _drop_absent(self, value)
        return value


def _drop_absent(model: Model, value: dict[str, Any]) -> None:
    """Leave out optional fields that are not there: they are never null."""
    for name, field in type(model).model_fields.items():
        inner = getattr(model, name)
        if inner is None and not field.is_required():
            del value[name]
        elif isinstance(inner, Model):
            _drop_absent(inner, value[name])
        elif isinstance(inner, tuple):
            for one, shown in zip(inner, value[name], strict=True):
                if isinstance(one, Model):
                    _drop_absent(one, shown)


class Previous(Model):
    """The last run of the same line that has a partition."""

    run: Annotated[_Number, Field(ge=1)]
    boot_id: str
    registration: _Number
    count: _Number
    """Its records, ``exit`` counted."""
    cpcr: Digest
    """Its register after them."""
    reason: str | None
    """Why it ended; None: its end was not written down, as where a boot cut it off."""


_Path = Annotated[str, Field(max_length=limits.PATH, pattern=r"(?s)^/.")]
_Paths = Annotated[tuple[_Path, ...], _List]
_Id = Annotated[str, Field(max_length=limits.CONTAINER_ID, pattern=r"^[A-Za-z0-9_+,.-]+$")]


class Engine(Model):
    """The engine that made a container, and where on its host it keeps things."""

    name: Literal["docker", "containerd", "cri-o", "podman"] | None
    """None: the runtime was called by none that we know, as by hand."""
    cri: bool = False
    """Whether it made the container for a pod of Kubernetes."""
    roots: _Paths = ()
    """Absolute directories that it keeps containers' data in, as it spells them; sorted."""
    states: _Paths = ()
    """The same for what lasts until the next boot."""
    kubelets: _Paths = ()
    """Root directories of this host's kubelets, for ``cri``."""
    shares: Annotated[tuple[_Id, ...], _List] = ()
    """Ids of this engine's containers whose network, ipc or uts namespace the container shares."""
    redirected: _Paths = ()
    """Destinations of mounts whose source is in those directories by name only: a symbolic link
    leads elsewhere."""


NO_ENGINE = Engine(name=None)
"""Of a container that was made without one."""


class RegisterV1(Content):
    """A container's first record, as the agent of version 1 wrote it."""

    type: Literal["register"] = "register"
    id: str
    """The container's id."""
    boot_id: str
    """The kernel's random id of the boot."""
    registration: _Number
    """Of this start alone, in this boot."""
    cgroup: str
    """Path of its cgroup."""
    namespaces: dict[str, _Inum]
    """Inode numbers of its first process's namespaces, named as in /proc/PID/ns."""
    dependencies: _Number | None
    """Registration of the partition of the host services that it relies on; None: not found."""
    missing: Annotated[tuple[str, ...], _List]
    """Sources of measurement that the agent ran without: ``ima``, ``sensor``."""
    engine: Engine | None = None
    """What called the runtime; None: the first agents did not look."""
    uid: Annotated[_Number, Field(ge=1)] | None = None
    """The host's user whose container it is; None: root."""
    enforced: str | None = None
    """``sha256:`` digest of the configuration of the image that alone may run, where the host
    enforces."""


class Register(RegisterV1):
    """A container's first record."""

    line: Digest
    """What it has in common with its earlier and later runs."""
    run: Annotated[_Number, Field(ge=1)]
    """Which run of its line it is, over boots. Numbers skipped are starts that were refused."""
    previous: Previous | Literal["lost"] | None
    """The run before; None for run 1 only; ``lost``: the host has forgotten it."""

    @model_validator(mode="after")
    def _check_order(self) -> "Register":
        if (self.previous is None) != (self.run == 1):
            raise ValueError("a run has no previous one when, and only when, it is the first")
        if isinstance(self.previous, Previous) and self.previous.run >= self.run:
            raise ValueError("the previous run is no earlier one")
        return self


class Adopted(Content):
    """An agent of version 2 goes on with a partition of version 1: its line and run."""

    type: Literal["adopted"] = "adopted"
    line: Digest
    run: Annotated[int, Field(ge=1, le=1)]  # a Literal would take true for 1
    previous: Literal["lost"]


class ServicePath(Model):
    """A service of the host, as it was found."""

    role: str
    """``dockerd``, ``containerd``, ``shim``, ``runtime``, ``agent``, …"""
    path_hex: Hex
    """Path of its executable."""
    path: str
    """The same for people."""


class ServicesRegister(Content):
    """The first record of the partition of host services."""

    type: Literal["register"] = "register"
    id: str
    """``dependencies:`` and the registration."""
    kind: Literal["dependencies"]
    boot_id: str
    registration: _Number
    services: Annotated[tuple[ServicePath, ...], _List]
    missing: Annotated[tuple[str, ...], _List]


class Config(Content):
    """The whole OCI configuration, without our hooks, environment values replaced by their HMAC."""

    type: Literal["config"] = "config"
    config: dict[str, Any]


class RootAttributes(Model):
    """Mode and owner of the root directory as mounted, which no layer's manifest holds."""

    mode: str
    """Octal, as in a manifest."""
    uid: _Number
    gid: _Number


class Layer(Model):
    """One layer of a measured root filesystem."""

    kind: Literal["data", "lower", "init", "upper", "tree"]
    """data and lower: of the image; init: made by Docker; upper: the container's own; tree: a root
    filesystem that is not an overlay."""
    digest: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
    """Of the canonical manifest (:mod:`cima_runc.measure.mtree`)."""
    entries: _Number
    files: _Number
    bytes: _Number
    """Bytes of all regular files."""
    changed: Annotated[tuple[str, ...], _List]
    """Escaped paths of what changed while it was measured, the first hundred of them."""
    changed_count: _Number
    manifest: str | None = None
    """The manifest itself, of a layer that is of no image and short enough."""


class Rootfs(Content):
    """What a container's root filesystem was, before anything of it ran."""

    type: Literal["rootfs"] = "rootfs"
    mode: Literal["full", "layers-digest-only", "off"]
    format: str
    filesystem: Literal["overlay", "fuse-overlayfs", "tree"]
    reason: str
    """Why an overlay was measured as one tree."""
    root: RootAttributes | None
    layers: Annotated[tuple[Layer, ...], _List]
    """Bottom to top."""


class Lost(Content):
    """Events never arrived."""

    type: Literal["lost"] = "lost"
    count: _Number | None
    """How many; None: nobody knows."""
    reason: str
    mntns: _Inum | None = None
    """Mount namespace in which the last was lost, where it is not the container's own."""


class ViolationV1(Content):
    """A file that was denied, or that ran and cannot be named, by an agent of version 1."""

    type: Literal["violation"] = "violation"
    denied: bool
    """Whether the kernel refused it, so that nothing of it ran."""
    reason: str
    func: str | None
    """The hook that saw it."""
    digest: Hex | None
    """The kernel's, of whatever algorithm."""
    path_hex: Hex | None
    mntns: _Inum | None
    inode: Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,19})$")] | None
    """A decimal number: it may be beyond 2^53."""
    device: Annotated[str, Field(pattern=r"^[0-9]{1,10}:[0-9]{1,10}$")] | None
    """Major and minor number."""


ViolationKind = Literal["denied", "unnamed", "unstable", "changed", "guard", "entry", "helper"]
"""denied: not in the image, and refused. unnamed: ran, and has no digest or path. unstable: the
digest may not be of what ran. changed: code was changed after it was measured. guard: somebody
reached for the sensor. entry: somebody entered with more rights than the container has. helper: the
kernel ran it for the container elsewhere."""


class Violation(ViolationV1):
    """Something that is not as measured files are."""

    kind: ViolationKind
    why: str | None = None
    """Why a digest is unstable, or what was done: a value of ``Why`` of the sensor's events."""

    @model_validator(mode="after")
    def _check_why(self) -> "Violation":
        if self.kind == "unstable" and self.why is None:
            raise ValueError("why is given where the kind is unstable")
        return self


MemoryKind = Literal["execmem", "execmod", "execstack", "execheap"]
"""Kinds of executable memory, by the names that SELinux has given to them."""


class Memory(Content):
    """Executable memory that is no measured file, once for each program and kind."""

    type: Literal["memory"] = "memory"
    kind: MemoryKind
    program_path_hex: Hex | None
    program_digest: Hex | None
    mntns: _Inum
    denied: bool


class Application(Content):
    """What the workload said of itself: data that no kernel measures."""

    type: Literal["application"] = "application"
    kind: str
    """The workload's own word: model, dataset, configuration."""
    digest: Digest | None = None
    data: Base64 | None = None

    @model_validator(mode="after")
    def _check_one(self) -> "Application":
        if (self.digest is None) == (self.data is None):
            raise ValueError("either digest or data is given")
        return self


class Handed(Content):
    """Evidence or a token was handed to the workload, which may pass it on."""

    type: Literal["handed"] = "handed"
    kind: Literal["evidence", "token"]
    audience: str | None
    """For whom the token is; None for evidence."""
    count: Annotated[_Number, Field(ge=1)]
    """How often until now: written down the first time, and when it doubles."""


class Exit(Content):
    """The partition's end: nothing follows."""

    type: Literal["exit"] = "exit"
    reason: str


class Service(Content):
    """A service of the host: all that it maps stands before this."""

    type: Literal["service"] = "service"
    role: str
    path_hex: Hex
    path: str
    digest: Digest | None
    """SHA-256 of its executable; None where it could not be read."""


class Unmeasured(Content):
    """Something of the host services that the kernel's log does not hold."""

    type: Literal["unmeasured"] = "unmeasured"
    role: str
    path_hex: Hex | None
    path: str | None
    digest: Digest | None
    func: Hook | None
    reason: str


class File(NamedTuple):
    """A file that was executed, mapped executable or read (``content_type`` ``ima_template``)."""

    digest: bytes
    """SHA-256 of its content, 32 bytes."""
    path: bytes
    """As the kernel gave it, no NUL."""
    mntns: int
    """Inode number of the mount namespace."""
    func: Func


AnyContent = Content | File


class Measured(NamedTuple):
    """A record as rules look at it: its number, and what it says."""

    number: int
    content: AnyContent


def _tag(value: Any) -> str | None:
    if not isinstance(value, dict):
        return None
    kind = value.get("type")
    if not isinstance(kind, str):
        return None
    if kind == "register":
        if "kind" in value:
            return "register of services"
        return kind if value.keys() & {"line", "run", "previous"} else "register of version 1"
    if kind == "violation":
        return kind if value.keys() & {"kind", "why"} else "violation of version 1"
    return kind


CimaContent = Annotated[
    Annotated[Register, Tag("register")]
    | Annotated[RegisterV1, Tag("register of version 1")]
    | Annotated[ServicesRegister, Tag("register of services")]
    | Annotated[Adopted, Tag("adopted")]
    | Annotated[Config, Tag("config")]
    | Annotated[Rootfs, Tag("rootfs")]
    | Annotated[Lost, Tag("lost")]
    | Annotated[Violation, Tag("violation")]
    | Annotated[ViolationV1, Tag("violation of version 1")]
    | Annotated[Memory, Tag("memory")]
    | Annotated[Application, Tag("application")]
    | Annotated[Handed, Tag("handed")]
    | Annotated[Exit, Tag("exit")]
    | Annotated[Service, Tag("service")]
    | Annotated[Unmeasured, Tag("unmeasured")],
    Discriminator(_tag),
]

_UNION: TypeAdapter[Content] = TypeAdapter(CimaContent)


def read(record: Record) -> AnyContent:
    """Return what a record says.

    Raises:
        UnknownTypeError: of no type that we know.
        ShapeError: not of the shape that its type has.
    """
    if record.content_type == IMA_TEMPLATE:
        try:
            return File(*unpack_cima_ng(template_data(record.content)))
        except (RecordError, TemplateError) as error:
            raise ShapeError(f"a file's record cannot be read: {error.what}") from error
    if record.content_type != CIMA:
        kind = printable(record.content_type[:40])
        raise UnknownTypeError(f"a record's content_type is {IMA_TEMPLATE} or {CIMA}, not {kind}")
    return parse(record.content)


def measured(record: Record) -> Measured:
    """Return a record as rules look at it.

    Raises:
        UnknownTypeError, ShapeError: as for :func:`read`.
    """
    return Measured(record.recnum, read(record))


def read_with_digest(record: Record) -> tuple[AnyContent, bytes]:
    """Return what a record says, and the digest (32 bytes) that this content has.

    Raises:
        UnknownTypeError, ShapeError: as for :func:`read`.
        RecordError: the content has no canonical form.
    """
    if record.content_type != IMA_TEMPLATE:
        return read(record), digest_of(record.content_type, record.content)
    # One decoding for both: evidence may have hundreds of thousands of these.
    try:
        data = template_data(record.content)
        return File(*unpack_cima_ng(data)), hashlib.sha256(data).digest()
    except (RecordError, TemplateError) as error:
        raise ShapeError(f"a file's record cannot be read: {error.what}") from error


def parse_rootfs(value: Mapping[str, Any]) -> Rootfs:
    """Return the content of a ``rootfs`` record.

    Raises:
        UnknownTypeError, ShapeError: as for :func:`read`; it is of another type.
    """
    content = parse(value)
    if not isinstance(content, Rootfs):
        raise ShapeError("a root filesystem's measurement has the type rootfs")
    return content


def parse(value: Mapping[str, Any]) -> Content:
    """Return a content of the type ``cima``.

    Raises:
        UnknownTypeError, ShapeError: as for :func:`read`.
    """
    try:
        content = _UNION.validate_python(dict(value))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        kind = printable(repr(value.get("type"))[:60])
        if first["type"] in {"union_tag_not_found", "union_tag_invalid"}:
            raise UnknownTypeError(
                f"a record of an unknown type: {kind}", hint="use the host's version of cima"
            ) from error
        raise ShapeError(
            f"a record of the type {kind} is not well formed: {first_of(error)}"
        ) from error
    kind = printable(repr(value.get("type"))[:60])
    try:
        is_exact = content.to_json() == value
    except UnicodeEncodeError as error:
        # A key of an object within, which nothing has looked at before.
        raise ShapeError(f"a record of the type {kind} holds what is not UTF-8") from error
    if not is_exact:
        raise ShapeError(f"a record of the type {kind} has null where nothing should be")
    return content

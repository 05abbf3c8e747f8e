"""Files of reference values: versioned JSON, one form for one content.

Paths and link targets are escaped as in a layer's manifest (:mod:`cima_runc.measure.mtree`), so
that any bytes of a file name fit into JSON and compare as text.
"""

import json
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError

from cima_runc.base import limits
from cima_runc.base.bounded import read_bounded
from cima_runc.base.errors import CimaError
from cima_runc.base.text import printable
from cima_runc.measure.mtree import MtreeError, escape, unescape
from cima_runc.validation import first_of

Sha256 = Annotated[str, StringConstraints(pattern=r"\A[0-9a-f]{64}\z")]
Digest = Annotated[
    str, StringConstraints(pattern=r"\A(sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})\z")
]
LayerDigest = Annotated[str, StringConstraints(pattern=r"\Asha256:[0-9a-f]{64}\z")]
EscapedPath = Annotated[str, StringConstraints(pattern=r"\A/[!-~]*\z", max_length=4 * limits.PATH)]


_BASE64 = r"\A([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?\z"


class ReferenceFileError(CimaError):
    """A file is not one of reference values that this version understands."""


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ReferenceFile(_Model):
    """What the flattened image has at one path."""

    type: Literal["dir", "file", "link", "block", "char", "fifo", "socket"]
    mode: Annotated[str, StringConstraints(pattern=r"\A[0-7]{1,6}\z")]
    """Octal, as in a manifest; a symbolic link has 0777."""
    uid: int
    gid: int
    size: int | None = None
    sha256: Sha256 | None = None
    """Of a regular file's content."""
    link: str | None = None
    """A symbolic link's target, escaped."""
    device: tuple[int, int] | None = None
    """A device's major and minor number."""
    xattrs: dict[str, str] | None = None
    """Security-relevant extended attributes, base64."""
    text: Annotated[str, StringConstraints(pattern=_BASE64)] | None = None
    """The content of /etc/passwd and /etc/group, base64: Podman adds lines to them. None: not
    known, as in files that earlier versions made."""
    layer: int
    """The layer that it is from, counted from 0 at the bottom."""


class ReferenceLayer(_Model):
    """One layer of an image."""

    digest: LayerDigest
    """Of the layer's canonical manifest, as Docker unpacks it."""
    other_digests: dict[Literal["containerd", "podman"], LayerDigest] = {}
    """The same as other engines unpack it, where that is another
    (:mod:`cima_runc.verifier.reference.layer` says when)."""
    rootless_digests: (
        dict[Literal["docker", "containerd", "podman", "mounted"], LayerDigest] | None
    ) = None
    """The same as engines without root's rights unpack it, which leave out its devices, and, where
    that is another than ``digest``, as some of them unpack it into a mount
    (:mod:`cima_runc.verifier.reference.mounted`). None: nothing differs, devices hide what the
    layers below have, or an earlier version made the file."""
    diff_id: Digest
    """Of the layer's uncompressed archive."""
    blob: Digest | None = None
    """Of the layer as it is in a registry."""
    entries: int
    files: int
    bytes: int

    @property
    def digests(self) -> frozenset[str]:
        """The digests that an agent may measure for this layer, where root's engine unpacked it."""
        return frozenset({self.digest, *self.other_digests.values()})

    @property
    def all_digests(self) -> frozenset[str]:
        """The digests that an agent may measure for this layer, whoever unpacked it."""
        return self.digests.union((self.rootless_digests or {}).values())


class ReferenceConfig(_Model):
    """What the image says of the process to run in it."""

    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    user: str = ""
    user_number: str | None = None
    """The same in numbers, where it is a name that the image's own /etc/passwd and /etc/group
    have."""
    user_groups: dict[str, tuple[int, ...]] | None = None
    """Numbers of the groups that engines put each user of the image's own /etc/passwd into, its
    first one among them, by the user's number. None: not known, as in files that earlier versions
    made."""
    working_dir: str = ""
    volumes: tuple[str, ...] = ()
    """Where it wants volumes, sorted; none in files that earlier versions made."""
    homes: tuple[str, ...] = ()
    """Home directories that the image's own /etc/passwd names, sorted; none in files that earlier
    versions made."""
    env: tuple[str, ...] = ()
    """Names of the environment variables that it sets, sorted."""
    env_values: dict[str, str] = Field(default_factory=dict)
    """Their values; empty in files that earlier versions made."""

    @property
    def command(self) -> tuple[str, ...]:
        """What engines start where nobody names a command.

        An entrypoint of one empty word is none to them: so it is written in a Dockerfile to undo a
        base image's. Sources: moby daemon/create.go (mergeAndVerifyConfig), containerd pkg/cri
        (WithProcessArgs).
        """
        return self.cmd if self.entrypoint == ("",) else (*self.entrypoint, *self.cmd)


class ImageReference(_Model):
    """What a container of one image should be."""

    version: Literal[1] = 1
    kind: Literal["image"] = "image"
    format: Literal["cima-layer-1"] = "cima-layer-1"
    """Of the manifests that the layers' digests are of."""
    name: str | None = None
    """The image's name or tag where it was read from."""
    platform: str
    """Operating system, architecture and perhaps variant, between slashes."""
    manifest: Digest | None = None
    """Of the image's manifest. None: an archive of `docker save` that has none."""
    image_id: Digest
    """Of the image's configuration."""
    config: ReferenceConfig
    layers: tuple[ReferenceLayer, ...]
    """Bottom to top."""
    files: dict[EscapedPath, ReferenceFile]
    """The flattened image by path."""


class HostReference(_Model):
    """The programs and libraries of a host's services, as they should be."""

    version: Literal[1] = 1
    kind: Literal["host"] = "host"
    files: dict[EscapedPath, tuple[Sha256, ...]]
    """SHA-256 digests that a path may have; several where the host may be of several versions."""

    def digests(self, path: bytes) -> tuple[str, ...]:
        """Return what a file may be; values made from a log of the kernel's have its spelling."""
        return self.files.get(escape(path)) or self.files.get(escape(kernel_name(path)), ())

    def digests_in_log(self, name: bytes) -> tuple[str, ...]:
        """Return the same of a file by its name in the kernel's log, which several may share."""
        return self._by_kernel_name.get(name, ())

    @cached_property
    def _by_kernel_name(self) -> dict[bytes, tuple[str, ...]]:
        found: dict[bytes, tuple[str, ...]] = {}
        for path, digests in self.files.items():
            name = kernel_name(_unescaped(path))
            found[name] = (*found.get(name, ()), *digests)
        return found


def kernel_name(path: bytes) -> bytes:
    """Return a path as the kernel writes it into its log: spaces become underscores.

    Source: ima_write_template_field_data (ima_template_lib.c) of Linux 6.1.
    """
    return path.replace(b" ", b"_")


def _unescaped(path: str) -> bytes:
    try:
        return unescape(path)
    except MtreeError:
        return path.encode("ascii")  # not as we write it: of no file


Reference = Annotated[ImageReference | HostReference, Field(discriminator="kind")]

_READER: TypeAdapter[ImageReference | HostReference] = TypeAdapter(Reference)


def format_reference(reference: ImageReference | HostReference) -> bytes:
    """Return a file of reference values: sorted, ASCII, each path of `files` on its own line."""
    values = reference.model_dump(mode="json", exclude_none=True)
    files = ",\n".join(
        f"  {json.dumps(path)}: {json.dumps(file, sort_keys=True)}"
        for path, file in sorted(values.pop("files").items())
    )
    head = json.dumps(values, sort_keys=True, indent=1).removesuffix("\n}")
    return f'{head},\n "files": {{\n{files}\n }}\n}}\n'.encode("ascii")


def parse_reference(data: bytes) -> ImageReference | HostReference:
    """Return what a file of reference values holds. Raises :class:`ReferenceFileError`."""
    if len(data) > limits.REFERENCE:
        raise ReferenceFileError(f"a file of more than {limits.REFERENCE} bytes")
    try:
        return _READER.validate_json(data)
    except ValidationError as error:
        raise ReferenceFileError(
            f"not a file of reference values: {first_of(error)}",
            hint="make it with `cima reference image`",
        ) from None


def read_reference(path: Path) -> ImageReference | HostReference:
    """Return the reference values in a file. Raises :class:`ReferenceFileError`."""
    return parse_reference(read_limited(path, limits.REFERENCE))


def read_limited(path: Path, most: int) -> bytes:
    """Return a file's bytes. Raises :class:`ReferenceFileError` for more than ``most`` of them."""
    try:
        data = read_bounded(path, most)
    except OSError as error:
        raise ReferenceFileError(f"{printable(str(path))}: {error.strerror}") from None
    if len(data) > most:
        raise ReferenceFileError(f"{printable(str(path))} has more than {most} bytes")
    return data

"""Reference values from an image: an OCI layout, or what `docker save` and `podman save` write.

Nothing is unpacked: the image is read, its layers as streams, and nothing is written; but for an
archive that is compressed as a whole, which becomes a file without a name. Every blob's digest and
size is checked against the one that names it, up to the image's configuration, whose digest is the
image's id, and each layer's archive against the configuration.

Formats: https://github.com/opencontainers/image-spec (layout, index, manifest, config, layer);
Docker's manifest schema 2 and image specification 1.2 (manifest.json in an archive).
"""

import base64
import io
import os
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, Field, RootModel, ValidationError

from cima_runc.base import limits
from cima_runc.base.errors import CimaError
from cima_runc.base.text import printable
from cima_runc.measure.mtree import Entry, digest, escape, format_manifest, format_mode
from cima_runc.verifier.reference import layer as image_layer
from cima_runc.verifier.reference.blob import (
    BlobReader,
    Decompressed,
    LayerStream,
    check_digest,
    is_compressed,
    read_blob,
)
from cima_runc.verifier.reference.file import (
    ImageReference,
    ReferenceConfig,
    ReferenceFile,
    ReferenceLayer,
)
from cima_runc.verifier.reference.flatten import Flattened
from cima_runc.verifier.reference.tar import Member, Reader, TarError, read_tar


class ImageError(CimaError):
    """Something is not an image, or not one image."""


@dataclass(frozen=True, slots=True)
class Image:
    """An image, read: its reference values and its layers' manifests."""

    reference: ImageReference
    manifests: tuple[bytes, ...]
    """As Docker unpacks the layers, bottom to top."""


# What is in the JSON files of an image, as far as it is used.


class _Json(BaseModel):
    model_config = ConfigDict(frozen=True)


class _Platform(_Json):
    os: str = ""
    architecture: str = ""
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


class _Descriptor(_Json):
    media_type: str = Field(alias="mediaType", default="")
    digest: str
    size: int = Field(ge=0)
    platform: _Platform | None = None
    annotations: dict[str, str] | None = None


class _Index(_Json):
    manifests: tuple[_Descriptor, ...]


class _Manifest(_Json):
    config: _Descriptor
    layers: tuple[_Descriptor, ...]


class _Process(_Json):
    entrypoint: tuple[str, ...] | None = Field(alias="Entrypoint", default=None)
    cmd: tuple[str, ...] | None = Field(alias="Cmd", default=None)
    user: str | None = Field(alias="User", default=None)
    working_dir: str | None = Field(alias="WorkingDir", default=None)
    env: tuple[str, ...] | None = Field(alias="Env", default=None)


class _RootFs(_Json):
    type: str = "layers"
    diff_ids: tuple[str, ...]


class _Config(_Platform):
    config: _Process | None = None
    rootfs: _RootFs


class _Saved(_Json):
    config: str = Field(alias="Config")
    tags: tuple[str, ...] | None = Field(alias="RepoTags", default=None)
    layers: tuple[str, ...] = Field(alias="Layers")


class _SavedList(RootModel[tuple[_Saved, ...]]):
    pass


_M = TypeVar("_M", bound=BaseModel)


def _parse(model: type[_M], data: bytes, what: str) -> _M:
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ImageError(
            f"{what} is not of its form: {printable(where)}: {printable(first['msg'])}"
        ) from None


# Where an image's files are.


class _Source(Protocol):
    """The files of an image, by their paths inside it."""

    def has(self, name: str) -> bool: ...
    def open(self, name: str) -> AbstractContextManager[Reader]: ...


class _Directory:
    """An OCI layout directory."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def has(self, name: str) -> bool:
        return (self._path / name).is_file()

    @contextmanager
    def open(self, name: str) -> Iterator[Reader]:
        try:
            fd = os.open(self._path / name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise ImageError(f"{printable(name)} of the image: {error.strerror}") from None
        with os.fdopen(fd, "rb") as file:
            if not self.has(name):
                raise ImageError(f"{printable(name)} of the image is not a regular file")
            yield file


class _Archive:
    """A tar archive of an image's files, which lie in it uncompressed and in one piece."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._members: dict[str, tuple[int, int] | str] = {}
        """Offset and size of a file, or the path that a link leads to."""
        for member in read_tar(_Skipping(file)):
            if len(self._members) > limits.ARCHIVE_ENTRIES:
                raise ImageError(f"an archive of more than {limits.ARCHIVE_ENTRIES} members")
            self._add(member)

    def _add(self, member: Member) -> None:
        name = os.path.normpath(os.fsdecode(member.name))
        if member.type in {b"1", b"2"}:
            link = os.fsdecode(member.link)
            base = os.path.dirname(name) if member.type == b"2" else ""
            found: tuple[int, int] | str = os.path.normpath(os.path.join(base, link))
        elif member.type == b"0":
            found = self._file.tell(), member.size
        else:
            return
        if self._members.setdefault(name, found) != found:
            raise ImageError(f"the archive has {printable(name)} twice")

    def _find(self, name: str) -> tuple[int, int] | None:
        for _ in range(8):
            found = self._members.get(os.path.normpath(name))
            if not isinstance(found, str):
                return found
            name = found
        return None

    def has(self, name: str) -> bool:
        return self._find(name) is not None

    def open(self, name: str) -> AbstractContextManager[Reader]:
        found = self._find(name)
        if found is None:
            raise ImageError(f"the archive does not have {printable(name)}")
        return nullcontext(_Part(self._file, *found))


class _Skipping:
    """A file whose long pieces are not read: the contents of an archive's members."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._end = os.fstat(file.fileno()).st_size

    def read(self, size: int, /) -> bytes:
        return self._file.read(size)

    def skip(self, size: int) -> None:
        if self._file.seek(size, os.SEEK_CUR) > self._end:
            raise TarError("an archive ends in the middle of a member")


class _Part:
    """A file in an archive."""

    def __init__(self, file: IO[bytes], offset: int, size: int) -> None:
        self._file, self._at, self._end = file, offset, offset + size

    def read(self, size: int, /) -> bytes:
        self._file.seek(self._at)
        data = self._file.read(min(size, self._end - self._at))
        self._at += len(data)
        return data


@contextmanager
def _open_source(path: Path) -> Iterator[_Source]:
    if path.is_dir():
        yield _Directory(path)
        return
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise ImageError(f"{printable(str(path))}: {error.strerror}") from None
    with os.fdopen(fd, "rb") as file:
        if not path.is_file():
            raise ImageError(f"{printable(str(path))} is not a directory or a regular file")
        start = file.read(6)
        file.seek(0)
        if not is_compressed(start):
            yield _Archive(file)
            return
        with tempfile.TemporaryFile() as plain:
            _decompress(file, plain)
            yield _Archive(plain)


def _decompress(file: io.BufferedReader, plain: IO[bytes]) -> None:
    """Decompress an archive that is compressed as a whole into a file without a name."""
    stream = Decompressed(BlobReader(file, None, None), "the archive")
    try:
        while piece := stream.read(limits.MIB):
            plain.write(piece)
        plain.seek(0)
    except OSError as error:
        raise ImageError(
            f"the archive cannot be decompressed: {error.strerror}",
            hint="decompress it yourself (gunzip, unzstd), or name a larger directory in TMPDIR",
        ) from None


# Which image, and what it is made of.


_Other = Literal["containerd", "podman"]
_OTHERS: tuple[_Other, ...] = ("containerd", "podman")


@dataclass(frozen=True, slots=True)
class _Layer:
    """Where one layer's blob is."""

    name: str
    digest: str | None
    size: int | None


@dataclass(frozen=True, slots=True)
class _Found:
    """One image of an archive or layout."""

    name: str | None
    manifest: str | None
    image_id: str
    config: _Config
    layers: tuple[_Layer, ...]


def read_image(path: Path, *, platform: str | None = None, name: str | None = None) -> Image:
    """Read an image: an OCI layout (directory or tar), or an archive of docker or podman save.

    ``platform`` (as `linux/arm64`, perhaps with a variant) and ``name`` (a tag) say which one,
    where there are several. Raises :class:`ImageError`, :class:`ImageLayerError`,
    :class:`BlobError` and :class:`TarError`.
    """
    with _open_source(path) as source:
        found = _select(list(_images(source, platform)), platform, name)
        if len(found.layers) != len(found.config.rootfs.diff_ids):
            raise ImageError(
                f"the image has {len(found.layers)} layers and {len(found.config.rootfs.diff_ids)}"
                " diff_ids",
                hint="the image is damaged or was changed",
            )
        if len(found.layers) > limits.LAYERS:
            raise ImageError(f"the image has more than {limits.LAYERS} layers")
        flattened = Flattened()
        below: dict[_Other, list[dict[bytes, Entry]]] = {engine: [] for engine in _OTHERS}
        layers: list[ReferenceLayer] = []
        manifests: list[bytes] = []
        for each, diff_id in zip(found.layers, found.config.rootfs.diff_ids, strict=True):
            tree = _read_layer(source, each, diff_id)
            entries = image_layer.entries(tree)
            manifests.append(format_manifest(entries))
            others: dict[_Other, str] = {}
            for engine in _OTHERS:
                own = image_layer.entries(tree, engine, below[engine])
                below[engine].append({entry.path: entry for entry in own})
                if (manifest := format_manifest(own)) != manifests[-1]:
                    others[engine] = digest(manifest)
            layers.append(
                ReferenceLayer(
                    digest=digest(manifests[-1]),
                    other_digests=others,
                    diff_id=diff_id,
                    blob=each.digest,
                    entries=len(entries) - 1,
                    files=sum(entry.type == "file" for entry in entries),
                    bytes=sum(entry.size or 0 for entry in entries),
                )
            )
            flattened.add(entries)
    reference = ImageReference(
        name=found.name,
        platform=str(found.config),
        manifest=found.manifest,
        image_id=found.image_id,
        config=_reference_config(found.config.config or _Process()),
        layers=tuple(layers),
        files={
            "/" + escape(entry.path): _reference_file(entry, number) for entry, number in flattened
        },
    )
    return Image(reference, tuple(manifests))


def _images(source: _Source, platform: str | None) -> Iterator[_Found]:
    """Yield the images in a source that may be for ``platform``."""
    if source.has("index.json"):
        index = _parse(_Index, _read_file(source, "index.json"), "index.json")
        yield from _images_of_index(source, index, platform, None, limits.IMAGE_INDEX_DEPTH)
    elif source.has("manifest.json"):
        saved = _parse(_SavedList, _read_file(source, "manifest.json"), "manifest.json")
        for image in saved.root:
            yield from _saved_images(source, image, platform)
    else:
        raise ImageError(
            "neither an OCI layout (index.json) nor an archive of docker save (manifest.json)",
            hint="make one with `skopeo copy`, `docker save` or `podman save`",
        )


_INDEXES = frozenset(
    {
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
    }
)
_MANIFESTS = frozenset(
    {
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    }
)
_CONFIGS = frozenset(
    {
        "application/vnd.oci.image.config.v1+json",
        "application/vnd.docker.container.image.v1+json",
    }
)
_LAYERS = tuple(
    f"application/vnd.{kind}"
    for kind in (
        "oci.image.layer.v1.tar",
        "oci.image.layer.nondistributable.v1.tar",
        "docker.image.rootfs.diff.tar",
        "docker.image.rootfs.foreign.diff.tar",
    )
)
_NAMES = ("org.opencontainers.image.ref.name", "io.containerd.image.name")


def _images_of_index(
    source: _Source, index: _Index, platform: str | None, name: str | None, depth: int
) -> Iterator[_Found]:
    if not depth:
        raise ImageError(f"indexes in indexes, more than {limits.IMAGE_INDEX_DEPTH} of them")
    for descriptor in index.manifests:
        annotations = descriptor.annotations or {}
        if "vnd.docker.reference.type" in annotations:
            continue  # an attestation that BuildKit put beside the image
        if not source.has(_blob_name(descriptor)):
            continue  # of a platform that was not fetched
        known = name or next((annotations[key] for key in _NAMES if key in annotations), None)
        if descriptor.media_type in _INDEXES:
            data = _read_blob(source, descriptor)
            inner = _parse(_Index, data, "an index of the image")
            yield from _images_of_index(source, inner, platform, known, depth - 1)
        elif descriptor.media_type in _MANIFESTS:
            if not _is_for(descriptor.platform, platform):
                continue
            if (image := _image_of_manifest(source, descriptor, known)) is not None:
                yield image


def _image_of_manifest(source: _Source, descriptor: _Descriptor, name: str | None) -> _Found | None:
    """Return the image of a manifest, or None where it is of something else (an artifact)."""
    manifest = _parse(_Manifest, _read_blob(source, descriptor), "a manifest of the image")
    if manifest.config.media_type not in _CONFIGS:
        return None
    for each in manifest.layers:
        if not each.media_type.startswith(_LAYERS) or "encrypted" in each.media_type:
            raise ImageError(f"a layer of the type {printable(each.media_type)} cannot be read")
    return _Found(
        name,
        descriptor.digest,
        manifest.config.digest,
        _parse(_Config, _read_blob(source, manifest.config), "the image's configuration"),
        tuple(_Layer(_blob_name(each), each.digest, each.size) for each in manifest.layers),
    )


def _saved_images(source: _Source, image: _Saved, platform: str | None) -> Iterator[_Found]:
    stem = os.path.basename(image.config).removesuffix(".json")
    image_id = check_digest(f"sha256:{stem}")
    with source.open(image.config) as stream:
        data = read_blob(stream, image_id, None, limits.IMAGE_JSON)
    config = _parse(_Config, data, "the image's configuration")
    layers = tuple(_Layer(name, None, None) for name in image.layers)
    if _is_for(config, platform):
        for tag in image.tags or (None,):
            yield _Found(tag, None, image_id, config, layers)


def _is_for(found: _Platform | None, wanted: str | None) -> bool:
    """Whether what is said of an image's platform allows that it is the one wanted."""
    if wanted is None or found is None:
        return True
    parts = wanted.split("/")
    return [found.os, found.architecture, found.variant][: len(parts)] == parts


def _select(images: list[_Found], platform: str | None, name: str | None) -> _Found:
    fitting = [
        image
        for image in images
        if _is_for(image.config, platform) and (name is None or _is_named(image.name, name))
    ]
    if len({(image.image_id, image.manifest) for image in fitting}) == 1:
        return fitting[0]
    choice = ", ".join(
        sorted({f"{image.name or 'no name'} ({image.config})" for image in fitting or images})
    )
    raise ImageError(
        f"{len(fitting)} images fit; there are: {printable(choice[:1000])}",
        hint="choose one with --platform or --name",
    )


def _is_named(found: str | None, wanted: str) -> bool:
    return found is not None and (found == wanted or found.endswith(("/" + wanted, ":" + wanted)))


def _blob_name(descriptor: _Descriptor) -> str:
    algorithm, _, encoded = check_digest(descriptor.digest).partition(":")
    return f"blobs/{algorithm}/{encoded}"


def _read_file(source: _Source, name: str) -> bytes:
    with source.open(name) as stream:
        return read_blob(stream, None, None, limits.IMAGE_JSON)


def _read_blob(source: _Source, descriptor: _Descriptor) -> bytes:
    with source.open(_blob_name(descriptor)) as stream:
        return read_blob(stream, descriptor.digest, descriptor.size, limits.IMAGE_JSON)


def _read_layer(source: _Source, layer: _Layer, diff_id: str) -> image_layer.LayerTree:
    with source.open(layer.name) as blob:
        stream = LayerStream(BlobReader(blob, layer.digest, layer.size), diff_id)
        tree = image_layer.read_layer(_within(stream))
        stream.finish()
    return tree


def _within(stream: LayerStream) -> Iterator[Member]:
    """Yield an archive's members while their sizes, holes counted, are within the limits."""
    total = 0
    for member in read_tar(stream):
        total += member.size
        stream.check_size(total)
        yield member


def _reference_config(process: _Process) -> ReferenceConfig:
    return ReferenceConfig(
        entrypoint=process.entrypoint or (),
        cmd=process.cmd or (),
        user=process.user or "",
        working_dir=process.working_dir or "",
        env=tuple(sorted({each.partition("=")[0] for each in process.env or ()})),
    )


def _reference_file(entry: Entry, layer: int) -> ReferenceFile:
    return ReferenceFile(
        type=entry.type,
        mode=format_mode(entry.mode or 0),
        uid=entry.uid or 0,
        gid=entry.gid or 0,
        size=entry.size,
        sha256=None if entry.sha256 is None else entry.sha256.hex(),
        link=None if entry.link is None else escape(entry.link),
        device=entry.device,
        xattrs={name: base64.b64encode(value).decode() for name, value in entry.xattrs} or None,
        layer=layer,
    )

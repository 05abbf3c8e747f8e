"""Reference values from an image: an OCI layout, or what `docker save` and `podman save` write.

Nothing is unpacked: the image is read, its layers as streams, and nothing is written; but for an
archive that is compressed as a whole, which becomes a file without a name. Every blob's digest and
size is checked against the one that names it, up to the image's configuration, whose digest is the
image's id, and each layer's archive against the configuration.

Formats: https://github.com/opencontainers/image-spec (layout, index, manifest, config, layer);
Docker's manifest schema 2 and image specification 1.2 (manifest.json in an archive).
"""

import base64
import hashlib
import io
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, Literal, Protocol, TypeVar

from pydantic import BaseModel, Field, RootModel, ValidationError, field_validator

from cima_runc.base import limits
from cima_runc.base.errors import CimaError
from cima_runc.base.text import printable
from cima_runc.measure.mtree import Entry, digest, escape, format_manifest, format_mode
from cima_runc.measure.oci_config import env_pairs
from cima_runc.validation import first_of
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
from cima_runc.verifier.reference.mounted import mounted_entries
from cima_runc.verifier.reference.null_is_absent import GoObject
from cima_runc.verifier.reference.platform import Platform, fitting, parse_platform
from cima_runc.verifier.reference.tar import Member, Reader, TarError, read_tar
from cima_runc.verifier.reference.users import NameFiles


class ImageError(CimaError):
    """Something is not an image, or not one image."""


@dataclass(frozen=True, slots=True)
class Image:
    """An image, read: its reference values and its layers' manifests."""

    reference: ImageReference
    manifests: tuple[bytes, ...]
    """As Docker unpacks the layers, bottom to top."""
    passed_over: tuple[str, ...] = ()
    """A line for each image beside it that cannot be read."""


# What is in the JSON files of an image, as far as it is used.


class _Descriptor(GoObject):
    media_type: str = Field(alias="mediaType", default="")
    digest: str
    size: int = Field(ge=0)
    platform: Platform | None = None
    annotations: dict[str, str | None] | None = None


class _Index(GoObject):
    manifests: tuple[Any, ...]
    """Each is read for itself, so that one that is no descriptor spoils no other."""


class _Manifest(GoObject):
    config: _Descriptor
    layers: tuple[_Descriptor, ...] | None = None


class _DirectoryManifest(GoObject):
    """The manifest.json of skopeo's `dir:`: a manifest or an index."""

    media_type: str = Field(alias="mediaType", default="")
    schema_version: int = Field(alias="schemaVersion", default=2)
    config: _Descriptor | None = None
    layers: tuple[_Descriptor, ...] | None = None
    manifests: tuple[Any, ...] | None = None


class _Process(GoObject):
    entrypoint: tuple[str, ...] | None = Field(alias="Entrypoint", default=None)
    cmd: tuple[str, ...] | None = Field(alias="Cmd", default=None)
    user: str | None = Field(alias="User", default=None)
    working_dir: str | None = Field(alias="WorkingDir", default=None)
    env: tuple[str, ...] | None = Field(alias="Env", default=None)
    volumes: dict[str, Any] | None = Field(alias="Volumes", default=None)

    @field_validator("entrypoint", "cmd", mode="before")
    @classmethod
    def _one_word(cls, value: object) -> object:
        # Docker takes a text for one word (moby, api/types/strslice); others do not start it.
        return (value,) if isinstance(value, str) else value


class _RootFs(GoObject):
    type: str = "layers"
    diff_ids: tuple[str, ...] | None = None


class _Config(Platform):
    config: _Process | None = None
    rootfs: _RootFs


class _Saved(GoObject):
    config: str = Field(alias="Config")
    tags: tuple[str, ...] | None = Field(alias="RepoTags", default=None)
    layers: tuple[str, ...] | None = Field(alias="Layers", default=None)


class _SavedList(RootModel[tuple[_Saved, ...]]):
    pass


_M = TypeVar("_M", bound=BaseModel)


def _parse(model: type[_M], data: bytes, what: str) -> _M:
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        raise ImageError(f"{what} is not of its form: {first_of(error)}") from None


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
        return _is_inside(name) and (self._path / name).is_file()

    @contextmanager
    def open(self, name: str) -> Iterator[Reader]:
        if not _is_inside(name):
            raise ImageError(f"the image does not have {printable(name)}")
        try:
            fd = os.open(self._path / name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise ImageError(f"{printable(name)} of the image: {error.strerror}") from None
        with os.fdopen(fd, "rb") as file:
            if not self.has(name):
                raise ImageError(f"{printable(name)} of the image is not a regular file")
            yield file


def _is_inside(name: str) -> bool:
    """Whether a name that an image chose stays below its directory."""
    return not name.startswith("/") and ".." not in name.split("/") and "\0" not in name


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
        before = self._members.setdefault(name, found)
        if before != found and not self._same(before, found):
            raise ImageError(f"the archive has {printable(name)} twice, with different content")

    def _same(self, one: tuple[int, int] | str, other: tuple[int, int] | str) -> bool:
        """Whether two members have the same content, as tools write blobs that images share."""
        if isinstance(one, str) or isinstance(other, str) or one[1] != other[1]:
            return False
        at = self._file.tell()
        first, second = _Part(self._file, *one), _Part(self._file, *other)
        try:
            while piece := first.read(limits.MIB):
                if piece != second.read(limits.MIB):
                    return False
        finally:
            self._file.seek(at)
        return True

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
    stream = Decompressed(BlobReader(file, None, None), "the archive", whole=True)
    try:
        while piece := stream.read(limits.MIB):
            plain.write(piece)
        plain.seek(0)
    except OSError as error:
        raise ImageError(
            f"the archive cannot be decompressed: {error.strerror}",
            hint="decompress it yourself, or name a larger directory in TMPDIR",
        ) from None


# Which image, and what it is made of.


_Other = Literal["containerd", "podman"]
_OTHERS: tuple[_Other, ...] = ("containerd", "podman")
_Rootless = Literal[image_layer.Engine, "mounted"]


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
    platform: Platform
    """As the index and the configuration together say."""
    config: _Config
    layers: tuple[_Layer, ...]


@dataclass(frozen=True, slots=True)
class _Unreadable:
    """Something beside the images that is none, or is none that can be read."""

    name: str | None
    manifest: str | None
    platform: Platform | None
    error: CimaError


def read_image(path: Path, *, platform: str | None = None, name: str | None = None) -> Image:
    """Read an image: an OCI layout (directory or tar), or what docker or podman save, crane, ko,
    kaniko, jib and skopeo write.

    ``platform`` (as `linux/arm64`, perhaps with a variant) and ``name`` (a tag) say which one,
    where there are several. What cannot be read and was not asked for is passed over, and named in
    the result. Raises :class:`ImageError`, :class:`ImageLayerError`,
    :class:`BlobError` and :class:`TarError`.
    """
    with _open_source(path) as source:
        found, passed_over = _select(list(_images(source)), platform, name)
        diff_ids = found.config.rootfs.diff_ids or ()
        if len(found.layers) != len(diff_ids):
            raise ImageError(
                f"the image has {len(found.layers)} layers and {len(diff_ids)} diff_ids",
                hint="the image is damaged or was changed",
            )
        if len(found.layers) > limits.LAYERS:
            raise ImageError(f"the image has more than {limits.LAYERS} layers")
        flattened, names = Flattened(), NameFiles()
        below: dict[image_layer.Engine, list[dict[bytes, Entry]]] = {
            engine: [] for engine in image_layer.ENGINES
        }
        mounted: Flattened | None = Flattened()
        layers: list[ReferenceLayer] = []
        manifests: list[bytes] = []
        for each, diff_id in zip(found.layers, diff_ids, strict=True):
            tree = _read_layer(source, each, diff_id, names.watch)
            entries = image_layer.entries(tree)
            manifests.append(format_manifest(entries))
            others: dict[_Other, str] = {}
            in_mount = mounted_entries(tree, mounted) if mounted is not None else None
            rootless = _rootless_digests(tree, below, in_mount, digest(manifests[-1]))
            if mounted is not None and in_mount is not None:
                mounted.add(in_mount)
            else:
                mounted = None  # nor can be known what the layers above become
            for other in _OTHERS:
                own = image_layer.entries(tree, other, below[other])
                below[other].append({entry.path: entry for entry in own})
                if (manifest := format_manifest(own)) != manifests[-1]:
                    others[other] = digest(manifest)
            layers.append(
                ReferenceLayer(
                    digest=digest(manifests[-1]),
                    other_digests=others,
                    rootless_digests=rootless,
                    diff_id=diff_id,
                    blob=each.digest,
                    entries=len(entries) - 1,
                    files=sum(entry.type == "file" for entry in entries),
                    bytes=sum(entry.size or 0 for entry in entries),
                )
            )
            flattened.add(entries)
    files = {
        "/" + escape(entry.path): _reference_file(entry, number) for entry, number in flattened
    }
    for number, wanted in names.missing(files).items():
        # Only what the whole image shows says under which name, and in which layer, they are.
        _read_layer(
            source, found.layers[number], diff_ids[number], partial(names.find, wanted=wanted)
        )
    files |= names.texts(files)
    config = _reference_config(found.config.config or _Process())
    reference = ImageReference(
        name=found.name,
        platform=str(found.platform),
        manifest=found.manifest,
        image_id=found.image_id,
        config=config.model_copy(
            update={
                "user_number": names.number(config.user, files),
                "user_groups": names.groups(files),
                "homes": names.homes(files),
            }
        ),
        layers=tuple(layers),
        files=files,
    )
    return Image(reference, tuple(manifests), passed_over)


def _rootless_digests(
    tree: image_layer.LayerTree,
    below: Mapping[image_layer.Engine, Sequence[Mapping[bytes, Entry]]],
    in_mount: list[Entry] | None,
    usual: str,
) -> dict[_Rootless, str] | None:
    """Return a layer's digests where engines without root's rights unpack it; None: the usual."""
    found: dict[_Rootless, str] = {}
    if image_layer.has_devices(tree):
        if not image_layer.may_lack_devices(tree, below["podman"]):
            return None
        for engine in image_layer.ENGINES:
            own = image_layer.entries(tree, engine, below[engine], rootless=True)
            found[engine] = digest(format_manifest(own))
    if in_mount is not None and (own_digest := digest(format_manifest(in_mount))) != usual:
        found["mounted"] = own_digest
    return found or None


def _images(source: _Source) -> Iterator[_Found | _Unreadable]:
    """Yield what is in a source."""
    if source.has("index.json"):
        index = _parse(_Index, _read_file(source, "index.json"), "index.json")
        yield from _images_of_index(source, index, "index.json", None, limits.IMAGE_INDEX_DEPTH)
    elif source.has("manifest.json"):
        data = _read_file(source, "manifest.json")
        if data.lstrip()[:1] == b"{":
            yield from _images_of_directory(source, data)
            return
        for image in _parse(_SavedList, data, "manifest.json").root:
            yield from _saved_images(source, image)
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
_NAMES = ("io.containerd.image.name", "org.opencontainers.image.ref.name")
"""The first says more: where Docker or containerd write both, the other is the tag alone."""


def _images_of_index(
    source: _Source, index: _Index, what: str, name: str | None, depth: int
) -> Iterator[_Found | _Unreadable]:
    if not depth:
        raise ImageError(f"indexes in indexes, more than {limits.IMAGE_INDEX_DEPTH} of them")
    for number, value in enumerate(index.manifests):
        try:
            descriptor = _Descriptor.model_validate(value)
        except ValidationError as error:
            reason = f"{what} is not of its form: manifests.{number}.{first_of(error)}"
            yield _Unreadable(name, None, None, ImageError(reason))
            continue
        annotations = descriptor.annotations or {}
        if "vnd.docker.reference.type" in annotations:
            continue  # an attestation that BuildKit put beside the image
        known = name or next((annotations[key] for key in _NAMES if annotations.get(key)), None)
        try:
            if not source.has(_blob_name(source, descriptor)):
                continue  # of a platform that was not fetched
            if descriptor.media_type in _INDEXES:
                data = _read_blob(source, descriptor)
                inner = _parse(_Index, data, "an index of the image")
                yield from _images_of_index(
                    source, inner, "an index of the image", known, depth - 1
                )
        except CimaError as error:
            yield _Unreadable(known, descriptor.digest, descriptor.platform, error)
            continue
        if descriptor.media_type in _MANIFESTS or not descriptor.media_type:
            yield from _image_of_descriptor(source, descriptor, known)


def _image_of_descriptor(
    source: _Source, descriptor: _Descriptor, name: str | None
) -> Iterator[_Found | _Unreadable]:
    try:
        data = _read_blob(source, descriptor)
        manifest = _parse(_Manifest, data, "a manifest of the image")
        if manifest.config.media_type not in _CONFIGS:
            return  # an artifact
        yield _image_of_manifest(
            source, manifest, name, manifest_digest=descriptor.digest, platform=descriptor.platform
        )
    except CimaError as error:
        yield _Unreadable(name, descriptor.digest, descriptor.platform, error)


def _image_of_manifest(
    source: _Source,
    manifest: _Manifest,
    name: str | None,
    *,
    manifest_digest: str | None,
    platform: Platform | None,
) -> _Found:
    layers = manifest.layers or ()
    for each in layers:
        if not each.media_type.startswith(_LAYERS) or "encrypted" in each.media_type:
            raise ImageError(f"a layer of the type {printable(each.media_type)} cannot be read")
    config = _parse(_Config, _read_blob(source, manifest.config), "the image's configuration")
    return _Found(
        name,
        manifest_digest,
        manifest.config.digest,
        config.completed(platform),
        config,
        tuple(_Layer(_blob_name(source, each), each.digest, each.size) for each in layers),
    )


def _images_of_directory(source: _Source, data: bytes) -> Iterator[_Found | _Unreadable]:
    """Yield the images of skopeo's `dir:` and `podman save --format docker-dir`."""
    outer = _parse(_DirectoryManifest, data, "manifest.json")
    own = f"sha256:{hashlib.sha256(data).hexdigest()}"
    if outer.manifests is not None:
        index = _Index(manifests=outer.manifests)
        yield from _images_of_index(source, index, "manifest.json", None, limits.IMAGE_INDEX_DEPTH)
    elif outer.config is not None:
        manifest = _Manifest(config=outer.config, layers=outer.layers)
        yield _image_of_manifest(source, manifest, None, manifest_digest=own, platform=None)
    else:
        raise ImageError(
            "manifest.json is neither a manifest nor an index of version 2",
            hint="copy the image with `skopeo copy`, which converts older manifests",
        )


def _saved_images(source: _Source, image: _Saved) -> Iterator[_Found | _Unreadable]:
    tags = image.tags or (None,)
    try:
        with source.open(image.config) as stream:
            data = read_blob(stream, None, None, limits.IMAGE_JSON)
        config = _parse(_Config, data, "the image's configuration")
    except CimaError as error:
        yield from (_Unreadable(tag, None, None, error) for tag in tags)
        return
    # Not the file's name: each tool has another.
    image_id = f"sha256:{hashlib.sha256(data).hexdigest()}"
    layers = tuple(_Layer(name, None, None) for name in image.layers or ())
    for tag in tags:
        yield _Found(tag, None, image_id, config.completed(None), config, layers)


def _select(
    images: list[_Found | _Unreadable], platform: str | None, name: str | None
) -> tuple[_Found, tuple[str, ...]]:
    """Return the one image that is asked for, and what else cannot be read."""
    wanted = parse_platform(platform) if platform is not None else None
    named = [one for one in images if name is None or _is_named(one.name, name)]
    readable = [one for one in named if isinstance(one, _Found)]
    unreadable = [one for one in images if isinstance(one, _Unreadable)]
    fits = fitting([(one.platform, one) for one in readable], wanted)
    # Of one configuration, and so of one content, whatever its layers are compressed with.
    if len({one.image_id for one in fits}) == 1:
        return fits[0], tuple(_passed_over(one) for one in unreadable)
    if not fits and (broken := [one for one in named if isinstance(one, _Unreadable)]):
        asked = fitting([(one.platform or Platform(), one) for one in broken], wanted) or (
            [] if readable else broken
        )
        if asked:
            raise asked[0].error
    known = [one for one in images if isinstance(one, _Found)]
    choice = "; ".join(sorted({_option(one) for one in fits or known}))
    raise ImageError(
        f"{len(fits)} images fit; there are: {printable(choice[:2000]) or 'none'}",
        hint="choose one with the options that stand behind it" if known else "",
    )


def _option(one: _Found) -> str:
    """Return an image and the options that choose it."""
    named = f"--name {one.name} " if one.name else ""
    return f"{one.name or 'no name'} ({one.platform}): {named}--platform {one.platform}"


def _passed_over(one: _Unreadable) -> str:
    what = one.name or one.manifest or "an image"
    return f"{printable(what)}: {one.error.what}"


def _is_named(found: str | None, wanted: str) -> bool:
    if found is None:
        return False
    if found == wanted or found.endswith(("/" + wanted, ":" + wanted)):
        return True
    # A name without a tag is one with the tag `latest`, as for docker and podman.
    latest = f"{wanted}:latest"
    return not {":", "@"} & set(wanted.rpartition("/")[2]) and (
        found == latest or found.endswith("/" + latest)
    )


def _blob_name(source: _Source, descriptor: _Descriptor) -> str:
    algorithm, _, encoded = check_digest(descriptor.digest).partition(":")
    # skopeo's `dir:` has blobs by their hexadecimal alone, and the manifests of an index so named.
    for name in (encoded, f"{encoded}.manifest.json", f"{algorithm}-{encoded}"):
        if not source.has("index.json") and source.has(name):
            return name
    return f"blobs/{algorithm}/{encoded}"


def _read_file(source: _Source, name: str) -> bytes:
    with source.open(name) as stream:
        return read_blob(stream, None, None, limits.IMAGE_JSON)


def _read_blob(source: _Source, descriptor: _Descriptor) -> bytes:
    with source.open(_blob_name(source, descriptor)) as stream:
        return read_blob(stream, descriptor.digest, descriptor.size, limits.IMAGE_JSON)


def _read_layer(
    source: _Source,
    layer: _Layer,
    diff_id: str,
    watch: Callable[[Iterator[Member]], Iterator[Member]],
) -> image_layer.LayerTree:
    with source.open(layer.name) as blob:
        stream = LayerStream(BlobReader(blob, layer.digest, layer.size), diff_id)
        tree = image_layer.read_layer(watch(_within(stream)))
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
        volumes=tuple(sorted(process.volumes or ())),
        env=tuple(sorted({each.partition("=")[0] for each in process.env or ()})),
        env_values=dict(sorted(dict(env_pairs(process.env or ())).items())),
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

"""Measure a container's root filesystem: each layer, bottom to top, before anything of it runs."""

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from cima_runc.base import limits
from cima_runc.base.errors import CimaError
from cima_runc.measure.idmap import IDENTITY, IdMap
from cima_runc.measure.layer import Check, fingerprint, ids_of, no_check, open_layer, scan
from cima_runc.measure.mtree import FORMAT, escape, format_mode
from cima_runc.measure.overlay import Kind, LayerDirectory, Role, RootFilesystem
from cima_runc.measure.single_flight import SingleFlight
from cima_runc.measure.store import CachedLayer, LayerCache, ManifestStore, StoreError

Mode = Literal["full", "layers-digest-only", "off"]

_COARSE_NS = 2_000_000_000
"""How long ago a tree must have changed last for its fingerprint to stand for it: filesystems
round times, up to 2 s, so that a later change could show the same ones."""
_FINE_NS = 20_000_000
"""The same where times are not rounded: the kernel takes them from a clock that stands still for a
tick, 10 ms at most (ktime_get_coarse_real_ts64)."""
_FINE_UNIT = 1_000_000
"""Filesystems that round do so to a millisecond or more, but for some to 100 ns, which is less
than a tick."""

_SHOWN: frozenset[Role] = frozenset({"init", "upper"})
"""Layers of no image, whose entries a verifier must see to judge them."""


class DeadlineError(CimaError):
    """Measuring took longer than it may."""


def deadline(seconds: float) -> Check:
    """Return a check that ends the measurement with :class:`DeadlineError` after ``seconds``."""
    end = time.monotonic() + seconds

    def check() -> None:
        if time.monotonic() > end:
            raise DeadlineError(
                f"measuring the root filesystem took longer than {seconds:g} s",
                hint="raise hook_timeout_seconds and restart the agent, "
                "or look for very large files in the container's layer",
            )

    return check


class LayerMeasurement(BaseModel):
    """One layer of a measured root filesystem."""

    model_config = ConfigDict(frozen=True)

    kind: Role
    """data and lower: of the image; init: made by Docker; upper: the container's own; tree: a root
    filesystem that is not an overlay."""
    digest: str
    """`sha256:` and 64 hex digits of the canonical manifest (:mod:`cima_runc.measure.mtree`)."""
    entries: int
    files: int
    bytes: int
    """Bytes of all regular files."""
    changed: tuple[str, ...] = ()
    """Escaped paths of what changed while it was measured, the first hundred of them."""
    changed_count: int = 0
    manifest: str | None = None
    """The manifest itself, of a layer that is of no image (init, upper) and has at most
    ``limits.WRITTEN_MANIFEST`` bytes of it, so that a verifier can judge each entry."""
    is_cached: bool = Field(default=False, exclude=True)
    """Whether the files were not read, since the tree's fingerprint was a known one."""


class RootAttributes(BaseModel):
    """Mode and owner of the root directory as mounted, which no layer's manifest holds."""

    model_config = ConfigDict(frozen=True)

    mode: str
    """Octal, as in a manifest."""
    uid: int
    gid: int


class RootfsMeasurement(BaseModel):
    """What a container's root filesystem was, before anything of it ran."""

    model_config = ConfigDict(frozen=True)

    mode: Mode
    format: str = FORMAT
    filesystem: Kind
    reason: str = ""
    """Why an overlay was measured as one tree."""
    root: RootAttributes | None = None
    layers: tuple[LayerMeasurement, ...] = ()
    """Bottom to top."""

    @property
    def changed_count(self) -> int:
        """How many files and directories changed while they were measured."""
        return sum(layer.changed_count for layer in self.layers)

    def content(self) -> dict[str, Any]:
        """Return the content of the `rootfs` record: JSON values, the same for the same root."""
        content = self.model_dump(mode="json")
        for layer in content["layers"]:
            if layer["manifest"] is None:
                del layer["manifest"]
        return {"type": "rootfs"} | content


_AT_ONCE = 4
"""How many threads measure side by side: more would only wait for the interpreter lock."""


@dataclass(frozen=True, slots=True)
class Store:
    """Where manifests are kept, what unchanged layers measured, and what is being measured."""

    manifests: ManifestStore
    cache: LayerCache
    work: SingleFlight

    @classmethod
    def at(cls, directory: Path) -> "Store":
        """Open the store in a directory, making it. Raises :class:`StoreError`."""
        return cls(
            ManifestStore(directory / "manifests"),
            LayerCache(directory / "layers"),
            SingleFlight(_AT_ONCE),
        )

    def tidy(self) -> None:
        """Remove what is kept no longer: containers come and go, and each has layers of its own.

        Raises:
            OSError: something could not be removed.
        """
        self.cache.prune()
        self.manifests.prune(limits.MANIFESTS)


def measure(
    rootfs: RootFilesystem,
    store: Store | None = None,
    *,
    ids: IdMap = IDENTITY,
    mode: Mode = "full",
    use_cache: bool = True,
    check: Check = no_check,
) -> RootfsMeasurement:
    """Measure each layer of a root filesystem.

    ``ids`` is the map of the container's user namespace. ``mode`` "full" keeps the manifests in
    ``store``, "layers-digest-only" does not, "off" measures nothing and says so. Without
    ``use_cache`` every file is read, whether its layer seems unchanged or not. ``check`` is called
    now and then, and ends the measurement by raising (:func:`deadline`). Threads that share a
    store call this within a turn of its ``work``, and share what they have asked for alike.
    Raises :class:`LayerError` where a layer cannot be read whole, and what ``check`` raises.
    """
    root = None
    layers: list[LayerMeasurement] = []
    if mode != "off":
        root = _root_attributes(rootfs.path, ids)
        owners, keep = rootfs.ids or ids, mode == "full"
        for number, directory in enumerate(rootfs.layers):
            # Files that were copied up without their data have it in the layers below.
            below = tuple(one.path for one in reversed(rootfs.layers[:number]))
            work = partial(
                _measure_layer, store, directory, below, owners, keep=keep, use_cache=use_cache
            )
            key = (directory, below, owners, keep, use_cache)
            layers.append(store.work.do(key, work, check) if store else work(check))
    return RootfsMeasurement(
        mode=mode, filesystem=rootfs.kind, reason=rootfs.reason, root=root, layers=tuple(layers)
    )


def _root_attributes(path: Path, ids: IdMap) -> RootAttributes | None:
    try:
        found = path.stat()
    except OSError:
        return None  # mounted where only the container sees it
    return RootAttributes(
        mode=format_mode(found.st_mode & 0o7777),
        uid=ids.uid(found.st_uid),
        gid=ids.gid(found.st_gid),
    )


def _measure_layer(
    store: Store | None,
    directory: LayerDirectory,
    below: tuple[Path, ...],
    ids: IdMap,
    check: Check,
    *,
    keep: bool,
    use_cache: bool,
) -> LayerMeasurement:
    with open_layer(directory.path) as root:
        ids = ids_of(root, directory, ids)
        key = f"{directory.path}\0{directory.form}\0{ids}"
        if store is None or not use_cache:
            return _scan(root, directory, below, ids, store=store if keep else None, check=check)[0]
        before = fingerprint(root, check)
        known = store.cache.get(key, before.digest)
        if known:
            # The manifest may go at any time: then all is as if nothing were known.
            with suppress(StoreError):
                return _as_known(store, directory.role, known, keep=keep)
        started = _quiet_since(before.newest)
        layer, borrows = _scan(
            root, directory, below, ids, store=store if keep else None, check=check
        )
        if fingerprint(root, check) != before and not layer.changed_count:
            return layer.model_copy(update={"changed": (".",), "changed_count": 1})
        if not layer.changed_count and not borrows and before.newest < started:
            store.cache.put(
                key,
                CachedLayer(
                    path=escape(os.fsencode(directory.path)),
                    fingerprint=before.digest,
                    digest=layer.digest,
                    entries=layer.entries,
                    files=layer.files,
                    bytes=layer.bytes,
                ),
            )
        return layer


def _quiet_since(newest: int) -> int:
    """Wait until the clock has left the tick of the latest change, if it is about to, and return
    the time (nanoseconds since the epoch) before which nothing changes any more.

    A tree that has just been unpacked is so remembered from its first measurement on.
    """
    rest = _FINE_NS if newest % _FINE_UNIT else _COARSE_NS
    wait = newest + rest - time.time_ns()
    if 0 <= wait <= _FINE_NS:
        time.sleep((wait + 1_000_000) / 1e9)
    return time.time_ns() - rest


def _as_known(store: Store, role: Role, known: CachedLayer, *, keep: bool) -> LayerMeasurement:
    """Return what a layer is that has not changed. Raises :class:`StoreError`: its manifest is
    not there."""
    is_shown = role in _SHOWN
    if (keep or is_shown) and not store.manifests.has(known.digest):
        raise StoreError("the manifest is not kept")
    return LayerMeasurement(
        kind=role,
        digest=known.digest,
        entries=known.entries,
        files=known.files,
        bytes=known.bytes,
        manifest=_kept_manifest(store, known.digest) if is_shown else None,
        is_cached=True,
    )


def _kept_manifest(store: Store, digest: str) -> str | None:
    with store.manifests.open(digest) as manifest:
        text = manifest.read(limits.WRITTEN_MANIFEST + 1)
    return text.decode("ascii") if len(text) <= limits.WRITTEN_MANIFEST else None


class _Shown:
    """The beginning of a manifest, as it is written."""

    def __init__(self) -> None:
        self._text = bytearray()

    def write(self, data: bytes) -> None:
        """Take the next piece, while there is room."""
        if len(self._text) <= limits.WRITTEN_MANIFEST:
            self._text += data

    @property
    def text(self) -> str | None:
        """The whole manifest; None where it is too long."""
        fits = len(self._text) <= limits.WRITTEN_MANIFEST
        return self._text.decode("ascii") if fits else None


def _scan(
    root: int,
    directory: LayerDirectory,
    below: tuple[Path, ...],
    ids: IdMap,
    *,
    store: Store | None,
    check: Check,
) -> tuple[LayerMeasurement, bool]:
    """Return what a layer is, and whether it has data of the layers below."""
    shown = _Shown()
    if store is None:
        found = scan(root, directory.form, ids, shown.write, check, below=below)
    else:
        with store.manifests.new() as manifest:

            def write(data: bytes) -> None:
                manifest.write(data)
                shown.write(data)

            found = scan(root, directory.form, ids, write, check, below=below)
            manifest.keep(found.digest)
    layer = LayerMeasurement(
        kind=directory.role,
        digest=found.digest,
        entries=found.entries,
        files=found.files,
        bytes=found.bytes,
        changed=tuple(found.changed),
        changed_count=found.changed_count,
        manifest=shown.text if directory.role in _SHOWN else None,
    )
    return layer, found.borrows

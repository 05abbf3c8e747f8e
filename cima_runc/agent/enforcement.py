"""Enforcement: which image a container is of, and the list of what may run in it.

A container is of the image whose layers it started from, by the digests that were measured. All
regular files of that image may run, wherever they are: what counts is the content.
"""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cima_runc.base.errors import CimaError
from cima_runc.base.text import printable
from cima_runc.config import EnforcementSettings
from cima_runc.sensor.loader import Sensor
from cima_runc.verifier.reference.file import ImageReference, ReferenceFileError, read_reference

_log = logging.getLogger(__name__)

_IMAGE_LAYERS = ("data", "lower")
_Identity = tuple[int, int, int, int]


class EnforcementError(CimaError):
    """What may run in the container is not known, so it must not start."""


@dataclass(frozen=True)
class Allowlist:
    """What may run in the containers of one image."""

    image: str
    """Digest of the image's configuration."""
    handle: int
    """Descriptor of the sensor's list, good until the next is asked for."""


@dataclass(frozen=True)
class _Image:
    layers: tuple[frozenset[str], ...]
    allowlist: Allowlist


class Enforcement:
    """The images with reference values on this host, and their lists in the kernel.

    One thread uses it.
    """

    def __init__(self, settings: EnforcementSettings, sensor: Sensor) -> None:
        self._settings = settings
        self._sensor = sensor
        self._files: dict[Path, _Identity] = {}
        self._images: dict[Path, _Image | None] = {}

    def allowlist(self, rootfs: Mapping[str, Any]) -> Allowlist | None:
        """Return what may run in a new container with this ``rootfs`` record; None for anything.

        Raises:
            EnforcementError: nobody has said what its image is, or the files that say it cannot be
                read, or the kernel has no room for the list.
        """
        if not self._settings.enforce:
            return None
        found = self._find(rootfs)
        if found is None and self._settings.unknown_images == "refuse":
            directory = printable(self._settings.references)
            raise EnforcementError(
                f"none of the images in {directory} has the layers of this container",
                hint=f"cima reference image IMAGE -o {directory}/NAME.json",
            )
        return found

    def again(self, image: str, rootfs: Mapping[str, Any]) -> Allowlist:
        """Return what may run in a container that has been told so before, with ``image``.

        Whatever the settings are now; nothing, where the reference values are there no more.
        """
        try:
            found = self._find(rootfs)
        except EnforcementError as error:
            _log.error("%s", error)
            found = None
        if found is not None:
            return found
        _log.error("the reference values of %s are gone: its containers can run nothing", image)
        return Allowlist(image, self._sensor.allowlist([]))

    def _find(self, rootfs: Mapping[str, Any]) -> Allowlist | None:
        self._read_directory()
        layers = [layer["digest"] for layer in rootfs["layers"] if layer["kind"] in _IMAGE_LAYERS]
        for image in self._images.values():
            if image is not None and layers and _are(layers, image.layers):
                return image.allowlist
        return None

    def _read_directory(self) -> None:
        directory = Path(self._settings.references)
        try:
            found = {path: _identity(path) for path in sorted(directory.glob("*.json"))}
        except OSError as error:
            raise EnforcementError(
                f"{printable(str(directory))} cannot be read: {error.strerror}"
            ) from error
        for path in list(self._files):
            if found.get(path) != self._files[path]:
                del self._files[path]
                image = self._images.pop(path)
                if image is not None:
                    os.close(image.allowlist.handle)
        for path, identity in found.items():
            if path not in self._files:
                self._images[path] = self._read(path)
                self._files[path] = identity

    def _read(self, path: Path) -> _Image | None:
        try:
            reference = read_reference(path)
        except ReferenceFileError as error:
            raise EnforcementError(error.what, hint=error.hint) from error
        if not isinstance(reference, ImageReference):
            return None
        digests = {file.sha256 for file in reference.files.values() if file.sha256 is not None}
        digests.update(self._settings.allow)
        if len(digests) > self._settings.files:
            raise EnforcementError(
                f"{printable(str(path))} has {len(digests)} files",
                hint=f"enforcement.files = {len(digests)} allows them",
            )
        try:
            handle = self._sensor.allowlist([bytes.fromhex(digest) for digest in digests])
        except OSError as error:
            raise EnforcementError(
                f"the kernel does not take the list of {printable(str(path))}: {error.strerror}"
            ) from error
        layers = tuple(layer.all_digests for layer in reference.layers)
        return _Image(layers, Allowlist(reference.image_id, handle))


def _are(layers: list[str], wanted: tuple[frozenset[str], ...]) -> bool:
    return len(layers) == len(wanted) and all(
        layer in digests for layer, digests in zip(layers, wanted, strict=True)
    )


def _identity(path: Path) -> _Identity:
    status = path.stat()
    return (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)

"""What a Podman container's image says by annotations, which Podman before 4.5.1 hands on.

Podman's storage keeps each image's manifests as the registry gave them. They are in the store that
the container is in, or in another that Podman was told of; what is not found is not known.
Sources: Podman pkg/specgen/generate/container.go (CompleteSpec); containers/storage images.go and
store.go (big data of an image, volatile containers).
"""

import base64
import binascii
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cima_runc.base import limits
from cima_runc.base.bounded import read_bounded
from cima_runc.base.jsonio import JsonError, load_object

BUNDLE = re.compile(r"(/.+)/([a-z0-9]+)-containers/([^/]+)/userdata")
"""Podman's: its store, the storage driver, the container's id."""
Pairs = frozenset[tuple[str, str]]
"""Names with a text as value."""
_LISTS = ("containers.json", "volatile-containers.json")
_LIST_SIZE = 64 * limits.MIB
_MANIFEST_SIZE = 4 * limits.MIB
"""What containers/image takes at most."""
_IMAGE = re.compile(r"[0-9a-f]{64}")


def image_pairs(bundle: str, stores: Sequence[str] = ()) -> Pairs | None:
    """Return all names with a text as value that the manifests of a container's image have.

    None: they cannot be seen, or not all of them be read. Wherever in a manifest a pair is, it is
    the image's: what parsers take for its annotations depends on them (Go's knows no upper case).
    ``stores`` are those that images may be in beside the container's own.
    """
    match = BUNDLE.fullmatch(bundle)
    if match is None:
        return None
    own, driver, container = match.groups()
    try:
        image = _image_of(Path(own, f"{driver}-containers"), container)
        if image == "":
            return frozenset()  # of a root filesystem (--rootfs)
        if image is None or not _IMAGE.fullmatch(image):
            return None
        places = (Path(store, f"{driver}-images", image) for store in dict.fromkeys((own, *stores)))
        found = [place for place in places if (place / "manifest").is_file()]
        if not found:
            return None
        return frozenset(
            pair for place in found for raw in _manifests(place) for pair in _pairs(raw)
        )
    except (OSError, JsonError, ValueError, RecursionError):
        return None


def _image_of(containers: Path, container: str) -> str | None:
    for name in _LISTS:
        path = containers / name
        if not path.is_file():
            continue
        raw = read_bounded(path, _LIST_SIZE)
        rows = json.loads(raw) if len(raw) <= _LIST_SIZE else None
        for row in rows if isinstance(rows, list) else ():
            if isinstance(row, dict) and row.get("id") == container:
                image = row.get("image", "")
                return image if isinstance(image, str) else None
    return None


def _manifests(image: Path) -> Iterator[dict[str, Any]]:
    """Yield each manifest that there is of an image: several may have the same configuration."""
    for name in sorted(os.listdir(image)):
        if _key(name).startswith("manifest"):
            raw = read_bounded(image / name, _MANIFEST_SIZE)
            yield load_object(raw, what="the image's manifest", limit=_MANIFEST_SIZE)


def _key(name: str) -> str:
    """Return the key of a file of an image's big data."""
    if not name.startswith("="):
        return name
    try:
        return base64.b64decode(name[1:]).decode("utf-8", "replace")
    except binascii.Error:
        return name


def _pairs(value: object) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            if isinstance(inner, str):
                yield key, inner
            yield from _pairs(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _pairs(inner)

"""What engines call a container: for people to find it by, and trusted for nothing.

CRI's names, Podman's on some hosts and ``io.cima.name`` are annotations of the measured
configuration. Docker's and Podman's own are in files of the engine beside what it mounts, or beside
the bundle. A tenant chooses each of them, so a name finds a container and proves nothing.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from cima_runc.base import limits
from cima_runc.base.bounded import read_bounded
from cima_runc.base.jsonio import JsonError, load_object


class Names(NamedTuple):
    """Each empty where nothing tells it."""

    name: str = ""
    image: str = ""
    pod: str = ""


_NAME = ("io.cima.name", "io.kubernetes.cri.container-name", "io.kubernetes.container.name",
         "nerdctl/name")  # fmt: skip
_IMAGE = ("io.kubernetes.cri.image-name", "io.kubernetes.cri-o.ImageName",
          "org.opencontainers.image.ref.name", "nerdctl/image-ref")  # fmt: skip
_POD = ("io.kubernetes.cri.sandbox-name", "io.kubernetes.pod.name")
_NAMESPACE = ("io.kubernetes.cri.sandbox-namespace", "io.kubernetes.pod.namespace")


def names_of(container_id: str, bundle: str, config: Mapping[str, Any]) -> Names:
    """Return what a container is called; ``config`` is its OCI configuration, measured or not."""
    found = config.get("annotations")
    annotations = found if isinstance(found, dict) else {}
    pod, namespace = _first(annotations, _POD), _first(annotations, _NAMESPACE)
    told = Names(
        _first(annotations, _NAME),
        _first(annotations, _IMAGE),
        f"{namespace}/{pod}" if pod and namespace else pod,
    )
    if told.name and told.image:
        return told
    engine = _of_docker(container_id, config) or _of_podman(container_id, bundle) or Names()
    return Names(told.name or engine.name, told.image or engine.image, told.pod)


def all_names(
    container_id: str, bundle: str, config: Mapping[str, Any]
) -> frozenset[tuple[str, str]]:
    """Return everything that a container is called, each with who calls it so: an annotation, or
    ``engine``.

    By one of them alone two containers may be taken for each other: who starts one may give it, in
    an annotation, the name that an engine has for another.
    """
    found = config.get("annotations")
    annotations = found if isinstance(found, dict) else {}
    told = {(key, annotations.get(key)) for key in _NAME if isinstance(annotations.get(key), str)}
    engine = _of_docker(container_id, config) or _of_podman(container_id, bundle) or Names()
    return frozenset((who, name) for who, name in {*told, ("engine", engine.name)} if name)


def _first(annotations: Mapping[str, Any], keys: tuple[str, ...]) -> str:
    return next((value for key in keys if isinstance(value := annotations.get(key), str)), "")


def _of_docker(container_id: str, config: Mapping[str, Any]) -> Names | None:
    """Docker mounts a container's /etc/hostname out of the directory that holds its settings."""
    mounts = config.get("mounts")
    for mount in mounts if isinstance(mounts, list) else ():
        if not isinstance(mount, dict) or mount.get("destination") != "/etc/hostname":
            continue
        directory = Path(str(mount.get("source"))).parent
        if directory.name != container_id:
            return None
        settings = _json_file(directory / "config.v2.json")
        image = settings.get("Config")
        return Names(
            str(settings.get("Name", "")).removeprefix("/"),
            str(image.get("Image", "")) if isinstance(image, dict) else "",
        )
    return None


def _of_podman(container_id: str, bundle: str) -> Names | None:
    """Podman's bundles lie beside the list of its containers."""
    storage = Path(bundle).parent.parent
    if storage.name != "overlay-containers":
        return None
    for row in _json_list(storage / "containers.json"):
        names, metadata = row.get("names"), row.get("metadata")
        if row.get("id") == container_id and isinstance(names, list) and names:
            about = _json_text(metadata if isinstance(metadata, str) else "{}")
            return Names(str(names[0]), str(about.get("image-name", "")))
    return None


def _json_file(path: Path) -> dict[str, Any]:
    try:
        raw = read_bounded(path, limits.CONFIG_JSON)
        return load_object(raw, what=str(path), limit=limits.CONFIG_JSON)
    except (OSError, JsonError):
        return {}


def _json_text(text: str) -> dict[str, Any]:
    try:
        return load_object(text.encode(), what="metadata", limit=limits.CONFIG_JSON)
    except (UnicodeError, JsonError):
        return {}


def _json_list(path: Path) -> list[dict[str, Any]]:
    try:
        raw = read_bounded(path, limits.CONFIG_JSON)
        rows = json.loads(raw) if len(raw) <= limits.CONFIG_JSON else []
    except (OSError, ValueError, RecursionError):
        return []
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []

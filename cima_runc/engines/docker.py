"""Docker: ``/etc/docker/daemon.json``. Source: dockerd reference, "Daemon configuration file"."""

import json
from pathlib import Path
from typing import Any

from cima_runc.base import limits
from cima_runc.base.jsonio import load_object
from cima_runc.engines import json_text
from cima_runc.engines.engine import RUNTIME_NAME, Engine, EngineError, Wish

_FILE = "etc/docker/daemon.json"


def _add(text: str | None, wish: Wish, root: Path) -> str:  # noqa: ARG001 - one signature for all
    text = text if text is not None and text.strip() else "{}\n"
    values = _parse(text)
    runtimes = values.get("runtimes", {})
    if not isinstance(runtimes, dict):
        raise EngineError(f"/{_FILE}: runtimes is not an object", hint="mend it by hand")
    entry = {"path": wish.runtime}
    if runtimes.get(RUNTIME_NAME) != entry:
        text = json_text.put(text, ["runtimes", RUNTIME_NAME], entry)
    if wish.default and values.get("default-runtime") != RUNTIME_NAME:
        text = json_text.put(text, ["default-runtime"], RUNTIME_NAME)
    return text


def _remove(text: str, before: str | None) -> str | None:
    values = _parse(text)
    if values.get("default-runtime") == RUNTIME_NAME:
        earlier = _parse(before).get("default-runtime") if before and before.strip() else None
        if isinstance(earlier, str) and earlier != RUNTIME_NAME:
            text = json_text.put(text, ["default-runtime"], earlier)
        else:
            text = json_text.drop(text, ["default-runtime"])
    runtimes = values.get("runtimes")
    if isinstance(runtimes, dict) and RUNTIME_NAME in runtimes:
        text = json_text.drop(text, ["runtimes", RUNTIME_NAME])
        if len(runtimes) == 1:
            text = json_text.drop(text, ["runtimes"])
    return text if json.loads(text) or before is not None else None


def _parse(text: str) -> dict[str, Any]:
    return load_object(text.encode("utf-8"), what=f"/{_FILE}", limit=limits.ENGINE_SETTINGS)


DOCKER = Engine(
    name="docker",
    find_file=lambda root: root / _FILE,
    add=_add,
    remove=_remove,
    apply_hint="systemctl reload docker (systemctl restart docker for a new default runtime)",
    try_hint=f"docker run --runtime {RUNTIME_NAME} IMAGE",
)

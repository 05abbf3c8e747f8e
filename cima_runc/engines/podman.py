"""Podman: a drop-in file in ``/etc/containers/containers.conf.d``.

Source: containers.conf(5), "DIRECTORIES" and "engine.runtimes".
"""

from pathlib import Path
from typing import Any

from cima_runc.base import limits
from cima_runc.engines import toml_text
from cima_runc.engines.engine import RUNTIME_NAME, Engine, EngineError, Wish

_DIRECTORY = "etc/containers/containers.conf.d"
_FILE = f"{_DIRECTORY}/zz-cima-runc.conf"
_OTHERS = ("usr/share/containers/containers.conf", "etc/containers/containers.conf")
_JSON_RUNTIMES = ["crun", "runc", "kata", "runsc", "youki", "krun"]
"""Podman's own list of runtimes that write JSON errors; a list in a file replaces it."""


def _add(text: str | None, wish: Wish, root: Path) -> str:
    present = toml_text.parse(text or "", f"/{_FILE}")
    default = wish.default or toml_text.at(present, ["engine", "runtime"]) == RUNTIME_NAME
    json_runtimes = [*_json_runtimes(root), RUNTIME_NAME]
    lines = ["# Made by cima configure podman.", "[engine]"]
    if default:
        lines.append(f"runtime = {_string(RUNTIME_NAME)}")
    lines.append(f"runtime_supports_json = [{', '.join(map(_string, json_runtimes))}]")
    lines += ["", "[engine.runtimes]", f"{RUNTIME_NAME} = [{_string(wish.runtime)}]", ""]
    return "\n".join(lines)


def _remove(text: str, before: str | None) -> str | None:
    what = f"/{_FILE}"
    values = toml_text.parse(text, what)
    runtime, json_runtimes = ["engine", "runtime"], ["engine", "runtime_supports_json"]
    if toml_text.at(values, runtime) == RUNTIME_NAME:
        text = toml_text.drop(text, runtime, what)
    if RUNTIME_NAME in (toml_text.at(values, json_runtimes) or []):
        text = toml_text.drop(text, json_runtimes, what)
    text = toml_text.drop(text, ["engine", "runtimes", RUNTIME_NAME], what)
    return text if toml_text.holds_something(text, what) else before


def _json_runtimes(root: Path) -> list[str]:
    found: Any = _JSON_RUNTIMES
    drop_ins = sorted((root / _DIRECTORY).glob("*.conf"))
    for path in [*(root / other for other in _OTHERS), *drop_ins]:
        if path == root / _FILE or not path.is_file():
            continue
        with path.open("rb") as file:
            text = file.read(limits.ENGINE_SETTINGS + 1).decode("utf-8")
        listed = toml_text.at(toml_text.parse(text, str(path)), ["engine", "runtime_supports_json"])
        found = found if listed is None else listed
    if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
        raise EngineError("runtime_supports_json is not a list of names", hint="mend it by hand")
    return [item for item in found if item != RUNTIME_NAME]


def _string(text: str) -> str:
    import tomlkit

    return tomlkit.string(text).as_string()


PODMAN = Engine(
    name="podman",
    find_file=lambda root: root / _FILE,
    add=_add,
    remove=_remove,
    apply_hint="nothing: Podman reads it with its next command (podman.service: restart it)",
    try_hint=f"podman run --runtime {RUNTIME_NAME} IMAGE",
)

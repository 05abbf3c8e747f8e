"""Podman: a drop-in file in ``/etc/containers/containers.conf.d``.

Source: containers.conf(5), "DIRECTORIES" and "engine.runtimes".
"""

from pathlib import Path

from cima_runc.engines import toml_text
from cima_runc.engines.engine import RUNTIME_NAME, Engine, EngineError, Wish

_DIRECTORY = "etc/containers/containers.conf.d"
_FILE = f"{_DIRECTORY}/zz-cima-runc.conf"
_MARK = "# Made by cima configure podman."
_OTHERS = ("usr/share/containers/containers.conf", "etc/containers/containers.conf")
_JSON_RUNTIMES = ["crun", "runc", "kata", "runsc", "youki", "krun"]
"""Podman's own list of runtimes that write JSON errors; a list in a file replaces it."""
_NO_CGROUPS_RUNTIMES = ["crun", "krun"]
"""The same of those that can do with --cgroups=disabled."""


def _add(text: str | None, wish: Wish, root: Path, what: str) -> str:
    present = toml_text.parse(text or "", what)
    if wish.file is not None:
        toml_text.refuse_others(text, _MARK, what)
    default = wish.default or toml_text.at(present, ["engine", "runtime"]) == RUNTIME_NAME
    if wish.file is None:
        later = [path for path in _files(root) if _comes_later(path)]
        mine = ["engine", "runtimes", RUNTIME_NAME]
        toml_text.refuse_later(later, [mine, *([["engine", "runtime"]] if default else [])])
    lines = [_MARK, "[engine]"]
    if default:
        lines.append(f"runtime = {_string(RUNTIME_NAME)}")
    lines.append(_list(root, "runtime_supports_json", _JSON_RUNTIMES))
    if wish.without_cgroups:
        lines.append(_list(root, "runtime_supports_nocgroups", _NO_CGROUPS_RUNTIMES))
    lines += ["", "[engine.runtimes]", f"{RUNTIME_NAME} = [{_string(wish.runtime)}]", ""]
    return "\n".join(lines)


def _remove(text: str, before: str | None, what: str) -> str | None:
    values = toml_text.parse(text, what)
    runtime = ["engine", "runtime"]
    if toml_text.at(values, runtime) == RUNTIME_NAME:
        text = toml_text.drop(text, runtime, what)
    for name in ("runtime_supports_json", "runtime_supports_nocgroups"):
        if RUNTIME_NAME in (toml_text.at(values, ["engine", name]) or []):
            text = toml_text.drop(text, ["engine", name], what)
    text = toml_text.drop(text, ["engine", "runtimes", RUNTIME_NAME], what)
    return text if toml_text.holds_something(text, what) else before


def _list(root: Path, name: str, builtin: list[str]) -> str:
    """Return the line by which cima-runc is in a list of Podman's beside what is there.

    A list replaces the one before, unless an element ``{append=true}`` says that it is added; that
    holds for the lists of later files too (containers.conf(5), "Appending to string arrays").
    """
    names, appends = list(builtin), False
    for path in _files(root):
        found = toml_text.at(toml_text.read(path), ["engine", name])
        if found is None:
            continue
        listed = found if isinstance(found, list) else [None]
        words = [item for item in listed if isinstance(item, str)]
        attributes = [item for item in listed if isinstance(item, dict)]
        if len(words) + len(attributes) != len(listed):
            raise EngineError(f"{path}: {name} is not a list of names", hint="mend it by hand")
        for attribute in attributes:
            appends = attribute.get("append", appends) is True
        names = [*names, *words] if appends else words
    if appends:
        return f"{name} = [{_string(RUNTIME_NAME)}, {{append=true}}]"
    kept = [item for item in dict.fromkeys(names) if item != RUNTIME_NAME]
    return f"{name} = [{', '.join(map(_string, [*kept, RUNTIME_NAME]))}]"


def _files(root: Path) -> list[Path]:
    drop_ins = sorted((root / _DIRECTORY).glob("*.conf"))
    paths = [*(root / other for other in _OTHERS), *drop_ins]
    return [path for path in paths if path != root / _FILE and path.is_file()]


def _comes_later(path: Path) -> bool:
    return path.parent.name == _DIRECTORY.rpartition("/")[2] and path.name > Path(_FILE).name


def _named(root: Path) -> set[str]:
    found: set[str] = set()
    others, own = _files(root), [root / _FILE] if (root / _FILE).is_file() else []
    later = [path for path in others if _comes_later(path)]
    for path in [*(path for path in others if path not in later), *own, *later]:
        listed = toml_text.at(toml_text.read(path), ["engine", "runtimes", RUNTIME_NAME])
        if isinstance(listed, list):
            found = {item for item in listed if isinstance(item, str)}
    return found


def _string(text: str) -> str:
    import tomlkit

    return tomlkit.string(text).as_string()


PODMAN = Engine(
    name="podman",
    find_file=lambda root: root / _FILE,
    named=_named,
    add=_add,
    remove=_remove,
    apply_hint="nothing: Podman reads it with its next command (podman.service: restart it)",
    try_hint=f"podman run --runtime {RUNTIME_NAME} IMAGE",
)

"""containerd: ``/etc/containerd/config.toml``, for its CRI plugin (Kubernetes).

Versions 2 (containerd 1.x) and 3 (2.x). containerd 1.x replaces a plugin's whole section by that
of a later imported file, so the section is edited where it is, and a file of our own in an
imported directory is made only where no file has one. A file that names any runtime replaces the
list of those that are built in: then ``runc``, the default one, must be named too. A relative
pattern of imports is relative to the file, as since containerd 1.7.
Source: containerd, docs/man/containerd-config.toml.5.md and docs/cri/config.md.
"""

from pathlib import Path
from typing import Any

from cima_runc.base import limits
from cima_runc.engines import toml_text
from cima_runc.engines.engine import RUNTIME_NAME, Engine, EngineError, Wish

_FILE = "etc/containerd/config.toml"
_DROP_IN = "zz-cima-runc.toml"
_RUNC = {"runtime_type": "io.containerd.runc.v2"}
"""The runtime that is built in."""
_PLUGINS = {2: "io.containerd.grpc.v1.cri", 3: "io.containerd.cri.v1.runtime"}


def _find_file(root: Path) -> Path:
    main = root / _FILE
    if not main.is_file():
        return main
    values = toml_text.parse(_read(main), str(main))
    plugin = _PLUGINS.get(_version(values), "")
    drop_ins = []
    found = main if toml_text.at(values, ["plugins", plugin]) is not None else None
    for pattern in values.get("imports", []):
        if not isinstance(pattern, str):
            continue
        directory, _, name = pattern.rpartition("/")
        base = (
            root / directory.lstrip("/") if directory.startswith("/") else main.parent / directory
        )
        if "*" in name and "*" not in directory and name.endswith("*.toml"):
            drop_ins.append(base / _DROP_IN)
        for path in sorted(base.glob(name)) if name else []:
            imported = toml_text.parse(_read(path), str(path))
            if toml_text.at(imported, ["plugins", plugin]) is not None:
                found = path
    if found is not None or not drop_ins:
        return found or main
    return drop_ins[-1]


def _add(text: str | None, wish: Wish, root: Path) -> str:
    what = "containerd's configuration"
    main = root / _FILE
    if text is None or not text.strip():
        main_text = _read(main) if main.is_file() else ""
        version = _version(toml_text.parse(main_text, what)) if main_text.strip() else 2
        text = (text or "") + f"version = {version}\n"
    values = toml_text.parse(text, what)
    version = _version(values)
    if version not in _PLUGINS:
        raise EngineError(
            f"containerd's configuration is of version {version}, not 2 or 3",
            hint="migrate it: containerd config migrate, or containerd config default",
        )
    containerd = ["plugins", _PLUGINS[version], "containerd"]
    runtimes = [*containerd, "runtimes"]
    options: dict[str, Any] = {"BinaryName": wish.runtime}
    systemd = toml_text.at(values, [*runtimes, "runc", "options", "SystemdCgroup"])
    if isinstance(systemd, bool):
        options["SystemdCgroup"] = systemd
    entry = {**_RUNC, "options": options}
    if toml_text.at(values, runtimes) is None:
        text = toml_text.put(text, [*runtimes, "runc"], _RUNC, what)
    text = toml_text.put(text, [*runtimes, RUNTIME_NAME], entry, what)
    if wish.default:
        text = toml_text.put(text, [*containerd, "default_runtime_name"], RUNTIME_NAME, what)
    return text


def _remove(text: str, before: str | None) -> str | None:
    what = "containerd's configuration"
    values = toml_text.parse(text, what)
    plugin = _PLUGINS.get(_version(values))
    if plugin is None:
        return text
    containerd = ["plugins", plugin, "containerd"]
    default = [*containerd, "default_runtime_name"]
    if toml_text.at(values, default) == RUNTIME_NAME:
        earlier = toml_text.at(toml_text.parse(before or "", what), default)
        if isinstance(earlier, str) and earlier != RUNTIME_NAME:
            text = toml_text.put(text, default, earlier, what)
        else:
            text = toml_text.drop(text, default, what)
    runtimes = [*containerd, "runtimes"]
    text = toml_text.drop(text, [*runtimes, RUNTIME_NAME], what)
    left = toml_text.at(toml_text.parse(text, what), runtimes)
    if (
        left == {"runc": _RUNC}
        and toml_text.at(toml_text.parse(before or "", what), runtimes) is None
    ):
        text = toml_text.drop(text, [*runtimes, "runc"], what)
    if before is None and not toml_text.holds_something(text, what, besides={"version"}):
        return None
    return text


def _version(values: dict[str, Any]) -> int:
    version = values.get("version", 1)
    return version if type(version) is int else 0


def _read(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(limits.ENGINE_SETTINGS + 1).decode("utf-8")


CONTAINERD = Engine(
    name="containerd",
    find_file=_find_file,
    add=_add,
    remove=_remove,
    apply_hint="systemctl restart containerd",
    try_hint=f"a pod with runtimeClassName: {RUNTIME_NAME} (examples/kubernetes)",
)

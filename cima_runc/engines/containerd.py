"""containerd: ``/etc/containerd/config.toml``, or the file that its unit's ``--config`` names, for
its CRI plugin (Kubernetes).

Versions 1 and 2 (containerd 1.x), 3 and 4 (2.x). Files that ``imports`` names come after the main
file, in its order. Up to version 2 the last file that has the plugin's section replaces it as a
whole; from 3 on sections are merged key by key. So:

- where the section is in the main file, it is edited there;
- where an imported file has it too, our handler comes into a file of our own beside, which is the
  last: those others are often generated (NVIDIA's). Up to version 2 that file holds all of the
  section that is in effect;
- where no file has it, and a directory of drop-ins is imported, it comes into a file of our own;
- where there is no main file, and files stand where containerd 2.2 and later import from without
  one, the main file that is made imports them on.

A file that names any runtime replaces the list of those that are built in: then ``runc``, the
default one, must be named too. A relative pattern of imports is relative to the file, as since
containerd 1.7. k3s and RKE2 make their configuration from a template, which ``--file`` names.
Source: containerd, docs/man/containerd-config.toml.5.md, docs/cri/config.md and
cmd/containerd/server/config (mergeConfig), defaults (DefaultConfigIncludePattern); k3s,
pkg/agent/templates.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from cima_runc.base import limits
from cima_runc.engines import toml_text
from cima_runc.engines.engine import RUNTIME_NAME, Engine, EngineError, Wish
from cima_runc.engines.unit import command_of, flags_of
from cima_runc.measure.procfs import flag_value

_FILE = "etc/containerd/config.toml"
_UNIT = "containerd.service"
_DROP_IN = "zz-cima-runc.toml"
_RUNC = {"runtime_type": "io.containerd.runc.v2"}
"""The runtime that is built in."""
_PLUGINS = {
    1: "cri",
    2: "io.containerd.grpc.v1.cri",
    3: "io.containerd.cri.v1.runtime",
    4: "io.containerd.cri.v1.runtime",
}
_MERGED_SINCE = 3
_BEGIN, _END = "# cima configure containerd: begin", "# cima configure containerd: end"
_BUILT_IN = "etc/containerd/conf.d/*.toml"
_BASE = '{{ template "base" . }}'


def _named_file(root: Path) -> str | None:
    """Return the file that containerd's unit starts it with, None where it names none."""
    flags = flags_of(command_of(_UNIT, root), "containerd")
    return flag_value(flags, "config") or flag_value(flags, "c")


def _main(root: Path) -> Path:
    return root / (_named_file(root) or _FILE).lstrip("/")


def dump_command(root: Path) -> list[str]:
    """Return the command by which containerd prints its settings as it has them."""
    named = _named_file(root)
    return ["containerd", *(["--config", named] if named else []), "config", "dump"]


@dataclass(frozen=True)
class OfOthers:
    """A containerd that another program starts, and makes the settings of."""

    owner: str
    file: Path
    """What a person writes to have something in its settings."""
    made: Path
    """The settings that its containerd reads, made when the owner starts."""


_MADE_BY_OTHERS = {
    "var/lib/rancher/k3s/agent/etc/containerd": "k3s",
    "var/lib/rancher/rke2/agent/etc/containerd": "RKE2",
    "var/snap/microk8s/current/args": "microk8s",
    "etc/k0s": "k0s",
}
"""Directories of those that start a containerd of their own and make its settings."""


def of_others(root: Path) -> OfOthers | None:
    """Return whose containerd the host's is; None where it is started by its own unit, or its own
    settings are there."""
    if _main(root).exists() or command_of(_UNIT, root).argv:
        return None
    for directory, owner in _MADE_BY_OTHERS.items():
        if (found := root / directory).is_dir():
            return _of(owner, found, root)
    return None


def _of(owner: str, directory: Path, root: Path) -> OfOthers:
    if owner == "microk8s":
        template = directory / "containerd-template.toml"
        return OfOthers(owner, template, directory / "containerd.toml")
    if owner == "k0s":
        own = directory / "containerd.d" / _DROP_IN
        return OfOthers(owner, own, root / "run/k0s/containerd-cri.toml")
    made = directory / "config.toml"
    version = _version(toml_text.read(made)) if made.is_file() else _MERGED_SINCE
    name = "config-v3.toml.tmpl" if version >= _MERGED_SINCE else "config.toml.tmpl"
    return OfOthers(owner, directory / name, made)


def _refuse_unread(root: Path, main: Path) -> None:
    """Refuse to begin a file that nobody would read: containerd is another's here."""
    if (others := of_others(root)) is not None:
        raise EngineError(
            f"containerd is {others.owner}'s own here, which does not read {main}",
            hint=f"cima configure containerd --file {others.file}",
        )


def _built_in(root: Path) -> list[Path]:
    """Return the files that containerd imports though no main file says so; it has none then."""
    main = root / _FILE
    return [] if main != _main(root) or main.exists() else sorted(root.glob(_BUILT_IN))


def _find_file(root: Path) -> Path:
    main = _main(root)
    _refuse_unread(root, main)
    if not main.is_file():
        return main
    values = toml_text.read(main)
    plugin = _plugin(values)
    if plugin is None:
        return main
    own = None
    for base in _patterns(values, main, root):
        directory, _, name = str(base).rpartition("/")
        if "*" in name and "*" not in directory and name.endswith("*.toml"):
            own = Path(directory) / _DROP_IN
    others = [
        path
        for path, found in _files(root)
        if path.name != _DROP_IN and toml_text.at(found, ["plugins", plugin]) is not None
    ]
    last = others[-1] if others else None
    if own is not None and last != main:
        return own
    return last or main  # the last word is this file's, and there is no place after it


def _patterns(values: dict[str, Any], file: Path, root: Path) -> list[Path]:
    """Return the patterns of ``imports`` in a file, below ``root``."""
    imports = values.get("imports", [])
    return [
        root / each.lstrip("/") if each.startswith("/") else file.parent / each
        for each in (imports if isinstance(imports, list) else [])
        if isinstance(each, str) and each.rpartition("/")[2]
    ]


def _files(
    root: Path, instead: Mapping[Path, str] = MappingProxyType({})
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield containerd's files and what they hold, in the order in which it reads them.

    ``instead``: texts of files that are not written yet. What an imported file imports comes after
    all that the main file does.
    """
    pending, seen = [_main(root)], set[Path]()
    while pending:
        path = pending.pop(0)
        if path in seen or not (path.resolve() in instead or path.is_file()):
            continue
        seen.add(path)
        text = instead.get(path.resolve())
        values = toml_text.read(path) if text is None else toml_text.parse(text, str(path))
        yield path, values
        for base in _patterns(values, path, root):
            new = {
                base.parent / one.name
                for one in instead
                if one.parent == base.parent.resolve() and one.match(base.name)
            }
            pending += sorted({*base.parent.glob(base.name), *new})


def _in_effect(
    root: Path, but: str = "", instead: Mapping[Path, str] = MappingProxyType({})
) -> dict[str, Any]:
    """Return the plugin's section as containerd has it; ``but``: a file's name to leave out."""
    found: Any = None
    plugin, version = None, 0
    for number, (path, values) in enumerate(_files(root, instead)):
        if not number:
            plugin, version = _plugin(values), _version(values)
        if plugin is None:
            return {}
        more = toml_text.at(values, ["plugins", plugin])
        if path.name != but and isinstance(more, dict):
            found = _merged(found, more) if version >= _MERGED_SINCE else more
    return found if isinstance(found, dict) else {}


def _see_that_it_counts(text: str, path: Path, wish: Wish, root: Path) -> None:
    """Refuse what no container would be started by, since a later file has the last word."""
    path = path.resolve()
    effect = _in_effect(root, instead={path: text})
    handler = toml_text.at(effect, ["containerd", "runtimes", RUNTIME_NAME, "options"]) or {}
    default = toml_text.at(effect, ["containerd", "default_runtime_name"])
    if handler.get("BinaryName") == wish.runtime and (not wish.default or default == RUNTIME_NAME):
        return
    order = [(each.resolve(), values) for each, values in _files(root, {path: text})]
    plugin = _plugin(order[0][1]) if order else None
    ours = next((number for number, (each, _) in enumerate(order) if each == path), len(order))
    later = [
        each
        for each, values in order[ours + 1 :]
        if toml_text.at(values, ["plugins", plugin or ""]) is not None
    ]
    if not later:
        raise EngineError(f"containerd does not read {path}", hint="name its file with --file")
    raise EngineError(
        f"{later[-1]} comes after {path} and has the last word on containerd's runtimes",
        hint=f"cima configure containerd --file {later[-1]}, or take its section out",
    )


def _merged(into: Any, more: Any) -> Any:
    if not isinstance(into, dict) or not isinstance(more, dict):
        return more
    return into | {key: _merged(into.get(key), value) for key, value in more.items()}


def _add(text: str | None, wish: Wish, root: Path, what: str) -> str:
    if wish.file is not None and wish.file.suffix == ".tmpl":
        return _add_to_template(text, wish)
    main = _main(root)
    main_values = toml_text.read(main) if wish.file is None and main.is_file() else {}
    path = wish.file or Path(what)  # where it was configured before, whatever came since
    is_own = path.name == _DROP_IN
    if text is None or not text.strip() or is_own:
        imported = [] if is_own or wish.file is not None else _built_in(root)
        version = _version(main_values) if main_values else _version_of_new(path)
        version = max([version, *(_version(toml_text.read(each)) for each in imported)])
        kept = _default_of(text, what) if is_own else False
        wish = Wish(wish.runtime, wish.default or kept, file=wish.file)
        text = ("" if is_own else text or "") + (f"version = {version}\n" if version > 1 else "")
        text += f'imports = ["/{_BUILT_IN}"]\n' if imported else ""
    values = toml_text.parse(text, what)
    plugin = _plugin(values)
    if plugin is None:
        raise EngineError(
            f"{what} is of version {_version(values)}, which is none that we know",
            hint=f"known are {', '.join(map(str, _PLUGINS))}: containerd config migrate",
        )
    _refuse_switched_off(main_values or values, plugin, str(main) if main_values else what)
    section = ["plugins", plugin]
    whole = {} if main.is_file() else {path.resolve(): text}
    effect = _in_effect(root, _DROP_IN, whole) if wish.file is None else {}
    if is_own and effect and _version(values) < _MERGED_SINCE:
        text = toml_text.put(text, section, effect, what)
    effect = _merged(effect, toml_text.at(values, section) or {})
    runtimes = [*section, "containerd", "runtimes"]
    named = toml_text.at(effect, ["containerd", "runtimes"])
    if named is None:
        text = toml_text.put(text, [*runtimes, "runc"], _RUNC, what)
    options: dict[str, Any] = {"BinaryName": wish.runtime}
    usual = toml_text.at(effect, ["containerd", "default_runtime_name"])
    for name in ("runc", usual if isinstance(usual, str) else "runc"):
        systemd = toml_text.at(named or {}, [name, "options", "SystemdCgroup"])
        if isinstance(systemd, bool):
            options["SystemdCgroup"] = systemd
            break
    text = toml_text.put(text, [*runtimes, RUNTIME_NAME], {**_RUNC, "options": options}, what)
    if wish.default:
        default = [*section, "containerd", "default_runtime_name"]
        text = toml_text.put(text, default, RUNTIME_NAME, what)
    if wish.file is None:
        _see_that_it_counts(text, path, wish, root)
    return text


def _default_of(text: str | None, what: str) -> bool:
    """Whether our own file makes cima-runc the default."""
    values = toml_text.parse(text or "", what)
    default = [*("plugins", _plugin(values) or ""), "containerd", "default_runtime_name"]
    return bool(toml_text.at(values, default) == RUNTIME_NAME)


def _refuse_switched_off(values: dict[str, Any], plugin: str, where: str) -> None:
    off = values.get("disabled_plugins", [])
    names = {plugin, "cri", _PLUGINS[2], "io.containerd.grpc.v1.cri"}
    if isinstance(off, list) and not names.isdisjoint(
        each for each in off if isinstance(each, str)
    ):
        raise EngineError(
            f"containerd's CRI is switched off by disabled_plugins in {where}: nobody would use"
            " the handler",
            hint="take cri out of disabled_plugins; Docker and ctr need no handler",
        )


def _remove(text: str, before: str | None, what: str) -> str | None:
    if _BEGIN in text:
        without = _without_block(text)
        return before if before is None and without.strip() == _BASE else without
    if "{{" in text:
        return text  # a template without us
    values = toml_text.parse(text, what)
    plugin = _plugin(values)
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


# -- k3s and RKE2 ----------------------------------------------------------------------------------


def _add_to_template(text: str | None, wish: Wish) -> str:
    """Return the template with a block of our own; its rest is no TOML and not read."""
    assert wish.file is not None
    if wish.default:
        raise EngineError(
            f"{wish.file} cannot name the default runtime: k3s's own part does",
            hint=f"start k3s with --default-runtime={RUNTIME_NAME}",
        )
    version = 3 if "-v3" in wish.file.name or "cri.v1.runtime" in (text or "") else 2
    runtime = f'plugins."{_PLUGINS[version]}".containerd.runtimes.{RUNTIME_NAME}'
    entry = toml_text.line("BinaryName", wish.runtime)
    block = [
        *(_BEGIN, f"[{runtime}]", f'runtime_type = "{_RUNC["runtime_type"]}"'),
        *(f"[{runtime}.options]", entry, "SystemdCgroup = {{ .SystemdCgroup }}", _END),
    ]
    kept = _without_block(text) if text is not None and text.strip() else f"{_BASE}\n"
    return f"{kept.rstrip()}\n\n" + "\n".join(block) + "\n"


def _without_block(text: str) -> str:
    block = re.compile(rf"\n*{re.escape(_BEGIN)}\n.*?{re.escape(_END)}\n", re.DOTALL)
    return block.sub("\n", text)


def _named(root: Path) -> set[str]:
    others = of_others(root)
    if others is None:
        return _program_in(_in_effect(root))
    found: set[str] = set()
    for file in (others.file, others.made):
        if file.is_file():
            found |= _named_in(file)
    return found


def _named_in(file: Path) -> set[str]:
    """Return what a file of others takes us to be; of a template our own block is read."""
    text = file.read_bytes()[: limits.ENGINE_SETTINGS].decode("utf-8", "replace")
    if file.suffix == ".tmpl":
        block = text.partition(_BEGIN)[2].partition(_END)[0]
        text = block.replace("{{ .SystemdCgroup }}", "false")
    try:
        values = toml_text.parse(text, str(file))
    except EngineError:
        return set()
    sections = (toml_text.at(values, ["plugins", plugin]) for plugin in _PLUGINS.values())
    return {path for each in sections for path in _program_in(each)}


def _program_in(section: Any) -> set[str]:
    entry = toml_text.at(section or {}, ["containerd", "runtimes", RUNTIME_NAME, "options"])
    path = entry.get("BinaryName") if isinstance(entry, dict) else None
    return {path} if isinstance(path, str) else set()


def _check(_root: Path, file: Path) -> tuple[list[str], ...]:
    return (
        () if file.suffix == ".tmpl" else (["containerd", "--config", str(file), "config", "dump"],)
    )


def _version_of_new(path: Path) -> int:
    """Return the version for a file that is not there yet; k3s and RKE2 say it in their names."""
    return 3 if any("-v3" in part for part in path.parts[-2:]) else 2


def _version(values: dict[str, Any]) -> int:
    version = values.get("version", 1)
    return version if type(version) is int else 0


def _plugin(values: dict[str, Any]) -> str | None:
    return _PLUGINS.get(_version(values))


CONTAINERD = Engine(
    name="containerd",
    find_file=_find_file,
    named=_named,
    add=_add,
    remove=_remove,
    check=_check,
    apply_hint="systemctl restart containerd",
    try_hint=f"a pod with runtimeClassName: {RUNTIME_NAME} (examples/kubernetes)",
    not_covered="containers of ctr and nerdctl, which name a runtime themselves",
)

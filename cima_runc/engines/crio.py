"""CRI-O: a drop-in file in ``/etc/crio/crio.conf.d``, or where its unit's flags say.

A flag goes over what files say. Source: crio.conf.d(5), crio.conf(5), crio(8).
"""

from pathlib import Path

from cima_runc.engines import toml_text
from cima_runc.engines.engine import RUNTIME_NAME, Engine, EngineError, Wish
from cima_runc.engines.unit import command_of, flags_of
from cima_runc.measure.procfs import flag_value

_UNIT = "crio.service"
_MAIN = "etc/crio/crio.conf"
_DIRECTORY = "etc/crio/crio.conf.d"
_NAME = "zz-cima-runc.conf"
_MARK = "# Made by cima configure crio."


def _flags(root: Path) -> tuple[str, ...]:
    return flags_of(command_of(_UNIT, root), "crio")


def _flag(root: Path, long: str, short: str) -> str | None:
    flags = _flags(root)
    value = flag_value(flags, long)
    return value if value is not None else flag_value(flags, short)


def _main(root: Path) -> Path:
    return root / (_flag(root, "config", "c") or _MAIN).lstrip("/")


def _find_file(root: Path) -> Path:
    named = _flag(root, "config-dir", "d")
    if named == "":
        raise EngineError(
            "crio is started with an empty --config-dir, and reads no drop-in files",
            hint=f"take that flag out of {_UNIT}",
        )
    return root / (named or _DIRECTORY).lstrip("/") / _NAME


def config_command(root: Path) -> list[str]:
    """Return the command by which CRI-O prints its settings as it has them."""
    found = {
        "config": _flag(root, "config", "c"),
        "config-dir": _flag(root, "config-dir", "d"),
    }
    given = [word for name, value in found.items() if value for word in (f"--{name}", value)]
    return ["crio", *given, "config"]


def _refuse_flag(root: Path) -> None:
    named = flag_value(_flags(root), "default-runtime")
    if named is not None and named != RUNTIME_NAME:
        raise EngineError(
            f"crio is started with --default-runtime={named}, which goes over its files",
            hint=f"put it there, in {_UNIT}: --default-runtime={RUNTIME_NAME}",
        )


def _add(text: str | None, wish: Wish, root: Path, what: str) -> str:
    import tomlkit

    present = toml_text.parse(text or "", what)
    if wish.file is not None:
        toml_text.refuse_others(text, _MARK, what)
    default = wish.default or (
        toml_text.at(present, ["crio", "runtime", "default_runtime"]) == RUNTIME_NAME
    )
    if default:
        _refuse_flag(root)
    if wish.file is None:
        found = sorted(_find_file(root).parent.glob("*.conf"))
        runtime = ["crio", "runtime"]
        mine = [*runtime, "runtimes", RUNTIME_NAME]
        toml_text.refuse_later(
            [path for path in found if path.name > _NAME],
            [mine, *([[*runtime, "default_runtime"]] if default else [])],
        )
    lines = [_MARK]
    if default:
        lines += ["[crio.runtime]", f'default_runtime = "{RUNTIME_NAME}"', ""]
    lines += [
        f"[crio.runtime.runtimes.{RUNTIME_NAME}]",
        f"runtime_path = {tomlkit.string(wish.runtime).as_string()}",
        'runtime_type = "oci"',
        'runtime_root = "/run/runc"',
        "",
    ]
    return "\n".join(lines)


def _remove(text: str, before: str | None, what: str) -> str | None:
    default = ["crio", "runtime", "default_runtime"]
    if toml_text.at(toml_text.parse(text, what), default) == RUNTIME_NAME:
        text = toml_text.drop(text, default, what)
    text = toml_text.drop(text, ["crio", "runtime", "runtimes", RUNTIME_NAME], what)
    return text if toml_text.holds_something(text, what) else before


def _named(root: Path) -> set[str]:
    found: set[str] = set()
    directory = _find_file(root).parent
    for path in [_main(root), *sorted(directory.glob("*.conf"))]:
        if path.is_file():
            entry = ["crio", "runtime", "runtimes", RUNTIME_NAME, "runtime_path"]
            at = toml_text.at(toml_text.read(path), entry)
            found = {at} if isinstance(at, str) else found
    return found


CRIO = Engine(
    name="crio",
    find_file=_find_file,
    named=_named,
    check=lambda _root, file: (["crio", "--config", str(file), "--config-dir", "", "config"],),
    add=_add,
    remove=_remove,
    apply_hint="systemctl restart crio",
    try_hint=f"a pod with runtimeClassName: {RUNTIME_NAME} (examples/kubernetes)",
)

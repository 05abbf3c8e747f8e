"""CRI-O: a drop-in file in ``/etc/crio/crio.conf.d``. Source: crio.conf.d(5), crio.conf(5)."""

from pathlib import Path

from cima_runc.engines import toml_text
from cima_runc.engines.engine import RUNTIME_NAME, Engine, Wish

_FILE = "etc/crio/crio.conf.d/zz-cima-runc.conf"
_MARK = "# Made by cima configure crio."


def _add(text: str | None, wish: Wish, root: Path, what: str) -> str:
    import tomlkit

    present = toml_text.parse(text or "", what)
    if wish.file is not None:
        toml_text.refuse_others(text, _MARK, what)
    default = wish.default or (
        toml_text.at(present, ["crio", "runtime", "default_runtime"]) == RUNTIME_NAME
    )
    if wish.file is None:
        name = Path(_FILE).name
        found = sorted((root / _FILE).parent.glob("*.conf"))
        runtime = ["crio", "runtime"]
        mine = [*runtime, "runtimes", RUNTIME_NAME]
        toml_text.refuse_later(
            [path for path in found if path.name > name],
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
    directory = root / _FILE.rpartition("/")[0]
    for path in [root / "etc/crio/crio.conf", *sorted(directory.glob("*.conf"))]:
        if path.is_file():
            entry = ["crio", "runtime", "runtimes", RUNTIME_NAME, "runtime_path"]
            at = toml_text.at(toml_text.read(path), entry)
            found = {at} if isinstance(at, str) else found
    return found


CRIO = Engine(
    name="crio",
    find_file=lambda root: root / _FILE,
    named=_named,
    check=lambda _root, file: (["crio", "--config", str(file), "--config-dir", "", "config"],),
    add=_add,
    remove=_remove,
    apply_hint="systemctl restart crio",
    try_hint=f"a pod with runtimeClassName: {RUNTIME_NAME} (examples/kubernetes)",
)

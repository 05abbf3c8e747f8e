"""Docker: ``/etc/docker/daemon.json``, or the file that dockerd's ``--config-file`` names; of the
snap the one in its own directory, which is the only one that it reads.

dockerd does not start where a directive is a flag and in the file too, so the flags of its unit
count. It reads a file with a byte order mark since version 23.
Source: dockerd reference, "Daemon configuration file", "--validate"; cmd/dockerd/daemon.go.
"""

import json
from pathlib import Path
from typing import Any

from cima_runc.base import limits
from cima_runc.base.jsonio import load_object
from cima_runc.engines import json_text
from cima_runc.engines.engine import RUNTIME_NAME, Engine, EngineError, Wish
from cima_runc.engines.unit import command_of, flags_of
from cima_runc.measure.procfs import flag_value, flag_values

_FILE = "etc/docker/daemon.json"
_UNIT = "docker.service"
_OF_SNAP = "var/snap/docker/current/config"
_BOM = "\ufeff"
_RUNC_SHIM = "io.containerd.runc.v2"


def _flags(root: Path) -> tuple[str, ...]:
    return flags_of(command_of(_UNIT, root), "dockerd")


def _find_file(root: Path) -> Path:
    named = flag_value(_flags(root), "config-file")
    if named:
        return root / named.lstrip("/")
    others = (root / _FILE).exists() or command_of(_UNIT, root).argv
    is_snap = not others and (root / _OF_SNAP).is_dir()
    return root / (f"{_OF_SNAP}/daemon.json" if is_snap else _FILE)


def _refuse_flags(wish: Wish, root: Path) -> None:
    """Refuse what dockerd would refuse: the same directive as a flag and in the file."""
    command = command_of(_UNIT, root)
    where = ", ".join(f"/{path.relative_to(root)}" for path in command.files)
    flags = flags_of(command, "dockerd")
    if flag_value(flags, "add-runtime") is not None:
        raise EngineError(
            f"dockerd is started with --add-runtime ({where}): with runtimes in its file too it "
            "does not start",
            hint=f"put it there: --add-runtime={RUNTIME_NAME}={wish.runtime}",
        )
    default = flag_value(flags, "default-runtime")
    if wish.default and default is not None:
        raise EngineError(
            f"dockerd is started with --default-runtime={default} ({where}): with "
            "default-runtime in its file too it does not start",
            hint=f"put it there: --default-runtime={RUNTIME_NAME}, and run cima configure docker "
            "without --set-as-default",
        )


def _add(text: str | None, wish: Wish, root: Path, what: str) -> str:
    _refuse_flags(wish, root)
    if text is not None and text.startswith(_BOM):
        return _BOM + _add(text.removeprefix(_BOM), wish, root, what)
    text = text if text is not None and text.strip() else "{}\n"
    values = _parse(text, what)
    runtimes = values.get("runtimes")
    if runtimes is None:  # not there, or null, which dockerd takes for it
        runtimes = {}
        text = json_text.put(text, ["runtimes"], runtimes)
    if not isinstance(runtimes, dict):
        raise EngineError(f"{what}: runtimes is not an object", hint="mend it by hand")
    if program_of(runtimes.get(RUNTIME_NAME)) != wish.runtime:
        text = json_text.put(text, ["runtimes", RUNTIME_NAME], {"path": wish.runtime})
    if wish.default and values.get("default-runtime") != RUNTIME_NAME:
        text = json_text.put(text, ["default-runtime"], RUNTIME_NAME)
    return text


def _remove(text: str, before: str | None, what: str) -> str | None:
    if text.startswith(_BOM):
        rest = text.removeprefix(_BOM)
        earlier_text = before and before.removeprefix(_BOM)
        without = _remove(rest, earlier_text, what) if rest.strip() else rest
        return None if without is None else _BOM + without
    values = _parse(text, what)
    if values.get("default-runtime") == RUNTIME_NAME:
        had = _parse(before, f"{what}, as it was,") if before and before.strip() else {}
        earlier = had.get("default-runtime")
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


def _parse(text: str, what: str) -> dict[str, Any]:
    return load_object(text.encode("utf-8"), what=what, limit=limits.ENGINE_SETTINGS)


def _named(root: Path) -> set[str]:
    found = set()
    added = flag_values(_flags(root), "add-runtime")
    found |= {
        path for name, _, path in (each.partition("=") for each in added) if name == RUNTIME_NAME
    }
    file = _find_file(root)
    if file.is_file():
        with file.open("rb") as opened:
            text = opened.read(limits.ENGINE_SETTINGS + 1).decode("utf-8", "replace")
        runtimes = _parse(text.removeprefix(_BOM) or "{}", str(file)).get("runtimes")
        entry = runtimes.get(RUNTIME_NAME) if isinstance(runtimes, dict) else None
        path = program_of(entry)
        found |= {path} if path is not None else set()
    return found


def program_of(entry: object) -> str | None:
    """Return the program of one of Docker's runtimes; None where it has none that it calls.

    It is named by ``path``, or as an option of containerd's shim for runc (since Docker 23).
    """
    if not isinstance(entry, dict):
        return None
    options = entry.get("options")
    named = options.get("BinaryName") if isinstance(options, dict) else None
    path = entry.get("path") or (named if entry.get("runtimeType") == _RUNC_SHIM else None)
    return path if isinstance(path, str) else None


def _check(root: Path, file: Path) -> tuple[list[str], ...]:
    flags = [word for word in _flags(root) if not word.startswith("--config-file=")]
    if "--config-file" in flags:
        at = flags.index("--config-file")
        del flags[at : at + 2]
    return (["dockerd", *flags, "--validate", f"--config-file={file}"],)


DOCKER = Engine(
    name="docker",
    find_file=_find_file,
    named=_named,
    check=_check,
    not_covered="BuildKit's RUN steps (docker build, buildx): it calls runc itself, not the "
    "default runtime; DOCKER_BUILDKIT=0 docker build is measured",
    add=_add,
    remove=_remove,
    apply_hint="systemctl reload docker (systemctl restart docker for a new default runtime; snap "
    "restart docker for the snap's)",
    try_hint=f"docker run --runtime {RUNTIME_NAME} IMAGE",
)

"""An engine as it runs: whether it would call us now, and how it makes cgroups.

Its settings say what it does once it has read them. Docker and Podman are asked; containerd and
CRI-O have read their files where these are no younger than the daemon.

Sources: Docker Engine API, "GET /info"; podman-info(1); containerd, docs/cri/config.md
(SystemdCgroup); crio.conf(5) (cgroup_manager).
"""

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from cima_runc.base.errors import CimaError
from cima_runc.base.text import printable
from cima_runc.doctor.finding import UnfitError
from cima_runc.engines import toml_text
from cima_runc.engines.containerd import dump_command, of_others
from cima_runc.engines.crio import config_command
from cima_runc.engines.docker import program_of
from cima_runc.engines.engine import RUNTIME_NAME, Engine, EngineError
from cima_runc.measure.engine import docker_info
from cima_runc.measure.host_services import executable
from cima_runc.measure.outside import in_our_pid_namespace

_SECONDS = 120.0
"""How long an engine may take to answer: a person waits, and a busy host is not an unfit one."""
_SHOWN = 1 << 20


@dataclass(frozen=True)
class Running:
    """What an engine does now."""

    path: str | None
    """The program that it calls for us; None where it does not know us."""
    default: bool
    """Whether containers get us without asking for it."""
    cgroups: str
    """Its driver: ``systemd``, ``cgroupfs``; empty where it does not say."""


def look(engine: Engine, launcher: Path) -> str:
    """Check that an engine's settings name the launcher, and that it has read them.

    Raises:
        UnfitError: it would not call us.
        EngineError, OSError: its settings cannot be read.
    """
    named = engine.named(Path("/"))
    path = next((each for each in sorted(named) if _is(each, launcher)), None)
    if path is None:
        found = f" but {', '.join(map(printable, sorted(named)))}" if named else ""
        hint = f"cima configure {engine.name}"
        raise UnfitError(f"{engine.name} does not name {launcher}{found}", hint=hint)
    running = _ASK[engine.name](engine, path)
    if running is None:
        return f"takes cima-runc to be {path}, once it runs"
    if running.path is None or not _is(running.path, launcher):
        calls = "nothing" if running.path is None else printable(running.path)
        raise UnfitError(
            f"its settings name {path}, but {engine.name} as it runs calls {calls}",
            hint=engine.apply_hint,
        )
    when = "every container" if running.default else f"--runtime={RUNTIME_NAME}"
    if not running.default and engine.name in {"containerd", "crio"}:
        when = "pods that ask for it"
    driver = f"; cgroup driver {printable(running.cgroups)}" if running.cgroups else ""
    return f"calls {path} for {when}{driver}"


def _is(path: str, launcher: Path) -> bool:
    return Path(path).resolve() == launcher


def _docker(_engine: Engine, _path: str) -> Running | None:
    told: dict[str, Any] = {}
    running = list(_daemons(b"dockerd"))
    for process in running:
        with suppress(OSError, CimaError):
            told = told or docker_info(process.pid, _SECONDS)
    if not running:
        return None
    if not told:
        raise UnfitError("dockerd runs and does not answer", hint="systemctl status docker")
    runtimes = told.get("Runtimes")
    entry = runtimes.get(RUNTIME_NAME) if isinstance(runtimes, dict) else None
    return Running(
        path=program_of(entry),
        default=told.get("DefaultRuntime") == RUNTIME_NAME,
        cgroups=f"{told.get('CgroupDriver', '')}, v{told.get('CgroupVersion', '?')}",
    )


def _podman(_engine: Engine, _path: str) -> Running | None:
    """Podman has no daemon: it tells what it would do for root's containers."""
    ours = _podman_info("--runtime", RUNTIME_NAME)
    path = toml_text.at(ours, ["ociRuntime", "path"])
    # Whichever file has the last word: one that came later than ours, or an environment variable.
    usual = toml_text.at(_podman_info(), ["ociRuntime", "name"])
    return Running(
        path=path if isinstance(path, str) and path else None,
        default=usual == RUNTIME_NAME,
        cgroups=f"{ours.get('cgroupManager', '')}, {ours.get('cgroupVersion', '?')}",
    )


def _podman_info(*options: str) -> dict[str, Any]:
    ran = _run("podman", *options, "info", "--format", "json")
    if ran.returncode:
        last = next(iter(reversed(ran.stderr.strip().splitlines())), f"status {ran.returncode}")
        raise UnfitError(f"podman info says: {printable(last[:300])}", hint="podman info")
    try:
        host = json.loads(ran.stdout)["host"]
    except (ValueError, KeyError, TypeError) as error:
        raise UnfitError("podman info does not tell of its runtime", hint="podman info") from error
    return host if isinstance(host, dict) else {}


def _containerd(engine: Engine, path: str) -> Running | None:
    others = of_others(Path("/"))
    if others is None:
        return _by_file(engine.find_file, b"containerd", path, _dumped_settings)
    found = _by_file(lambda _: others.file, b"containerd", path, lambda: _settings_in(others.made))
    if found is not None and found.path is None:
        raise UnfitError(
            f"{printable(str(others.file))} names {path}, but {others.owner} as it runs has not"
            " read it",
            hint=f"restart {others.owner}",
        )
    return found


def _crio(engine: Engine, path: str) -> Running | None:
    return _by_file(engine.find_file, b"crio", path, _crio_settings)


def _by_file(
    find: Callable[[Path], Path],
    program: bytes,
    path: str,
    settings: Callable[[], tuple[bool, str]],
) -> Running | None:
    started = [process.create_time() for process in _daemons(program)]
    if not started:
        return None
    file = find(Path("/"))
    # The daemon's start is told in hundredths of a second.
    if file.exists() and file.stat().st_mtime > min(started) + 0.01:
        return Running(path=None, default=False, cgroups="")
    default, cgroups = settings()
    return Running(path=path, default=default, cgroups=cgroups)


def _dumped_settings() -> tuple[bool, str]:
    ran = _run(*dump_command(Path("/")))
    return _cri_settings({} if ran.returncode else _parsed(ran.stdout, "containerd config dump"))


def _settings_in(file: Path) -> tuple[bool, str]:
    with suppress(OSError), file.open("rb") as opened:
        return _cri_settings(_parsed(opened.read(_SHOWN).decode("utf-8", "replace"), str(file)))
    return False, ""


def _cri_settings(values: dict[str, Any]) -> tuple[bool, str]:
    """Return whether we are CRI's default, and how our handler makes cgroups."""
    for plugin in (values.get("plugins") or {}).values():
        containerd = plugin.get("containerd") if isinstance(plugin, dict) else None
        if not isinstance(containerd, dict) or "runtimes" not in containerd:
            continue
        systemd = toml_text.at(containerd, ["runtimes", RUNTIME_NAME, "options", "SystemdCgroup"])
        default = containerd.get("default_runtime_name") == RUNTIME_NAME
        return default, "systemd" if systemd is True else "cgroupfs"
    return False, ""


def _crio_settings() -> tuple[bool, str]:
    ran = _run(*config_command(Path("/")))
    values = {} if ran.returncode else _parsed(ran.stdout, "crio config")
    runtime = toml_text.at(values, ["crio", "runtime"]) or {}
    return runtime.get("default_runtime") == RUNTIME_NAME, str(runtime.get("cgroup_manager", ""))


def _parsed(text: str, what: str) -> dict[str, Any]:
    try:
        return toml_text.parse(text[:_SHOWN], what)
    except EngineError:
        return {}


_ASK: dict[str, Callable[[Engine, str], Running | None]] = {
    "docker": _docker,
    "podman": _podman,
    "containerd": _containerd,
    "crio": _crio,
}


def _daemons(program: bytes) -> Iterator[psutil.Process]:
    """Yield root's processes of a program, outside of containers."""
    for pid in psutil.pids():
        with suppress(OSError, psutil.Error, CimaError):
            process = psutil.Process(pid)
            named = os.path.basename(executable(pid)) == program
            if named and in_our_pid_namespace(pid) and process.uids().real == 0:
                yield process


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=_SECONDS, check=False, errors="replace"
        )
    except subprocess.TimeoutExpired as error:
        raise UnfitError(
            f"{' '.join(command)} took longer than {_SECONDS:.0f} s", hint=f"{command[0]} --help"
        ) from error

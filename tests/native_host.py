"""cima-runc installed and its agent running on this machine, out of the way of everything else.

:func:`private_mounts` gives this process its own /etc (a copy on write) and its own empty /run, so
that /etc/cima/config.toml can be written and containers of tests meet no others. Control groups
are the machine's all the same, and bear the containers' names: each module needs names of its own.
"""

import ctypes
import json
import os
import shutil
import subprocess
import sys
import time
import venv
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cima_runc
from cima_runc.base import durable
from cima_runc.cli import shapes
from cima_runc.tpm.swtpm import software_tpm

TOP = Path(__file__).resolve().parent.parent
SETTINGS_FILE = Path("/etc/cima/config.toml")
SOCKET = Path("/run/cima/agent.sock")
_CLONE_NEWNS = 0x20000
_READY_SECONDS = 60.0


def is_possible() -> str | None:
    """Return why none of this works here, or None."""
    if os.geteuid() != 0:
        return "takes root"
    for program in ("runc", "swtpm", "busybox"):
        if shutil.which(program) is None:
            return f"takes {program}"
    return None


def private_mounts(directory: Path) -> None:
    """Give this process, and those that it starts, a mount namespace with its own /etc and /run."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), "unshare")
    upper, work = directory / "etc", directory / "etc.work"
    upper.mkdir()
    work.mkdir()
    for command in (
        ["mount", "--make-rprivate", "/"],
        ["mount", "-t", "tmpfs", "-o", "mode=755", "run", "/run"],
        [
            *("mount", "-t", "overlay", "-o", f"lowerdir=/etc,upperdir={upper},workdir={work}"),
            *("etc", "/etc"),
        ],
    ):
        subprocess.run(command, check=True)
    SETTINGS_FILE.parent.mkdir(exist_ok=True)
    # Threads that were there before stay outside, and see nothing that is mounted from here on.
    durable._SYNCERS = ThreadPoolExecutor(max_workers=4)


def installation(directory: Path) -> Path:
    """Return the prefix that cima-runc is installed in; out of a checkout it is installed first."""
    package = Path(cima_runc.__file__).resolve()
    if package.is_relative_to(Path(sys.prefix).resolve()):
        return Path(sys.prefix)
    prefix = directory / "prefix"
    venv.create(prefix, symlinks=True)
    for command in (
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(directory / "dist")],
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"),
            *("--disable-pip-version-check", "--prefix", str(prefix), "--ignore-installed"),
        ],
    ):
        wheels = [str(wheel) for wheel in (directory / "dist").glob("*.whl")]
        subprocess.run([*command, *wheels], cwd=TOP, check=True, stdout=subprocess.DEVNULL)
    libraries = next(path for path in sys.path if path.endswith("site-packages"))
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    (prefix / "lib" / version / "site-packages" / "libraries.pth").write_text(libraries + "\n")
    return prefix


@dataclass(frozen=True)
class Agent:
    """A running agent."""

    pid: int
    log: Path


@contextmanager
def agent(prefix: Path, directory: Path, more_settings: str = "") -> Iterator[Agent]:
    """Run the agent with a software TPM, and whatever else of this kernel it can use."""
    with software_tpm() as tcti:
        SETTINGS_FILE.write_text(
            f'runtimes = ["runc"]\nstate_dir = "{directory}/state"\n{more_settings}\n'
            f'[tpm]\ntcti = "{tcti}"\n[ima]\nrequired = false\n[sensor]\nrequired = false\n'
        )
        log = directory / "agent.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [prefix / "bin/python3", "-m", "cima_runc.agent.main"], stderr=output, cwd="/"
            )
        try:
            deadline = time.monotonic() + _READY_SECONDS
            while "ready on" not in log.read_text():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"the agent did not start: {log.read_text()}")
                time.sleep(0.05)
            yield Agent(process.pid, log)
        finally:
            process.terminate()
            process.wait(30)


@dataclass(frozen=True)
class Host:
    """What the tests run against."""

    prefix: Path
    directory: Path
    """For whatever a test needs; nothing of it outlives the tests."""
    agent: Agent

    @property
    def cima_runc(self) -> str:
        return str(self.prefix / "bin/cima-runc")

    @property
    def hooks(self) -> Path:
        return self.prefix / "libexec/cima/hooks"


def make_bundle(directory: Path, *args: str, **process: Any) -> Path:
    """Make a bundle of busybox that runs ``args``; ``process`` are more keys of its process."""
    binaries = directory / "rootfs/bin"
    binaries.mkdir(parents=True)
    shutil.copy(str(shutil.which("busybox")), binaries / "busybox")
    for name in ("sh", "sleep", "cat", "echo", "true", "false", "grep", "id", "env", "pwd", "kill"):
        (binaries / name).symlink_to("busybox")
    for name in ("proc", "dev", "sys", "tmp", "etc"):
        (directory / "rootfs" / name).mkdir()
    subprocess.run(["runc", "spec", "--bundle", str(directory)], check=True)
    config = json.loads((directory / "config.json").read_text())
    config["process"] |= {"terminal": False, "args": list(args), **process}
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def ask(prefix: Path, *command: str) -> str:
    """Run ``cima COMMAND --json`` of the installation and return what it prints."""
    done = subprocess.run(
        [prefix / "bin/python3", "-m", "cima_runc.cli.main", *command, "--json"],
        check=True,
        capture_output=True,
        text=True,
    )
    shapes.check(command, done.stdout)
    return done.stdout


def read(path: str) -> str:
    """Return what a file holds, or nothing where there is none."""
    return Path(path).read_text() if Path(path).exists() else ""

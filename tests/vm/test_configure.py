"""`cima configure` where the engines themselves read what it wrote, and start with it."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cima_runc.engines.change import Changes
from cima_runc.engines.containerd import CONTAINERD
from cima_runc.engines.docker import DOCKER
from cima_runc.engines.engine import Engine, Wish
from cima_runc.engines.podman import PODMAN
from tests.support import engine_files
from tests.vm import guest
from tests.vm.guest import IMAGE

pytestmark = pytest.mark.debian("13")

RUNTIME = "/opt/cima/bin/cima-runc"
DIRECTORIES = {
    "docker": "/etc/docker",
    "containerd": "/etc/containerd",
    "podman": "/etc/containers",
}


@contextmanager
def files(engine: Engine, wanted: dict[str, str]) -> Iterator[None]:
    """The engine with these settings files and no others."""
    directory = Path(DIRECTORIES[engine.name])
    kept = directory.with_suffix(".kept")
    shutil.move(directory, kept)
    try:
        if engine is PODMAN:
            shutil.copytree(kept, directory)
            for path in [directory / "containers.conf", *directory.glob("containers.conf.d/*")]:
                path.unlink(missing_ok=True)
        for name, text in wanted.items():
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text.encode())
        yield
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        shutil.move(kept, directory)


@contextmanager
def configured(engine: Engine, wanted: dict[str, str], tmp_path: Path) -> Iterator[None]:
    """These files with cima-runc as the default runtime; without it they are what they were."""
    changes = Changes(Path("/"), tmp_path / "records")
    with files(engine, wanted):
        before = contents(engine)
        changes.make(engine, changes.adding(engine, Wish(RUNTIME, True)))
        try:
            yield
        finally:
            changes.make(engine, changes.removing(engine))
        made_by_engine = {"key.json"}
        after = {name: raw for name, raw in contents(engine).items() if name not in made_by_engine}
        assert after == before


def contents(engine: Engine) -> dict[str, bytes]:
    directory = Path(DIRECTORIES[engine.name])
    found = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in found}


def numbered(
    cases: list[dict[str, str]], wanted: Callable[[str], bool] = lambda _: True, short: int = 99
) -> list[object]:
    """The wanted cases by their number; those from ``short`` on run with --everything only."""
    return [
        pytest.param(each, id=str(number), marks=[pytest.mark.debian()] if number >= short else [])
        for number, each in enumerate(cases)
        if wanted("".join(each.values()))
    ]


def runs_measured(*command: str) -> None:
    before = len(guest.ps())
    done = guest.run(*command, "--rm", "--network=none", IMAGE, "/bin/echo", "it runs")
    assert (done.code, done.out) == (0, "it runs\n"), done.err
    assert len(guest.ps()) == before + 1


def test_the_command_itself() -> None:
    """From the shell: shown, done, done again, undone."""
    with files(DOCKER, {"daemon.json": '{"debug":  false}'}):
        path = Path("/etc/docker/daemon.json")
        original = path.read_bytes()
        command = ["cima", "configure", "docker", "--set-as-default"]
        assert "cima-runc" in guest.ok(*command, "--dry-run")
        assert path.read_bytes() == original
        done = guest.run(*command)
        assert done.code == 0 and "systemctl restart docker" in done.err
        made = path.read_bytes()
        assert json.loads(made)["default-runtime"] == "cima-runc"
        assert "already" in guest.run(*command).err
        assert path.read_bytes() == made
        guest.ok("cima", "configure", "docker", "--remove")
        assert path.read_bytes() == original


# Docker 20.10 has no --validate.
@pytest.mark.skipif(
    "--validate" not in guest.run("dockerd", "--help").out, reason="takes Docker 23"
)
@pytest.mark.parametrize("wanted", numbered(engine_files.DOCKER))
def test_docker_accepts(wanted: dict[str, str], tmp_path: Path) -> None:
    with configured(DOCKER, wanted, tmp_path):
        done = guest.run("dockerd", "--validate", "--config-file=/etc/docker/daemon.json")
    assert done.code == 0, done.err


def restarted_after(unit: str) -> Iterator[None]:
    yield
    guest.restart(unit)


@pytest.fixture(scope="module")
def docker_as_before() -> Iterator[None]:
    yield from restarted_after("docker")


@pytest.fixture(scope="module")
def containerd_as_before() -> Iterator[None]:
    yield from restarted_after("containerd")


def can_run_here(text: str) -> bool:
    """Its unit names hosts itself, and images are kept apart for other places and maps of ids."""
    return not any(key in text for key in ("hosts", "data-root", "userns-remap"))


@pytest.mark.parametrize("wanted", numbered(engine_files.DOCKER, can_run_here, short=3))
def test_docker_starts(
    wanted: dict[str, str], tmp_path: Path, image: str, docker_as_before: None
) -> None:
    with configured(DOCKER, wanted, tmp_path):
        guest.restart("docker")
        runs_measured("docker", "run")


def of_version_2(text: str) -> bool:
    return "version = 3" not in text


# Debian has no containerd 2, which alone reads version 3.
@pytest.mark.parametrize("wanted", numbered(engine_files.CONTAINERD, of_version_2))
def test_containerd_accepts(wanted: dict[str, str], tmp_path: Path) -> None:
    with configured(CONTAINERD, wanted, tmp_path):
        dumped = guest.ok("containerd", "config", "dump")
    assert f'BinaryName = "{RUNTIME}"' in dumped
    assert 'default_runtime_name = "cima-runc"' in dumped


@pytest.mark.parametrize("wanted", numbered(engine_files.CONTAINERD, of_version_2, short=3))
def test_containerd_starts(
    wanted: dict[str, str], tmp_path: Path, containerd_as_before: None
) -> None:
    with configured(CONTAINERD, wanted, tmp_path):
        guest.restart("containerd")
        plugins = guest.ok("ctr", "plugin", "ls").splitlines()
        assert ["cri", "ok"] in [line.split()[1::2] for line in plugins]


@pytest.mark.parametrize("wanted", numbered(engine_files.PODMAN))
def test_podman_accepts(wanted: dict[str, str], tmp_path: Path) -> None:
    with configured(PODMAN, wanted, tmp_path):
        name = guest.ok("podman", "info", "--format", "{{.Host.OCIRuntime.Name}}")
    assert name == "cima-runc\n"


@pytest.mark.parametrize("wanted", numbered(engine_files.PODMAN, short=3))
def test_podman_runs(wanted: dict[str, str], tmp_path: Path, image: str) -> None:
    with configured(PODMAN, wanted, tmp_path):
        runs_measured("podman", "run")
        # What the runtime says reaches the user, which is what runtime_supports_json is for.
        failed = guest.run("podman", "run", "--rm", "--network=none", IMAGE, "/no/such")
    assert "no such file or directory" in failed.err.lower()

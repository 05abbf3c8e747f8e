"""What engines say of themselves; tests/vm asks real ones."""

import json
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cima_runc.cli.configure import ENGINES
from cima_runc.doctor import engines
from cima_runc.doctor.finding import UnfitError
from cima_runc.engines.containerd import OfOthers
from cima_runc.engines.engine import Engine

LAUNCHER = Path("/usr/lib/cima-runc/bin/cima-runc")


def engine(name: str, named: set[str], file: Path = Path("/nowhere")) -> Engine:
    return Engine(
        name=name,
        find_file=lambda _: file,
        named=lambda _: named,
        add=lambda *_: "",
        remove=lambda *_: None,
        apply_hint="systemctl restart it",
        try_hint="",
    )


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What runs, what dockerd says, what commands print."""
    made = SimpleNamespace(started={}, info={}, printed={})

    def daemons(program: bytes) -> list[Any]:
        times = made.started.get(program.decode(), [])
        return [SimpleNamespace(pid=1, create_time=lambda at=at: at) for at in times]

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, *made.printed[command])

    monkeypatch.setattr(engines, "_daemons", daemons)

    def docker_info(_: int, seconds: float = 2.0) -> dict[str, Any]:
        return made.info if seconds > 60 else {}  # a host that is busy answers in a minute

    monkeypatch.setattr(engines, "docker_info", docker_info)
    monkeypatch.setattr(engines, "_run", run)
    return made


def test_one_that_does_not_name_us() -> None:
    for named, told in ((set(), "does not name"), ({"/usr/bin/runc"}, "but /usr/bin/runc")):
        with pytest.raises(UnfitError, match=told) as raised:
            engines.look(engine("docker", named), LAUNCHER)
        assert raised.value.hint == "cima configure docker"


@pytest.mark.parametrize("name", ["docker", "containerd", "crio"])
def test_one_that_does_not_run_will(name: str, host: SimpleNamespace) -> None:
    assert "once it runs" in engines.look(engine(name, {str(LAUNCHER)}), LAUNCHER)


def docker_says(host: SimpleNamespace, **told: Any) -> str:
    host.started["dockerd"] = [1.0]
    host.info = {"CgroupDriver": "systemd", "CgroupVersion": "2", **told}
    return engines.look(engine("docker", {str(LAUNCHER)}), LAUNCHER)


def test_docker_as_it_runs(host: SimpleNamespace) -> None:
    ours = {"runc": {"path": "runc"}, "cima-runc": {"path": str(LAUNCHER)}}
    told = docker_says(host, Runtimes=ours, DefaultRuntime="runc")
    assert told == f"calls {LAUNCHER} for --runtime=cima-runc; cgroup driver systemd, v2"
    assert "every container" in docker_says(host, Runtimes=ours, DefaultRuntime="cima-runc")


@pytest.mark.parametrize(
    ("runtimes", "calls"),
    [
        ({"runc": {"path": "runc"}}, "nothing"),
        ({"cima-runc": {"path": "/opt/old/cima-runc"}}, "/opt/old/cima-runc"),
        ({"cima-runc": {"runtimeType": "io.containerd.x"}}, "nothing"),
        (None, "nothing"),
    ],
)
def test_docker_that_has_not_read_its_file(
    runtimes: Any, calls: str, host: SimpleNamespace
) -> None:
    with pytest.raises(UnfitError, match=f"as it runs calls {calls}") as raised:
        docker_says(host, Runtimes=runtimes)
    assert raised.value.hint == "systemctl restart it"


def test_docker_that_does_not_answer(host: SimpleNamespace) -> None:
    host.started["dockerd"] = [1.0]
    with pytest.raises(UnfitError, match="does not answer"):
        engines.look(engine("docker", {str(LAUNCHER)}), LAUNCHER)


@pytest.mark.parametrize("name", ["containerd", "crio"])
def test_a_daemon_older_than_its_file(name: str, host: SimpleNamespace, tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text("")
    host.started[name] = [time.time() - 3600]
    with pytest.raises(UnfitError, match="as it runs calls nothing"):
        engines.look(engine(name, {str(LAUNCHER)}, file), LAUNCHER)


def test_containerd(host: SimpleNamespace, tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text("")
    host.started["containerd"] = [time.time() + 5]
    dump = ("containerd", "config", "dump")
    runtime = 'plugins."io.containerd.grpc.v1.cri".containerd.runtimes.cima-runc'
    host.printed[dump] = (0, f"[{runtime}.options]\nSystemdCgroup = true\n", "")
    told = engines.look(engine("containerd", {str(LAUNCHER)}, file), LAUNCHER)
    assert told == f"calls {LAUNCHER} for pods that ask for it; cgroup driver systemd"
    host.printed[dump] = (0, f"[{runtime}.options]\nBinaryName = 'x'\n", "")
    assert "cgroupfs" in engines.look(engine("containerd", {str(LAUNCHER)}, file), LAUNCHER)
    for printed in ((1, "", "no such command"), (0, "no TOML [", "")):
        host.printed[dump] = printed
        assert "calls" in engines.look(engine("containerd", {str(LAUNCHER)}, file), LAUNCHER)


def test_a_containerd_that_others_start(
    host: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """k3s and its kin: what they have made is read, and it is they who must start anew."""
    others = OfOthers("k3s", tmp_path / "config-v3.toml.tmpl", tmp_path / "config.toml")
    monkeypatch.setattr(engines, "of_others", lambda _: others)
    containerd = engine("containerd", {str(LAUNCHER)})
    assert "once it runs" in engines.look(containerd, LAUNCHER)
    host.started["containerd"] = [time.time() + 5]
    others.file.write_text('{{ template "base" . }}')
    assert engines.look(containerd, LAUNCHER) == f"calls {LAUNCHER} for pods that ask for it"
    runtime = 'plugins."io.containerd.cri.v1.runtime".containerd.runtimes.cima-runc'
    others.made.write_text(f"[{runtime}.options]\nSystemdCgroup = true\n")
    told = engines.look(containerd, LAUNCHER)
    assert told == f"calls {LAUNCHER} for pods that ask for it; cgroup driver systemd"
    host.started["containerd"] = [time.time() - 3600]
    with pytest.raises(UnfitError, match="k3s as it runs has not read it") as raised:
        engines.look(containerd, LAUNCHER)
    assert raised.value.hint == "restart k3s"


INFO = ("podman", "--runtime", "cima-runc", "info", "--format", "json")
USUAL = ("podman", "info", "--format", "json")


def podman_says(host: SimpleNamespace, path: str | None, usual: str = "crun") -> str:
    runtime = {"name": "cima-runc", "path": path}
    told = {"ociRuntime": runtime, "cgroupManager": "systemd", "cgroupVersion": "v2"}
    host.printed[INFO] = (0, json.dumps({"host": told}), "")
    host.printed[USUAL] = (0, json.dumps({"host": {"ociRuntime": {"name": usual}}}), "")
    return engines.look(engine("podman", {str(LAUNCHER)}), LAUNCHER)


def test_podman(host: SimpleNamespace) -> None:
    """By its own word: a file that comes after ours may have taken the default back."""
    told = podman_says(host, str(LAUNCHER))
    assert told == f"calls {LAUNCHER} for --runtime=cima-runc; cgroup driver systemd, v2"
    assert "every container" in podman_says(host, str(LAUNCHER), "cima-runc")
    with pytest.raises(UnfitError, match="as it runs calls nothing"):
        podman_says(host, None)


def test_podman_that_refuses(host: SimpleNamespace) -> None:
    host.printed[USUAL] = (0, '{"host": {}}', "")
    host.printed[INFO] = (125, "", "Error: default OCI runtime \x1b not found\n")
    with pytest.raises(UnfitError, match="OCI runtime") as raised:
        engines.look(engine("podman", {str(LAUNCHER)}), LAUNCHER)
    assert "\x1b" not in raised.value.what
    for printed in ("", "[]", '{"host": 3}', '{"host": {"ociRuntime": "crun"}}'):
        host.printed[INFO] = (0, printed, "")
        with pytest.raises(UnfitError):
            engines.look(engine("podman", {str(LAUNCHER)}), LAUNCHER)


def test_each_engine_that_can_be_configured_is_asked() -> None:
    assert ENGINES.keys() == engines._ASK.keys()

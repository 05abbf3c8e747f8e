import errno
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Never

import pytest

from cima_runc.agent import bundles
from cima_runc.agent.bundles import SUFFIX, BundleServer
from cima_runc.runtime import oci_hooks


@pytest.fixture
def hooks(tmp_path: Path) -> str:
    directory = tmp_path / "hooks"
    directory.mkdir()
    for name in oci_hooks.NAMES:
        (directory / name).touch(0o755)
    return str(directory)


@pytest.fixture
def path(tmp_path: Path, hooks: str) -> Iterator[str]:
    server = BundleServer(str(tmp_path / "s"), hooks)
    server.start()
    yield str(tmp_path / "s") + SUFFIX
    server.stop()


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    directory = tmp_path / "bundle"
    directory.mkdir()
    (directory / "config.json").write_text('{"ociVersion": "1.0.2", "big": 18446744073709551615}')
    return directory


def ask(path: str, hooks: bytes, directory: Path | None) -> bytes:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as channel:
        channel.settimeout(10)
        channel.connect(path)
        handles = [] if directory is None else [os.open(directory, os.O_RDONLY)]
        socket.send_fds(channel, [hooks], handles)
        for handle in handles:
            os.close(handle)
        return channel.recv(128)


def test_a_call_that_fails_once_does_not_end_the_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the agent had no descriptor left for a moment."""
    monkeypatch.setattr(bundles, "_PAUSE_SECONDS", 0)
    fails = iter([errno.EMFILE, errno.ECONNABORTED, errno.EINVAL])

    class Listener:
        def accept(self) -> Never:
            raise OSError(next(fails), "")

    BundleServer(str(tmp_path / "s"), "/hooks")._serve(Listener())  # type: ignore[arg-type]
    assert list(fails) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="takes root")
def test_prepares_and_names_the_file(path: str, hooks: str, bundle: Path) -> None:
    answer = ask(path, hooks.encode(), bundle)
    status = (bundle / "config.json").stat()
    assert answer == f"ok {status.st_dev} {status.st_ino}".encode()
    config = json.loads((bundle / "config.json").read_text())
    assert config["big"] == 18446744073709551615
    assert sorted(config["hooks"]) == ["createRuntime", "poststart", "poststop"]
    assert config["hooks"]["createRuntime"][0]["path"] == f"{hooks}/prestart"
    assert os.listdir(bundle) == ["config.json"]
    assert ask(path, hooks.encode(), bundle) == answer  # nothing to change, nothing changed


@pytest.mark.parametrize(
    "damage", ["other hooks", "no directory", "a file", "none", "link", "json", "no hook"]
)
def test_declines(path: str, hooks: str, bundle: Path, damage: str) -> None:
    file = bundle / "config.json"
    directory = bundle
    match damage:
        case "other hooks":
            hooks = "/elsewhere"
        case "no hook":
            Path(hooks, "poststop").unlink()
        case "a file":
            directory = file
        case "none":
            file.unlink()
        case "link":
            file.rename(bundle / "real")
            file.symlink_to("real")
        case "json":
            file.write_text("{")
    before = {p.name: p.read_bytes() for p in bundle.iterdir()}
    assert ask(path, hooks.encode(), None if damage == "no directory" else directory) == b"no"
    assert {p.name: p.read_bytes() for p in bundle.iterdir()} == before


def test_no_descriptor_is_kept(path: str, hooks: str, bundle: Path) -> None:
    ask(path, hooks.encode(), bundle)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        ask(path, b"/elsewhere", bundle)
    # The server lets go of the last one a little after it has answered.
    deadline = time.monotonic() + 60
    while len(os.listdir("/proc/self/fd")) > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(os.listdir("/proc/self/fd")) <= before


def test_a_path_that_is_too_long_does_not_stop_the_agent(tmp_path: Path) -> None:
    server = BundleServer(str(tmp_path / ("s" * 108)), "/no/such")
    server.start()
    server.stop()


@pytest.mark.skipif(os.geteuid() != 0, reason="takes root")
def test_a_mistake_costs_one_answer(
    path: str, hooks: str, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its thread the socket would stay, and every launcher wait for nothing."""
    with monkeypatch.context() as mistaken:
        mistaken.setattr(bundles, "inject_hooks", lambda *_, **__: 1 // 0)
        assert ask(path, hooks.encode(), bundle) == b"no"
    assert ask(path, hooks.encode(), bundle).startswith(b"ok ")

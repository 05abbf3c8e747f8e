import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cima_runc.runtime.shim_settings import (
    SettingsError,
    ShimSettings,
    identity_of,
    read_settings_file,
    shim_settings_of,
    write_companion,
)

OLD_ENOUGH = 2.1


@pytest.fixture
def settings_file(tmp_path: Path) -> Path:
    path = tmp_path / "config.toml"
    path.write_text('runtimes = ["runc"]\n')
    return path


def write(path: Path, companion: Path, settings: ShimSettings) -> bool:
    return write_companion(
        identity_of(str(path)), settings, path=str(companion), settings_file=str(path)
    )


@pytest.mark.parametrize(
    "values",
    [
        {"runtimes": []},
        {"runtimes": "runc"},
        {"runtimes": ["a/b"]},
        {"runtimes": [""]},
        {"hook_stage": "startContainer"},
        {"hook_timeout_seconds": 0},
        {"hook_timeout_seconds": True},
        {"on_agent_unavailable": "maybe"},
        {"socket": "relative"},
        {"state_dir": "/a\0b"},
    ],
)
def test_what_is_not_allowed_is_said(values: dict[str, object]) -> None:
    with pytest.raises(SettingsError, match=next(iter(values))):
        shim_settings_of(values)


@pytest.mark.parametrize("raw", [b"runtimes = ", b"\xff", b"a = 1\na = 2", b"#" * (1 << 20) + b"#"])
def test_a_broken_file_is_an_error(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "c").write_bytes(raw)
    with pytest.raises(SettingsError):
        read_settings_file(str(tmp_path / "c"))


def test_no_file_means_no_settings(tmp_path: Path) -> None:
    assert read_settings_file(str(tmp_path / "none")) == {}
    assert identity_of(str(tmp_path / "none")) is None


def test_identity_tells_states_apart(settings_file: Path) -> None:
    first = identity_of(str(settings_file))
    status = settings_file.stat()
    time.sleep(0.02)
    settings_file.write_text('runtimes = ["crun"]\n')
    os.utime(settings_file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert identity_of(str(settings_file)) != first


@pytest.mark.skipif(os.geteuid() != 0, reason="takes root")
def test_root_of_a_user_namespace_is_a_user() -> None:
    code = "from cima_runc.runtime import shim_settings as s;"
    code += "print(s.socket_of_caller(s.ShimSettings()))"
    command = [sys.executable, "-c", code]
    if os.geteuid() == 0:
        assert subprocess.check_output(command, text=True) == "/run/cima/agent.sock\n"
    command = ["unshare", "--user", "--map-root-user", *command]
    assert subprocess.check_output(command, text=True) == "/run/cima/agent.sock.users\n"


def test_companion(settings_file: Path, tmp_path: Path) -> None:
    companion = tmp_path / "run/launcher"
    settings = ShimSettings(runtimes=("runc", "/opt/crun"))
    assert not write(settings_file, companion, settings), "the file has just changed"
    time.sleep(OLD_ENOUGH)
    identity = identity_of(str(settings_file))
    assert write(settings_file, companion, settings)
    assert companion.read_text() == (
        f"cima-runc-launcher-1 {identity}\n/run/cima/agent.sock\nrunc\n/opt/crun\n"
    )
    assert companion.stat().st_mode & 0o777 == 0o644
    assert [path.name for path in companion.parent.iterdir()] == ["launcher"]

    before = companion.read_bytes()
    assert not write(settings_file, companion, ShimSettings(runtimes=("a\nb",)))
    assert not write(settings_file, companion, ShimSettings(runtimes=("runc",) * 17))
    assert not write(settings_file, companion, ShimSettings(socket="/" + "s" * 4096))
    assert not write_companion(None, settings, path=str(companion))
    assert companion.read_bytes() == before

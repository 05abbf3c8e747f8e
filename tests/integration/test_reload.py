"""Settings that are read again by a running agent: by ``cima reload``, and by SIGHUP."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from native_host import SETTINGS_FILE, SOCKET, Host, ask

from cima_runc.runtime.agent_socket import USERS_SUFFIX

USERS = Path(f"{SOCKET}{USERS_SUFFIX}")


def cima(host: Host, *command: str) -> subprocess.CompletedProcess[str]:
    python = [host.prefix / "bin/python3", "-m", "cima_runc.cli.main"]
    return subprocess.run([*python, *command], capture_output=True, text=True, check=False)


def reloaded(host: Host) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(ask(host.prefix, "reload"))
    return found


def quota(host: Host) -> int:
    return int(json.loads(ask(host.prefix, "status"))["storage"]["quota_mib"])


@pytest.fixture
def settings(host: Host) -> Iterator[str]:
    before = SETTINGS_FILE.read_text()
    yield before
    SETTINGS_FILE.write_text(before)
    reloaded(host)
    assert USERS.exists()


def test_what_can_be_is_in_force_at_once(host: Host, settings: str) -> None:
    assert reloaded(host) == {"in_force": [], "take_a_restart": []}
    changed = settings.replace('group = "users"', "").replace("[tpm]\n", "[tpm]\npcr = 13\n")
    SETTINGS_FILE.write_text(changed + "[storage]\nquota_mib = 77\n")
    shown = cima(host, "reload")
    assert shown.returncode == 0
    assert shown.stdout.splitlines() == ["storage.quota_mib is in force", "users.group is in force"]
    assert "tpm.pcr takes a restart: systemctl restart cima-agent" in shown.stderr
    assert quota(host) == 77
    assert not USERS.exists()
    assert json.loads(ask(host.prefix, "status"))["pcr"] == 12


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ("[storage]\nquota_mib = 0\n", "storage.quota_mib"),
        ("[storage\n", "is not TOML"),
        ("[storage]\nquota_mib = 78\n[users]\ngroup = 'no-such-group'\n", "no such group"),
    ],
)
def test_a_wrong_file_changes_nothing_and_says_why(
    host: Host, settings: str, wrong: str, why: str
) -> None:
    before = quota(host)
    SETTINGS_FILE.write_text(settings.replace('[users]\ngroup = "users"', "") + wrong)
    # As somebody asks whose own settings are good.
    good = host.directory / "good.toml"
    good.write_text(settings)
    refused = cima(host, "--config", str(good), "reload")
    assert refused.returncode == 2
    assert why in refused.stderr
    SETTINGS_FILE.write_text(settings)
    assert quota(host) == before
    assert USERS.exists()


def test_sighup_does_the_same(host: Host, settings: str) -> None:
    SETTINGS_FILE.write_text(settings + "[storage]\nquota_mib = 79\n")
    os.kill(host.agent.pid, signal.SIGHUP)
    deadline = time.monotonic() + 120
    while quota(host) != 79 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert quota(host) == 79
    SETTINGS_FILE.write_text(settings + "[storage]\nquota_mib = -1\n")
    os.kill(host.agent.pid, signal.SIGHUP)
    while "settings are as before" not in host.agent.log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    SETTINGS_FILE.write_text(settings)
    assert quota(host) == 79

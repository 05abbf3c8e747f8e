"""The hook client in C, alone: what it tells the agent."""

import socket
import subprocess
import threading
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
STATE = b'{"id":"box","bundle":"/b"}'


@pytest.fixture(scope="module")
def hook(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("hook") / "prestart"
    command = ["gcc", "-Wall", "-Wextra", "-Werror", '-DSTAGE="prestart"', "-o", made]
    subprocess.run([*command, ROOT / "hooks/hook.c"], check=True)
    return made


def ask(hook: Path, directory: Path, **told: str) -> tuple[int, bytes]:
    """Run the hook before an agent that agrees to all; return its status and what it asked."""
    asked = b""
    with socket.socket(socket.AF_UNIX) as agent:
        agent.bind(str(directory / "s"))
        agent.listen()
        agent.settimeout(10)

        def answer() -> None:
            nonlocal asked
            channel, _ = agent.accept()
            asked = channel.recv(1 << 16)
            channel.sendall(b"ok 0\n")
            channel.close()

        answering = threading.Thread(target=answer, daemon=True)
        answering.start()
        environment = {"CIMA_SOCKET": str(directory / "s"), **told}
        status = subprocess.run(
            [hook], input=STATE, env=environment, stderr=subprocess.DEVNULL, check=False
        ).returncode
        if status == 0:
            answering.join()
    return status, asked


def test_which_configuration_it_is_comes_before_the_state(hook: Path, tmp_path: Path) -> None:
    told = {"CIMA_BUNDLE": "/b", "CIMA_CONFIG": "/b/config.json", "CIMA_CONFIG_SHA256": "0" * 64}
    status, asked = ask(hook, tmp_path, **told)
    assert status == 0
    assert asked.endswith(b"\n/b\0/b/config.json\0" + b"0" * 64 + b"\0" + STATE)


@pytest.mark.parametrize("name", ["CIMA_BUNDLE", "CIMA_CONFIG"])
def test_a_path_for_which_there_is_no_room_is_not_left_out(
    hook: Path, tmp_path: Path, name: str
) -> None:
    """Else the agent would not compare the configuration with the one that was read.

    Python, which has room, is not there.
    """
    told = {"CIMA_BUNDLE": "/b", "CIMA_CONFIG": "/b/config.json", "CIMA_CONFIG_SHA256": "0" * 64}
    status, asked = ask(hook, tmp_path, **(told | {name: "/" + "x" * 4096}))
    assert status != 0 and asked == b""

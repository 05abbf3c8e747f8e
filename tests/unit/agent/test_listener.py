import os
import socket
import stat
from pathlib import Path

import pytest

from cima_runc.agent.listener import Listener
from cima_runc.base.errors import CimaError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run/agent.sock"


def test_the_socket_is_root_s_and_goes_with_the_agent(path: Path) -> None:
    listener = Listener(str(path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) & 0o022 == 0
    listener.remove()
    assert not path.exists()
    listener.remove()


def test_a_socket_that_nobody_listens_on_is_replaced(path: Path) -> None:
    Listener(str(path)).channel.close()
    assert path.exists()
    Listener(str(path))


@pytest.mark.parametrize("left", ["file", "link"])
def test_whatever_else_is_there_is_replaced_and_not_followed(path: Path, left: str) -> None:
    path.parent.mkdir()
    elsewhere = path.parent / "elsewhere"
    elsewhere.write_text("stays")
    if left == "file":
        path.write_text("")
    else:
        path.symlink_to(elsewhere)
    Listener(str(path))
    assert path.is_socket()
    assert elsewhere.read_text() == "stays"


def test_an_agent_that_listens_is_left_alone(path: Path) -> None:
    first = Listener(str(path))
    first.channel.listen(1)
    before = path.stat().st_ino
    with pytest.raises(CimaError, match=r"agent\.sock already; stop it first"):
        Listener(str(path))
    assert path.stat().st_ino == before


def test_a_socket_that_was_put_in_its_place_stays(path: Path) -> None:
    first = Listener(str(path))
    path.rename(path.with_name("moved"))
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        first.remove()
        assert path.exists()


def test_a_directory_that_others_may_change_is_refused(path: Path) -> None:
    path.parent.mkdir()
    path.parent.chmod(0o777)
    with pytest.raises(CimaError, match="only root may change"):
        Listener(str(path))
    path.parent.rmdir()
    path.parent.symlink_to("/tmp")
    with pytest.raises(CimaError, match="only root may change"):
        Listener(str(path))


def test_systemd_s_socket_is_taken_and_left(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as passed:
        passed.bind(str(path))
        monkeypatch.setattr("cima_runc.agent.listener._FIRST_HANDLE", os.dup(passed.fileno()))
        monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
        monkeypatch.setenv("LISTEN_FDS", "1")
        listener = Listener(str(path))
        assert listener.channel.getsockname() == str(path)
        listener.remove()
        assert path.exists()
        monkeypatch.setenv("LISTEN_FDS", "2")
        with pytest.raises(CimaError, match="more than one socket"):
            Listener(str(path))

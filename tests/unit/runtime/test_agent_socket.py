import socket
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cima_runc.base.errors import CimaError
from cima_runc.runtime.agent_socket import (
    AgentRefusedError,
    AgentUnavailableError,
    call_agent,
    frame,
    parse_header,
)


@given(st.sampled_from(["ok", "error", "prestart"]), st.binary(max_size=50))
def test_headers_come_back(word: str, body: bytes) -> None:
    line, _, rest = frame(word, body).partition(b"\n")
    assert parse_header(line + b"\n", limit=50) == (word, len(body))
    assert rest == body


@given(st.binary(max_size=80))
def test_any_line_is_a_header_or_an_error(line: bytes) -> None:
    try:
        word, length = parse_header(line, limit=100)
    except CimaError:
        return
    assert word.isalpha() and 0 <= length <= 100


def answering(path: Path, answer: bytes) -> threading.Thread:
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen(1)

    def serve() -> None:
        channel, _ = server.accept()
        with channel:
            channel.recv(1000)
            channel.sendall(answer)
        server.close()

    thread = threading.Thread(target=serve)
    thread.start()
    return thread


@pytest.mark.parametrize("answer", [b"", b"ok", b"ok 10\nshort", b"ok 5\n"])
def test_an_agent_that_dies_is_unavailable(tmp_path: Path, answer: bytes) -> None:
    thread = answering(tmp_path / "s", answer)
    with pytest.raises(CimaError):
        call_agent(str(tmp_path / "s"), "ps", b"", timeout=5)
    thread.join()


def test_no_agent_is_unavailable_and_how_to_start_it_is_said(tmp_path: Path) -> None:
    with pytest.raises(AgentUnavailableError, match="systemctl start cima-agent"):
        call_agent(str(tmp_path / "none"), "ps", b"", timeout=5)


def test_answers_and_refusals(tmp_path: Path) -> None:
    thread = answering(tmp_path / "a", frame("ok", b"yes"))
    assert call_agent(str(tmp_path / "a"), "ps", b"", timeout=5) == b"yes"
    thread.join()
    thread = answering(tmp_path / "b", frame("error", b"no, because"))
    with pytest.raises(AgentRefusedError, match="no, because"):
        call_agent(str(tmp_path / "b"), "ps", b"", timeout=5)
    thread.join()


def test_silence_ends_at_the_timeout(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        server.listen(1)
        with pytest.raises(AgentUnavailableError, match="does not answer"):
            call_agent(str(tmp_path / "s"), "ps", b"", timeout=0.2)

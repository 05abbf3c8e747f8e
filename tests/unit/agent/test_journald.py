import logging
import socket
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cima_runc.agent.journald import JournalHandler, about, datagram


def fields_of(raw: bytes) -> dict[str, str]:
    """Read the native form as the protocol's description says."""
    found = {}
    while raw:
        name, _, rest = raw.partition(b"\n")
        (size,) = struct.unpack_from("<Q", rest)
        found[name.decode()] = rest[8 : 8 + size].decode()
        assert rest[8 + size : 9 + size] == b"\n"
        raw = rest[9 + size :]
    return found


def record(level: int, text: str, **extra: object) -> logging.LogRecord:
    made = logging.LogRecord("cima", level, "", 0, text, None, None)
    vars(made).update(extra)
    return made


@pytest.mark.parametrize(
    ("level", "priority"),
    [(logging.DEBUG, "7"), (logging.INFO, "6"), (logging.WARNING, "4"), (logging.ERROR, "3")],
)
def test_priorities(level: int, priority: str) -> None:
    assert fields_of(datagram(record(level, "x"), "x"))["PRIORITY"] == priority


@given(st.text(), st.text())
def test_whatever_a_container_is_called_its_name_is_one_field(name: str, text: str) -> None:
    extra = about("container-refused", container=name, registration=7)
    found = fields_of(datagram(record(logging.ERROR, text, **extra), text))
    assert found.keys() - {"CONTAINER"} == {
        *("MESSAGE", "PRIORITY", "SYSLOG_IDENTIFIER", "EVENT", "REGISTRATION")
    }
    assert found.get("CONTAINER", "").isprintable()
    assert (found["EVENT"], found["REGISTRATION"]) == ("container-refused", "7")


def test_a_handler_sends_and_falls_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.bind(path)
        handler = JournalHandler(path)
        handler.handle(record(logging.INFO, "ready", event="ready"))
        assert fields_of(journal.recv(1 << 16))["EVENT"] == "ready"
    Path(path).unlink()
    handler.handle(record(logging.INFO, "alone"))
    assert "alone" in capsys.readouterr().err
    handler.close()

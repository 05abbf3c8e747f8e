import resource
import socket
from types import SimpleNamespace

import pytest

from cima_runc.agent import door as door_module
from cima_runc.agent.door import Door, share_of_descriptors


def visit(door: Door, address: str, port: int) -> bool:
    return door.enter(SimpleNamespace(), (address, port))  # type: ignore[arg-type]


def test_one_address_has_its_share_and_all_have_theirs() -> None:
    door = Door(3, 2, silent_seconds=1)
    assert visit(door, "192.0.2.1", 1)
    assert visit(door, "192.0.2.1", 2)
    assert not visit(door, "192.0.2.1", 3)
    assert visit(door, "2001:db8::1", 4)
    assert not visit(door, "192.0.2.9", 5)
    door.leave(("192.0.2.1", 1))
    door.leave(("192.0.2.1", 1))
    assert visit(door, "2001:db8::2", 6)
    assert len(door) == 3


def test_a_network_of_ipv6_is_one_address() -> None:
    door = Door(9, 1, silent_seconds=1)
    assert visit(door, "2001:db8::1", 1)
    assert not visit(door, "2001:db8::2", 1)
    assert visit(door, "2001:db8:0:1::1", 1)


def test_descriptors_are_kept_back_for_containers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (1024, 1024))
    assert share_of_descriptors(512) == 128
    assert share_of_descriptors(16) == 16
    monkeypatch.setattr(resource, "getrlimit", lambda which: (resource.RLIM_INFINITY, -1))
    assert share_of_descriptors(512) == 512


def test_whose_time_is_over_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(door_module.time, "monotonic", lambda: now)
    door = Door(9, 9, silent_seconds=5)
    with (
        door.listener(socket.create_server(("127.0.0.1", 0))) as listener,
        socket.create_connection(listener.getsockname()) as client,
    ):
        accepted, address = listener.accept()
        with accepted:
            client.settimeout(5)
            door.begins(address, 60)
            now = 130.0
            door.sweep()
            door.ends(address)
            now = 134.0
            door.sweep()
            client.sendall(b"still there")
            assert accepted.recv(99) == b"still there"
            now = 136.0
            door.sweep()
            assert client.recv(99) == b""
        assert len(door) == 0

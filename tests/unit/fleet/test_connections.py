"""A connection ends that has no whole request for too long, or whose answer is not read."""

import asyncio
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from cima_runc.fleet.connections import Punctual, take_descriptors

DEADLINE = 60.0
LARGE = 64 << 20


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["path"] == "/waits":
        await asyncio.sleep(1.0)
    body = bytes(LARGE) if scope["path"] == "/large" else b"ok"
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@contextmanager
def served(protocol: type[Any]) -> Iterator[tuple[int, uvicorn.Server]]:
    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, http=protocol, lifespan="off", ws="none", log_config=None)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        yield listening.getsockname()[1], server
    finally:
        server.force_exit = server.should_exit = True
        thread.join(DEADLINE)


@pytest.fixture(params=[H11Protocol, HttpToolsProtocol])
def impatient(request: pytest.FixtureRequest) -> type[Any]:
    named = {"silent_seconds": 0.3, "reading_seconds": 0.3}
    return type("Impatient", (Punctual, request.param), named)


def drip(peer: socket.socket) -> None:
    """Send a head that never ends, byte by byte."""
    with suppress(OSError):
        peer.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nX: ")
        while True:
            peer.sendall(b"x")
            time.sleep(0.02)


def asked(port: int, path: str) -> tuple[socket.socket, bytes]:
    """A connection that has asked, and the first of what it is answered. On a busy machine it may
    be cut off before it asks: then another one does."""
    until = time.monotonic() + DEADLINE
    while True:
        peer = socket.socket()
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        peer.settimeout(DEADLINE)
        with suppress(OSError):
            peer.connect(("127.0.0.1", port))
            peer.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            if found := peer.recv(1024):
                return peer, found
        peer.close()
        assert time.monotonic() < until


@pytest.mark.parametrize("first", [None, "/"], ids=["at first", "after an answer"])
@pytest.mark.parametrize("how", [lambda peer: None, drip], ids=["nothing", "a head without end"])
def test_who_does_not_ask_loses_the_place(
    impatient: type[Any], first: str | None, how: Callable[[socket.socket], None]
) -> None:
    with served(impatient) as (port, _):
        if first is not None:
            peer, _ = asked(port, first)
        else:
            peer = socket.create_connection(("127.0.0.1", port), DEADLINE)
        with peer:
            asking = threading.Thread(target=how, args=(peer,), daemon=True)
            asking.start()
            with suppress(ConnectionResetError):
                while peer.recv(4096):
                    pass
            asking.join(DEADLINE)


def test_who_does_not_read_does_too(impatient: type[Any]) -> None:
    with served(impatient) as (port, server):
        peer, _ = asked(port, "/large")
        with peer:
            until = time.monotonic() + DEADLINE
            while server.server_state.connections:
                assert time.monotonic() < until
                time.sleep(0.05)


def test_an_answer_may_take_longer_than_silence(impatient: type[Any]) -> None:
    with served(impatient) as (port, _):
        peer, found = asked(port, "/waits")
        peer.close()
        assert found.startswith(b"HTTP/1.1 200")


def test_all_descriptors_that_may_be_had_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    set_ = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 524_288))
    monkeypatch.setattr(resource, "setrlimit", lambda _, both: set_.append(both))
    take_descriptors()
    assert set_ == [(524_288, 524_288)]

"""Peers over TLS that answer too much, too slowly, in pieces, or with another address."""

import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from socket import create_server, socket
from typing import Any

import pytest

from cima_runc.base.peer import AnswerTooLargeError, fetch
from cima_runc.fleet import setup
from cima_runc.fleet.settings import Settings

LIMIT, SECONDS = 100_000, 1.0
HEAD = b"HTTP/1.1 200 OK\r\n"


class Peer:
    """Says what it is told to, byte by byte where it is told to be slow."""

    def __init__(self, root: Path) -> None:
        made, key = setup.certificate(Settings(state_dir=root))
        self.context = ssl.create_default_context(cafile=made)
        self.said: list[bytes] = []
        self.pause = 0.0
        self.greets = True
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._tls.load_cert_chain(made, key)
        self._server = create_server(("127.0.0.1", 0))
        self.url = f"https://127.0.0.1:{self._server.getsockname()[1]}/path?query"
        self.asked: list[bytes] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                channel, _ = self._server.accept()
                threading.Thread(target=self._answer, args=(channel,), daemon=True).start()

    def _answer(self, channel: socket) -> None:
        with suppress(OSError), channel:
            if not self.greets:
                time.sleep(SECONDS * 3)
                return
            with self._tls.wrap_socket(channel, server_side=True) as secured:
                asked = b""
                while not asked.endswith(b"given" if asked[:4] == b"POST" else b"\r\n\r\n"):
                    asked += secured.recv(65_536)
                self.asked.append(asked)
                for piece in self.said:
                    secured.sendall(piece)
                    time.sleep(self.pause)

    def ask(self, **named: Any) -> tuple[int, Any, bytes]:
        return fetch(self.url, context=self.context, limit=LIMIT, seconds=SECONDS, **named)

    def close(self) -> None:
        self._server.close()


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[Peer]:
    found = Peer(tmp_path)
    yield found
    found.close()


def test_what_is_asked_and_answered(peer: Peer) -> None:
    peer.said = [HEAD + b"Content-Length: 4\r\n\r\nbody"]
    status, _, body = peer.ask(method="POST", body=b"given", headers={"Accept": "a/b"})
    assert (status, body) == (200, b"body")
    assert peer.asked[0].startswith(b"POST /path?query HTTP/1.1\r\nHost: 127.0.0.1:")
    assert b"Accept: a/b" in peer.asked[0]


@pytest.mark.parametrize(
    "said",
    [
        [HEAD + b"Content-Length: %d\r\n\r\n" % (LIMIT + 1)],
        [HEAD + b"Content-Length: 99999999999999999999\r\n\r\n"],
        [HEAD + b"\r\n", *[b"x" * 10_000] * 20],
        [
            HEAD + b"Transfer-Encoding: chunked\r\n\r\n",
            *[b"2710\r\n" + b"x" * 10_000 + b"\r\n"] * 20,
        ],
    ],
)
def test_an_answer_that_is_too_large(peer: Peer, said: list[bytes]) -> None:
    peer.said = said
    with pytest.raises(AnswerTooLargeError):
        peer.ask()


def _one_by_one(raw: bytes) -> list[bytes]:
    return [raw[at : at + 1] for at in range(len(raw))]


@pytest.mark.parametrize(
    "said",
    [
        _one_by_one(HEAD + b"X: " + b"x" * 1_000),
        [HEAD + b"Content-Length: 1000\r\n\r\n", *_one_by_one(b"x" * 1_000)],
        # Without a length, what was cut off looks whole.
        [HEAD + b"\r\n", *_one_by_one(b"x" * 1_000)],
        [HEAD + b"Transfer-Encoding: chunked\r\n\r\n", *_one_by_one(b"1\r\nx\r\n" * 200)],
        [b"HTTP/1.1 100 Continue\r\n\r\n"] * 1_000,
    ],
)
def test_an_answer_that_does_not_end(peer: Peer, said: list[bytes]) -> None:
    peer.said, peer.pause = said, 0.05
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        peer.ask()
    assert time.monotonic() - began < SECONDS * 2.5


def test_a_peer_that_does_not_greet(peer: Peer) -> None:
    peer.greets = False
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        peer.ask()
    assert time.monotonic() - began < SECONDS * 2.5


def test_a_redirect_is_an_answer(peer: Peer) -> None:
    peer.said = [b"HTTP/1.1 302 Found\r\nLocation: https://elsewhere/\r\nContent-Length: 0\r\n\r\n"]
    assert peer.ask()[0] == 302
    assert len(peer.asked) == 1


@pytest.mark.parametrize("raw", [b"", b"\0" * 100, b"SSH-2.0\r\n\r\n"])
def test_what_is_no_answer(peer: Peer, raw: bytes) -> None:
    peer.said = [raw]
    with pytest.raises((OSError, HTTPException)):
        peer.ask()


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1/", "file:///etc/passwd", "https://", "https://a@b/"]
)
def test_other_addresses(peer: Peer, url: str) -> None:
    ask: Callable[..., Any] = fetch
    with pytest.raises(ValueError, match="https"):
        ask(url, context=peer.context, limit=1, seconds=1.0)

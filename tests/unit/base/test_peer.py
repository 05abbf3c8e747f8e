"""Peers over TLS that answer too much, too slowly, in pieces, or with another address."""

import threading
import time
from collections.abc import Callable, Iterator
from http.client import HTTPException
from pathlib import Path
from socket import create_connection, create_server, socket
from typing import Any

import pytest

from cima_runc.base.peer import AnswerTooLargeError, fetch
from tests.support.slow_peer import HEAD, LIMIT, SECONDS, Peer, one_by_one


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


@pytest.mark.parametrize(
    "said",
    [
        one_by_one(HEAD + b"X: " + b"x" * 1_000),
        [HEAD + b"Content-Length: 1000\r\n\r\n", *one_by_one(b"x" * 1_000)],
        # Without a length, what was cut off looks whole.
        [HEAD + b"\r\n", *one_by_one(b"x" * 1_000)],
        [HEAD + b"Transfer-Encoding: chunked\r\n\r\n", *one_by_one(b"1\r\nx\r\n" * 200)],
        [b"HTTP/1.1 100 Continue\r\n\r\n"] * 1_000,
    ],
)
def test_an_answer_that_does_not_end(peer: Peer, said: list[bytes]) -> None:
    peer.said, peer.pause = said, 0.05
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        peer.ask()
    assert time.monotonic() - began < SECONDS + 20


def test_a_peer_that_does_not_greet(peer: Peer) -> None:
    peer.greets = False
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        peer.ask()
    assert time.monotonic() - began < SECONDS + 20


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


def test_by_the_proxy_that_the_environment_names(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer.said = [HEAD + b"Content-Length: 4\r\n\r\nbody"]
    heads: list[bytes] = []
    proxy = create_server(("127.0.0.1", 0))

    def copy(one: socket, other: socket) -> None:
        while data := one.recv(65_536):
            other.sendall(data)
        other.close()

    def serve() -> None:
        channel, _ = proxy.accept()
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += channel.recv(1)
        heads.append(head)
        other = create_connection(("127.0.0.1", peer.port))
        channel.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        threading.Thread(target=copy, args=(other, channel), daemon=True).start()
        copy(channel, other)

    threading.Thread(target=serve, daemon=True).start()
    named = f"http://me:p%40ss@127.0.0.1:{proxy.getsockname()[1]}"
    monkeypatch.setenv("https_proxy", named)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert peer.ask(by_proxy=True)[0] == 200
    (head,) = heads
    assert head.startswith(b"CONNECT 127.0.0.1:%d HTTP/1." % peer.port)
    assert b"Proxy-Authorization: Basic bWU6cEBzcw==" in head
    # Where it is not asked for, or the peer is named as none for it, nothing goes there.
    proxy.close()
    assert peer.ask()[0] == 200
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert peer.ask(by_proxy=True)[0] == 200
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("https_proxy", "socks5://127.0.0.1:1")
    with pytest.raises(ValueError, match="proxy"):
        peer.ask(by_proxy=True)

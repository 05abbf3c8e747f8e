"""Whoever is asked over HTTPS, no peer keeps a person waiting for as long as he likes."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cima_runc.base.errors import CimaError
from cima_runc.cli import fleet_client
from cima_runc.cli.fleet_client import Client, FleetRefusedError, FleetUnavailableError
from cima_runc.cli.remote import call_url
from cima_runc.runtime.agent_socket import AgentRefusedError, AgentUnavailableError
from tests.support.slow_peer import HEAD, SECONDS, Peer, one_by_one

Ask = Callable[[Peer], Any]


def _agent(peer: Peer) -> Any:
    url = f"https://127.0.0.1:{peer.port}"
    return call_url(
        url, "ak", None, ca=peer.certificate, certificate=None, key=None, timeout=SECONDS
    )


def _fleet(peer: Peer) -> Any:
    fleet_client.choose(f"https://127.0.0.1:{peer.port}", peer.certificate, None)
    return Client(SECONDS).get("overview")


@pytest.fixture(params=[_agent, _fleet])
def ask(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ask]:
    monkeypatch.setenv(fleet_client.TOKEN, "cima_token")
    yield request.param
    fleet_client.choose(None, None, None)


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[Peer]:
    found = Peer(tmp_path)
    yield found
    found.close()


@pytest.mark.parametrize(
    "said",
    [
        one_by_one(HEAD + b"X: " + b"x" * 1_000),
        [HEAD + b"Content-Length: 1000\r\n\r\n", *one_by_one(b" " * 1_000)],
        [b"HTTP/1.1 403 No\r\nContent-Length: 1000\r\n\r\n", *one_by_one(b" " * 1_000)],
    ],
)
def test_a_peer_that_drips(peer: Peer, ask: Ask, said: list[bytes]) -> None:
    peer.said, peer.pause = said, 0.05
    began = time.monotonic()
    with pytest.raises((AgentUnavailableError, FleetUnavailableError), match="no whole answer"):
        ask(peer)
    assert time.monotonic() - began < SECONDS + 20


def test_a_peer_that_greets_nobody(peer: Peer, ask: Ask) -> None:
    peer.greets = False
    with pytest.raises((AgentUnavailableError, FleetUnavailableError)):
        ask(peer)


@pytest.mark.parametrize(
    ("status", "body", "told"),
    [
        (b"403 No", b'{"error": "not for you"}', "not for you"),
        (b"302 Found\r\nLocation: https://elsewhere/", b"", "status 302"),
        (b"500 Oh", b"[" * 100_000, "status 500"),
    ],
)
def test_refusals(peer: Peer, ask: Ask, status: bytes, body: bytes, told: str) -> None:
    peer.said = [b"HTTP/1.1 %b\r\nContent-Length: %d\r\n\r\n" % (status, len(body)), body]
    with pytest.raises(CimaError, match=told) as raised:
        ask(peer)
    assert isinstance(raised.value, AgentRefusedError | FleetRefusedError | FleetUnavailableError)

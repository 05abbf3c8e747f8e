"""The HTTPS endpoint with real certificates, asked by the client that `cima --url` uses."""

import asyncio
import http.client
import socket
import ssl
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from cima_runc.agent import https
from cima_runc.agent.attester import NotForYouError
from cima_runc.agent.https import HttpsEndpoint, HttpsError
from cima_runc.base import limits
from cima_runc.cli.remote import UrlError, call_url
from cima_runc.config import HttpsSettings
from cima_runc.runtime.agent_socket import AgentRefusedError, AgentUnavailableError

BODY = (
    b'{"boot_log":false,"container":"c","host":"none","nonce":"' + b"ab" * 16 + b'","since":null}'
)


def openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ca.pem, and server.pem, client.pem by it with their keys; other.pem by nobody."""
    at = tmp_path_factory.mktemp("keys")
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
    for name in ("ca", "other"):
        files = ("-keyout", at / f"{name}.key", "-out", at / f"{name}.pem")
        openssl("req", "-x509", *curve, "-subj", f"/CN={name}", *files)
    authority = ("-CA", at / "ca.pem", "-CAkey", at / "ca.key")
    for name in ("server", "client"):
        files = ("-keyout", at / f"{name}.key", "-out", at / f"{name}.pem")
        names = ("-addext", "subjectAltName=DNS:localhost")
        openssl("req", "-x509", *curve, "-subj", f"/CN={name}", *names, *authority, *files)
    return at


def served(keys: Path, ask: Callable[[int], Any], *, answer: bytes = b"", **settings: Any) -> Any:
    """Open an endpoint, and run ``ask(port)`` in a thread meanwhile."""

    async def agent(verb: str, body: bytes, source: str) -> bytes:
        if verb == "enrolment":
            raise NotForYouError
        return answer or b'{"verb":"%s"}' % verb.encode()

    async def go() -> Any:
        endpoint = HttpsEndpoint(
            HttpsSettings(
                enabled=True,
                address="127.0.0.1",
                port=0,
                certificate=str(keys / "server.pem"),
                key=str(keys / "server.key"),
                **settings,
            ),
            agent,
        )
        try:
            return await asyncio.to_thread(ask, endpoint.port)
        finally:
            await asyncio.to_thread(endpoint.close)

    return asyncio.run(go())


def call(keys: Path, port: int, route: str, body: bytes | None, *, client: str = "") -> bytes:
    return call_url(
        f"https://localhost:{port}",
        route,
        body,
        ca=keys / "ca.pem",
        certificate=keys / f"{client}.pem" if client else None,
        key=keys / f"{client}.key" if client else None,
        timeout=60,
    )


def test_asked_and_refused(keys: Path) -> None:
    def ask(port: int) -> None:
        assert call(keys, port, "evidence", BODY) == b'{"verb":"attest"}'
        with pytest.raises(AgentRefusedError, match="no container of that id"):
            call(keys, port, "enrolment", None)
        with pytest.raises(AgentRefusedError, match="boot_log: Field required"):
            call(keys, port, "evidence", b"{}")
        with pytest.raises(AgentUnavailableError, match="certificate"):
            call_url(
                f"https://localhost:{port}",
                "evidence",
                BODY,
                ca=keys / "other.pem",
                certificate=None,
                key=None,
                timeout=60,
            )

    served(keys, ask)


def test_mutual_tls(keys: Path) -> None:
    def ask(port: int) -> None:
        assert call(keys, port, "evidence", BODY, client="client")
        for client in ("", "other"):
            with pytest.raises(AgentUnavailableError):
                call(keys, port, "evidence", BODY, client=client)

    served(keys, ask, client_ca=str(keys / "ca.pem"))


def test_rate(keys: Path) -> None:
    def ask(port: int) -> None:
        for _ in range(2):
            call(keys, port, "evidence", BODY)
        with pytest.raises(AgentRefusedError, match="too many requests"):
            call(keys, port, "evidence", BODY)

    served(keys, ask, requests_per_minute=2)


def test_what_cannot_be_opened(keys: Path) -> None:
    for wrong in ({"certificate": "/nowhere"}, {"address": "192.0.2.1"}):
        settings = {"certificate": str(keys / "server.pem"), "key": str(keys / "server.key")}
        with pytest.raises(HttpsError, match="cannot be opened"):

            async def go(values: dict[str, Any] = {**settings, **wrong}) -> None:  # noqa: B006
                HttpsEndpoint(HttpsSettings(enabled=True, port=0, **values), lambda *_: None)  # type: ignore[arg-type,return-value]

            asyncio.run(go())


def test_only_https() -> None:
    with pytest.raises(UrlError, match="https"):
        call_url(
            "http://localhost", "evidence", BODY, ca=None, certificate=None, key=None, timeout=1
        )


def test_who_says_nothing_blocks_nobody_and_is_cut_off(
    keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """300 connections: of some not even the TLS handshake, of some not the whole header."""
    monkeypatch.setattr(https, "_SILENT_SECONDS", 3.0)

    def ask(port: int) -> None:
        context = ssl.create_default_context(cafile=keys / "ca.pem")
        idle: list[socket.socket] = []
        for number in range(300):
            channel = socket.create_connection(("127.0.0.1", port), timeout=60)
            if number % 3:
                with suppress(OSError):
                    channel = context.wrap_socket(channel, server_hostname="localhost")
                    if number % 3 == 2:
                        channel.sendall(b"GET /v1/enrolment HTTP/1.1\r\nHost: localhost\r\n")
            idle.append(channel)
        assert connections_of(port) <= limits.HTTPS_CONNECTIONS_EACH
        # Another address is served meanwhile.
        made = http.client.HTTPSConnection(
            "localhost", port, context=context, timeout=60, source_address=("127.0.0.2", 0)
        )
        made.request("POST", "/v1/evidence", BODY, {"Content-Type": "application/json"})
        assert made.getresponse().read() == b'{"verb":"attest"}'
        made.close()
        deadline = time.monotonic() + 120
        while connections_of(port) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert connections_of(port) == 0
        assert call(keys, port, "evidence", BODY) == b'{"verb":"attest"}'
        for channel in idle:
            channel.close()

    served(keys, ask)


def connections_of(port: int) -> int:
    """How many connections to this port its server has open (proc(5), net/tcp: 01, 08)."""
    rows = [line.split() for line in Path("/proc/self/net/tcp").read_text().splitlines()[1:]]
    return sum(row[1].endswith(f":{port:04X}") and row[3] in {"01", "08"} for row in rows)


def test_who_reads_nothing_of_an_answer_is_cut_off(
    keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(https, "_ANSWER_SECONDS", 2.0)

    def ask(port: int) -> None:
        context = ssl.create_default_context(cafile=keys / "ca.pem")
        channel = socket.create_connection(("127.0.0.1", port), timeout=60)
        with context.wrap_socket(channel, server_hostname="localhost") as idle:
            head = b"POST /v1/evidence HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n"
            idle.sendall(head % len(BODY) + b"Content-Type: application/json\r\n\r\n" + BODY)
            deadline = time.monotonic() + 120
            while connections_of(port) and time.monotonic() < deadline:
                time.sleep(0.2)
            assert connections_of(port) == 0

    served(keys, ask, answer=b"[" + b" " * 64_000_000 + b"]")

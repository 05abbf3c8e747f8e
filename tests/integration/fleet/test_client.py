"""The client of ``cima fleet`` over TLS: whom it tells its token, and what it says of errors."""

import os
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from cima_runc.fleet import setup
from cima_runc.fleet.settings import Settings

TOKEN = "cima_" + "t" * 43


class Peer:
    """A server that answers what it is told to, and keeps what it was shown."""

    status, body, location = 200, b"[]", ""
    seen: list[tuple[str, str | None]]


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[tuple[Peer, dict[str, str]]]:
    found = Peer()
    found.seen = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            found.seen.append((self.path, self.headers.get("Authorization")))
            self.send_response(found.status)
            if found.location:
                self.send_header("Location", found.location)
            self.send_header("Content-Length", str(len(found.body)))
            self.end_headers()
            self.wfile.write(found.body)

    certificate, key = setup.certificate(Settings(state_dir=tmp_path))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    yield (
        found,
        {
            "CIMA_FLEET_URL": f"https://127.0.0.1:{server.server_address[1]}/",
            "CIMA_FLEET_CA": str(certificate),
            "CIMA_FLEET_TOKEN_FILE": str(tmp_path / "token"),
        },
    )
    server.shutdown()
    thread.join()
    server.server_close()


def cima(environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cima_runc.cli.main", "fleet", *words],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": os.environ["PATH"], "HOME": "/nowhere", **environment},
    )


def test_it_shows_the_token_to_the_service_and_to_nobody_else(
    peer: tuple[Peer, dict[str, str]],
) -> None:
    server, environment = peer
    done = cima(environment, "tenants", "--json")
    assert (done.returncode, done.stdout) == (0, "[]\n")
    assert server.seen == [("/v1/tenants", f"Bearer {TOKEN}")]
    server.status, server.location = 302, environment["CIMA_FLEET_URL"] + "elsewhere"
    assert cima(environment, "tenants").returncode == 2
    assert [path for path, _ in server.seen] == ["/v1/tenants"] * 2


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, b"<html>"),
        (200, b"[" * 100_000),
        (200, b""),
        (200, b"{}"),
        (200, b"[1]"),
        (200, b"null"),
        (500, b"oops"),
        (403, b'{"error": "\\u001b[2J no", "hint": null}'),
        (403, b'{"error": {}}'),
        (403, b"[]"),
    ],
)
def test_what_is_answered_is_never_a_fault_of_ours(
    peer: tuple[Peer, dict[str, str]], status: int, body: bytes
) -> None:
    server, environment = peer
    server.status, server.body = status, body
    done = cima(environment, "tenants")
    assert done.returncode == 2, done
    assert "Traceback" not in done.stderr and "a fault in cima" not in done.stderr, done.stderr
    assert "\x1b" not in done.stderr


def test_what_is_missing_is_named(peer: tuple[Peer, dict[str, str]]) -> None:
    server, good = peer
    for changed, named in (
        ({"CIMA_FLEET_URL": ""}, "--url"),
        ({"CIMA_FLEET_URL": good["CIMA_FLEET_URL"].replace("https", "http")}, "https://"),
        ({"CIMA_FLEET_CA": "/etc/hostname"}, "PEM"),
        ({"CIMA_FLEET_CA": ""}, "--ca"),
        ({"CIMA_FLEET_TOKEN_FILE": "/nowhere"}, "--token-file"),
        ({"CIMA_FLEET_TOKEN_FILE": "/bin/sh"}, "--token-file"),
        ({"CIMA_FLEET_TOKEN": "two words"}, "one line"),
    ):
        done = cima({**good, **changed}, "hosts")
        assert (done.returncode, done.stdout) == (2, ""), (changed, done)
        assert named in done.stderr, (changed, done.stderr)
        assert TOKEN not in done.stderr
    assert server.seen == []

"""A peer over TLS that says what it is told to, as slowly as it is told to."""

import ssl
import threading
import time
from contextlib import suppress
from pathlib import Path
from socket import create_server, socket
from typing import Any

from cima_runc.base.peer import fetch
from cima_runc.fleet import setup
from cima_runc.fleet.settings import Settings

LIMIT, SECONDS = 100_000, 1.0
HEAD = b"HTTP/1.1 200 OK\r\n"


class Peer:
    """Says what it is told to, byte by byte where it is told to be slow."""

    def __init__(self, root: Path) -> None:
        made, key = setup.certificate(Settings(state_dir=root))
        self.certificate = made
        self.context = ssl.create_default_context(cafile=made)
        self.said: list[bytes] = []
        self.pause = 0.0
        self.greets = True
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._tls.load_cert_chain(made, key)
        self._server = create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self.url = f"https://127.0.0.1:{self.port}/path?query"
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


def one_by_one(raw: bytes) -> list[bytes]:
    """Return the bytes, each a piece of its own."""
    return [raw[at : at + 1] for at in range(len(raw))]

"""A fleet's service of one host, over HTTPS: the wire and the checks are real, the store is memory.

What a test wants to go wrong is set on it.
"""

import json
import secrets
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cima_runc.base.errors import CimaError
from cima_runc.evidence.compressed import decompressed
from cima_runc.evidence.enrolment import EnrolmentAnswer, Pending
from cima_runc.evidence.host_enrolment import (
    EnrolmentChallenge,
    EnrolmentState,
    HostEnrolment,
    parse,
)
from cima_runc.evidence.report_answer import Invitation, Refused, Resync, TenantRequest
from cima_runc.evidence.request import Request
from cima_runc.verifier import enrol
from tests.support.fleet_keeper import Keeper

TOKEN = "join-" + "t" * 40


class Service:
    """What goes on in the service."""

    def __init__(self) -> None:
        self.keeper: Keeper | None = None
        self.away = False
        """Whether it answers that it has too much to do."""
        self.deaf = False
        """Whether it takes reports and their answers are lost."""
        self.approves = True
        self.trusted: bytes | None = None
        """Certificates of manufacturers; None takes any endorsement key."""
        self.interval, self.min_interval = 0.3, 0.1
        self.reports: list[bytes] = []
        """All that were accepted, as they came."""
        self.sizes: list[int] = []
        """Bytes that came for each of them."""
        self.resyncs = 0
        self.refusals: list[str] = []
        self.names: list[str] = []
        self.requests: dict[str, Request] = {}
        self.answers: dict[str, bytes] = {}
        self.changed = threading.Condition()
        self._pending: dict[str, Pending] = {}
        self._session = secrets.token_urlsafe(16)

    def invite(self, nonce: bytes, *, proved: bool) -> Invitation:
        asked = tuple(TenantRequest(id=name, request=one) for name, one in self.requests.items())
        return Invitation(
            nonce=nonce,
            interval=self.interval,
            min_interval=self.min_interval,
            requests=asked if proved else (),
        )

    def handle(self, method: str, path: str, headers: Any, body: bytes) -> tuple[int, bytes]:
        route, _, query = path.partition("?")
        parts = route.strip("/").split("/")
        if self.away:
            return 503, b"{}"
        if parts[1] == "enrolments":
            return self._enrol(method, parts[2:], body)
        keeper = self.keeper
        if keeper is None or parts[2] != keeper.ak_name.hex():
            return 403, _refused("NotEnrolledError", "the host is not enrolled")
        proved = headers.get("Authorization") == f"Bearer {self._session}"
        if parts[3] == "nonce":
            if query and proved:
                with self.changed:
                    self.changed.wait_for(lambda: bool(self.requests), 1.0)
            invitation = self.invite(keeper.nonce(), proved=proved)
            return 200, invitation.model_dump_json().encode()
        if parts[3] == "answers":
            if not proved:
                return 403, _refused("NotProvedError", "prove yourself first")
            with self.changed:
                self.requests.pop(parts[4], None)
                self.answers[parts[4]] = body
                self.changed.notify_all()
            return 200, b"{}"
        with self.changed:
            answer = keeper.take(body)
            if isinstance(answer, Resync):
                self.resyncs += 1
            else:
                self.reports.append(body)
                self.sizes.append(int(headers["Content-Length"]))
            self.changed.notify_all()
        if self.deaf:
            return 503, b"{}"
        status = 409 if isinstance(answer, Resync) else 200
        invitation = self.invite(keeper.nonce(), proved=False)
        update: dict[str, Any] = {"invitation": invitation}
        if status == 200:
            update["session"] = self._session
        return status, answer.model_copy(update=update).model_dump_json().encode()

    def _enrol(self, method: str, parts: list[str], body: bytes) -> tuple[int, bytes]:
        if not parts:
            host = parse(HostEnrolment, body, "the enrolment")
            if host.token is not None and host.token != TOKEN:
                return 403, _refused("JoinTokenError", "the join token is not good")
            self.names.append(host.name)
            challenge, pending = enrol.challenge(host.tpm, self.trusted)
            name = secrets.token_urlsafe(16)
            self._pending[name] = pending
            if host.token is None:
                self.approves = False
            made = EnrolmentChallenge(id=name, challenge=challenge)
            return 200, made.model_dump_json().encode()
        pending = self._pending[parts[0]]
        if method == "POST":
            answer = parse(EnrolmentAnswer, body, "the answer")
            enrol.accept(answer, pending)
        if self.approves and self.keeper is None:
            self.keeper = Keeper(pending.ak_public)
            self.keeper.now = 2_000_000_000.0
        state = EnrolmentState(state="enrolled" if self.approves else "waiting")
        return 200, state.model_dump_json().encode()

    def until(self, condition: Any, seconds: float = 120.0) -> None:
        """Wait until ``condition()`` is true."""
        with self.changed:
            assert self.changed.wait_for(condition, seconds), (self.refusals, len(self.reports))

    def ask(self, name: str, request: Request) -> None:
        """Pass a tenant's request on."""
        with self.changed:
            self.requests[name] = request
            self.changed.notify_all()


def _refused(error: str, what: str) -> bytes:
    return Refused(error=error, what=what).model_dump_json().encode()


@contextmanager
def served(service: Service, directory: Path, port: int = 0) -> Iterator[str]:
    """Serve over HTTPS, and give the address; ``directory`` has ca.pem afterwards."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 60

        def log_message(self, *_: object) -> None:
            pass

        def _any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            try:
                raw = decompressed(body, self.headers.get("Content-Encoding"))
                status, answer = service.handle(self.command, self.path, self.headers, raw)
            except CimaError as error:
                service.refusals.append(f"{type(error).__name__}: {error}")
                status, answer = 422, _refused(type(error).__name__, error.what)
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_GET = do_POST = _any

    certificate, key = directory / "ca.pem", directory / "key.pem"
    if not certificate.exists():
        subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
        curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        files = ["-keyout", str(key), "-out", str(certificate)]
        command = ["openssl", "req", "-x509", "-days", "2", *curve, *subject, *files]
        subprocess.run(command, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = ThreadingHTTPServer(("localhost", port), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign] # clients come and go
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"https://localhost:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def lines(body: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a report's two objects."""
    first, second = body.splitlines()
    return json.loads(first), json.loads(second)

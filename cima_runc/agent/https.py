"""The HTTPS endpoint for verifiers on other machines; off unless the settings turn it on.

It gives what anybody may have: evidence that is encrypted to the container's owner, and the keys
for an enrolment. It runs in a thread and a loop of its own, so that a slow client costs the agent
nothing; the agent itself is asked as over the unix socket.
"""

import asyncio
import logging
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI, Response
from fastapi import Request as HttpRequest
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse

from cima_runc import __version__
from cima_runc.agent.attester import NoEvidenceError, NotForYouError
from cima_runc.agent.door import Door
from cima_runc.agent.enrolment_window import EnrolmentClosedError
from cima_runc.agent.waiting import TooManyError
from cima_runc.base import limits
from cima_runc.base.errors import CimaError
from cima_runc.base.rate import RateLimit, network
from cima_runc.config import HttpsSettings
from cima_runc.evidence.enrolment import Challenge, EnrolmentAnswer, EnrolmentRequest
from cima_runc.evidence.models import Evidence
from cima_runc.evidence.request import Request
from cima_runc.validation import first_of_request

_log = logging.getLogger(__name__)

_BODY_SECONDS = 10.0
_KEEP_ALIVE_SECONDS = 5
_SILENT_SECONDS = 10.0
"""How long a connection may have no whole request: its TLS handshake and headers take no longer."""
_ANSWER_SECONDS = 300.0
"""How long a request may take until its answer is read."""

Asgi = Callable[[Any, Any, Any], Awaitable[None]]
Ask = Callable[[str, bytes, str], Coroutine[Any, Any, bytes]]
"""Asks the agent: a verb and its body, as on the unix socket, but for anybody; and who that is."""


class HttpsError(CimaError):
    """The endpoint cannot be opened."""


class BusyError(CimaError):
    """So many answers are being read that there is no room for another."""

    def __init__(self) -> None:
        super().__init__("too many answers are being read", hint="ask again later")


_CHUNK = 64 * limits.KIB
_SIZES = "cima.sizes"


_STATUS = {
    NotForYouError: 403,
    EnrolmentClosedError: 403,
    TooManyError: 429,
    BusyError: 503,
    NoEvidenceError: 503,
}


class _Answers:
    """The answers that are being read: each is in memory until it was."""

    def __init__(self) -> None:
        self._bytes = 0

    def give(self, connection: HttpRequest, body: bytes) -> Response:
        """Return an answer that is sent as it is read.

        Raises:
            BusyError: there is no room for it.
        """
        size = len(body)
        is_small = size <= limits.HTTPS_SMALL_ANSWER
        if not is_small and self._bytes and self._bytes + size > limits.HTTPS_ANSWERS:
            raise BusyError
        self._bytes += size
        connection.scope[_SIZES].append(size)
        return StreamingResponse(
            _pieces(body), media_type="application/json", headers={"Content-Length": str(size)}
        )

    def ended(self, sizes: list[int]) -> None:
        """Heed that answers of these sizes are kept no longer."""
        self._bytes -= sum(sizes)


async def _pieces(body: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(body), _CHUNK):
        yield body[at : at + _CHUNK]


class _Guard:
    """Refuses too many, too large and too slow requests before anything else sees them."""

    def __init__(self, app: Asgi, rate: RateLimit, door: Door | None, answers: _Answers) -> None:
        self._app = app
        self._rate = rate
        self._door = door
        self._sending = answers
        self._answers: dict[str, tuple[asyncio.Semaphore, int]] = {}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        client = tuple(scope.get("client") or ("unknown", 0))
        if self._door is not None:
            self._door.begins(client, _ANSWER_SECONDS)
        try:
            await self._request(client, scope, receive, send)
        finally:
            if self._door is not None:
                self._door.ends(client)

    @asynccontextmanager
    async def _turn(self, address: str) -> AsyncIterator[None]:
        """Wait for one of the turns of this address."""
        where = network(address)
        turn, waiting = self._answers.get(where, (None, 0))
        turn = turn or asyncio.Semaphore(limits.HTTPS_ANSWERS_EACH)
        self._answers[where] = (turn, waiting + 1)
        try:
            async with turn:
                yield
        finally:
            turn, waiting = self._answers.pop(where)
            if waiting > 1:
                self._answers[where] = (turn, waiting - 1)

    async def _request(self, client: Any, scope: Any, receive: Any, send: Any) -> None:
        if not self._rate.allows(client[0], time.monotonic()):
            await _refuse(429, "too many requests", scope, receive, send)
            return
        body = b""
        try:
            async with asyncio.timeout(_BODY_SECONDS):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return
                    body += message.get("body", b"")
                    more = message.get("more_body", False)
                    if len(body) > limits.HTTP_REQUEST:
                        reason = f"a request has at most {limits.HTTP_REQUEST} bytes"
                        await _refuse(413, reason, scope, receive, send)
                        return
        except TimeoutError:
            await _refuse(408, "the request did not come in time", scope, receive, send)
            return
        whole = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Any:
            return whole.pop() if whole else await receive()

        sizes: list[int] = []
        async with self._turn(client[0]):
            try:
                await self._app({**scope, _SIZES: sizes}, replay, send)
            finally:
                self._sending.ended(sizes)


async def _refuse(status: int, reason: str, scope: Any, receive: Any, send: Any) -> None:
    headers = {"Connection": "close"}
    await JSONResponse({"error": reason}, status, headers)(scope, receive, send)


def application(ask: Ask, per_minute: int, door: Door | None = None) -> Asgi:
    """Return the endpoint as an ASGI application, with its OpenAPI description at /v1/openapi.json.

    Refusals are JSON objects with the fields ``error`` and ``hint``.
    """
    answers = _Answers()
    api = FastAPI(
        title="cima-agent",
        version=__version__,
        openapi_url="/v1/openapi.json",
        docs_url=None,
        redoc_url=None,
    )

    @api.exception_handler(CimaError)
    async def refused(_: HttpRequest, error: CimaError) -> JSONResponse:
        status = _STATUS.get(type(error), 400)
        return JSONResponse({"error": error.what, "hint": error.hint}, status)

    @api.exception_handler(RequestValidationError)
    async def malformed(_: HttpRequest, error: RequestValidationError) -> JSONResponse:
        what = first_of_request(error.errors())
        return JSONResponse({"error": what, "hint": "see /v1/openapi.json"}, 422)

    @api.exception_handler(OSError)
    async def failed(_: HttpRequest, error: OSError) -> JSONResponse:
        _log.error("a request failed: %s", error)
        return JSONResponse({"error": "the agent cannot answer now", "hint": ""}, 503)

    @api.post("/v1/evidence", responses={200: {"model": Evidence}, 403: {}, 429: {}})
    async def evidence(request: Request, connection: HttpRequest) -> Response:
        """Return evidence of a container, encrypted to its owner."""
        body = request.model_dump_json().encode("utf-8")
        return answers.give(connection, await ask("attest", body, _source(connection)))

    @api.get("/v1/enrolment", responses={200: {"model": EnrolmentRequest}, 403: {}, 429: {}})
    async def enrolment(connection: HttpRequest) -> Response:
        """Return the keys that the TPM shows, while the host is open for enrolment."""
        return _json(await ask("enrolment", b"{}", _source(connection)))

    @api.post("/v1/activate", responses={200: {"model": EnrolmentAnswer}, 403: {}, 429: {}})
    async def activate(challenge: Challenge, connection: HttpRequest) -> Response:
        """Have the TPM open a credential, while the host is open for enrolment."""
        body = challenge.model_dump_json().encode("utf-8")
        return _json(await ask("activate", body, _source(connection)))

    return _Guard(api, RateLimit(per_minute), door, answers)


def _source(connection: HttpRequest) -> str:
    """Return who asks, as far as can be told: what counts as one address."""
    return network(connection.client.host) if connection.client is not None else "unknown"


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json")


class HttpsEndpoint:
    """The endpoint, open until :meth:`close`."""

    def __init__(self, settings: HttpsSettings, ask: Ask) -> None:
        """Open the endpoint; ``ask`` runs in the calling thread's event loop.

        Raises:
            HttpsError: the address or a certificate cannot be used.
        """
        agent_loop = asyncio.get_running_loop()

        async def across(verb: str, body: bytes, source: str) -> bytes:
            future = asyncio.run_coroutine_threadsafe(ask(verb, body, source), agent_loop)
            return await asyncio.wrap_future(future)

        door = Door(
            limits.HTTPS_CONNECTIONS,
            limits.HTTPS_CONNECTIONS_EACH,
            silent_seconds=_SILENT_SECONDS,
        )

        async def sweep() -> None:
            door.sweep()

        config = uvicorn.Config(
            application(across, settings.requests_per_minute, door),
            ssl_certfile=settings.certificate,
            ssl_keyfile=settings.key,
            ssl_ca_certs=settings.client_ca,
            ssl_cert_reqs=ssl.CERT_REQUIRED if settings.client_ca else ssl.CERT_NONE,
            # The door counts connections where asyncio accepts them: uvloop, which uvicorn takes
            # where it is installed, accepts them past it.
            loop="asyncio",
            http="h11",
            lifespan="off",
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            callback_notify=sweep,
            timeout_notify=1,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        )
        try:
            config.load()
            family = socket.AF_INET6 if ":" in settings.address else socket.AF_INET
            address = (settings.address, settings.port)
            self._socket = door.listener(socket.create_server(address, family=family))
        except OSError as error:
            raise HttpsError(
                f"the HTTPS endpoint cannot be opened: {error}",
                hint="see attestation.https in the settings",
            ) from error
        logging.getLogger("uvicorn").setLevel(logging.WARNING)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._run, name="https", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self._socket.getsockname()[1])

    def close(self) -> None:
        """Stop listening and let go of clients."""
        self._server.should_exit = True
        self._thread.join(_KEEP_ALIVE_SECONDS)

    def _run(self) -> None:
        self._server.run(sockets=[self._socket])

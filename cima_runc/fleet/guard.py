"""What every request passes first: a body has an end, in bytes and in time."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

from cima_runc.base import limits

Asgi = Callable[[Any, Any, Any], Awaitable[None]]
_SECONDS = 60.0
"""How long a whole request may take to come."""
_LARGER = (
    ("/reports", limits.REPORT),
    ("/answers/", limits.EVIDENCE),
    ("/v1/references", limits.FLEET_REFERENCE),
    ("/v1/enrolments", limits.VERIFIER_INPUT),
    ("/v1/policies", limits.VERIFIER_INPUT),
)
_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
)


def limit_of(path: str) -> int:
    """Return how many bytes a request's body may have."""
    for part, limit in _LARGER:
        if part in path:
            return limit
    return limits.HTTP_REQUEST


class Guard:
    """Ends requests whose body is too large or too slow, and adds headers to all answers."""

    def __init__(self, app: Asgi) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a request on, with its end."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = _Body(receive, send, limit_of(scope["path"]))
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if not length.isdigit() or int(length) > body.limit:
            await body.refuse(413, f"a request has at most {body.limit} bytes here")
            return
        await self._app(scope, body.receive, body.send)


class _Body:
    def __init__(self, receive: Any, send: Any, limit: int) -> None:
        self._receive = receive
        self._send = send
        self.limit = limit
        self._size = 0
        self._refused = False
        self._started = False
        self._until = asyncio.get_running_loop().time() + _SECONDS
        self._whole = False

    async def receive(self) -> Any:
        if self._refused:
            return {"type": "http.disconnect"}
        if self._whole:
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._until):
                message = await self._receive()
        except TimeoutError:
            await self.refuse(408, "the request did not come in time")
            return {"type": "http.disconnect"}
        self._size += len(message.get("body", b""))
        self._whole = not message.get("more_body", False)
        if self._size > self.limit:
            await self.refuse(413, f"a request has at most {self.limit} bytes here")
            return {"type": "http.disconnect"}
        return message

    async def send(self, message: Any) -> None:
        if self._refused:
            return
        if message["type"] == "http.response.start":
            self._started = True
            message = {**message, "headers": [*message.get("headers", ()), *_HEADERS]}
        await self._send(message)

    async def refuse(self, status: int, what: str) -> None:
        if not self._started and not self._refused:
            headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
            body = json.dumps({"error": what, "hint": ""}).encode("ascii")
            start = {"type": "http.response.start", "status": status}
            await self._send({**start, "headers": [*headers, *_HEADERS]})
            await self._send({"type": "http.response.body", "body": body})
        self._refused = True

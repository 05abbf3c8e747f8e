"""Hosts' frequent requests, straight to what answers them.

A framework's routing and checks cost more processor time than verifying an unchanged report does.
What is not written as agents write it goes the usual way, which describes and checks everything.
"""

import re
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from cima_runc.evidence.report_answer import LONG_POLL
from cima_runc.fleet.guard import Asgi
from cima_runc.fleet.hosts_api import Frequent

_PATH = re.compile(r"/v1/hosts/(000b[0-9a-f]{64})/(nonce|reports)")
_QUERY = re.compile(rb"(?:wait=([0-9]{1,3}(?:\.[0-9]{1,3})?))?")


class Straight:
    """Answers these requests, and passes all others on."""

    def __init__(
        self,
        app: Asgi,
        frequent: Frequent,
        refused: Callable[[Exception], Response],
    ) -> None:
        """``refused`` answers what is refused or fails, as ``app`` does."""
        self._app = app
        self._frequent = frequent
        self._refused = refused

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request."""
        if scope["type"] == "http" and (found := self._answering(scope)) is not None:
            request = Request(scope, receive)
            try:
                response = await found(request)
            except ClientDisconnect:
                return
            except Exception as error:
                response = self._refused(error)
            await response(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _answering(self, scope: Any) -> Callable[[Request], Awaitable[Response]] | None:
        path = _PATH.fullmatch(scope["path"])
        query = _QUERY.fullmatch(scope["query_string"])
        if path is None or query is None:
            return None
        ak, what = path.groups()
        wait = float(query[1] or 0)
        if (scope["method"], what) == ("GET", "nonce") and wait <= LONG_POLL:
            return lambda request: self._frequent.nonce(request, ak, wait)
        if (scope["method"], what) == ("POST", "reports"):
            return lambda request: self._frequent.report(request, ak)
        return None

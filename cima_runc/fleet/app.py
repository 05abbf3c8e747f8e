"""The service as an ASGI application. Its OpenAPI description is at ``/v1/openapi.json``."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from cima_runc import __version__
from cima_runc.base.errors import CimaError
from cima_runc.base.text import printable
from cima_runc.fleet import (
    changes,
    enrolments,
    hosts_api,
    issuer_api,
    issuing,
    passed_on,
    people_api,
    queries,
    reports,
    tenants_api,
)
from cima_runc.fleet.access import ForbiddenError, LimitedError, NotSignedInError
from cima_runc.fleet.database import DatabaseError
from cima_runc.fleet.guard import Asgi, Guard
from cima_runc.fleet.page import routes as page
from cima_runc.fleet.service import Service
from cima_runc.fleet.straight import Straight
from cima_runc.validation import first_of_request

_log = logging.getLogger(__name__)
_STATUS: tuple[tuple[type[CimaError], int], ...] = (
    (NotSignedInError, 401),
    (ForbiddenError, 403),
    (hosts_api.EnrolmentClosedError, 403),
    (enrolments.TokenRefusedError, 403),
    (LimitedError, 429),
    (passed_on.BusyError, 429),
    (passed_on.NotAnsweredError, 504),
    (passed_on.NotHereError, 404),
    (changes.NotFoundError, 404),
    (queries.NoSuchThingError, 404),
    (enrolments.NoSuchEnrolmentError, 404),
    (reports.NotEnrolledError, 403),
    (issuing.NotFreshError, 504),
    (issuing.NotIssuedError, 409),
    (DatabaseError, 503),
)


def application(service: Service) -> Asgi:
    """Return the application; the work in the background begins and ends with it."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.worker.start()
        waking = asyncio.create_task(service.wake_waiting())
        try:
            yield
        finally:
            waking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await waking
            await asyncio.to_thread(service.close)

    api = FastAPI(
        title="cima-verifier",
        version=__version__,
        openapi_url="/v1/openapi.json",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    frequent = hosts_api.Frequent(service)
    api.include_router(hosts_api.routes(service, frequent))
    for part in (tenants_api, people_api, issuer_api, page):
        api.include_router(part.routes(service))

    @api.get("/v1/health", tags=["service"], responses={503: {}})
    async def health() -> dict[str, Any]:
        """Return whether the service and its database are there."""

        def look() -> None:
            with service.database.read():
                pass

        await service.run(look)
        return {"status": "ok", "version": __version__}

    @api.exception_handler(CimaError)
    async def refused(request: Request, error: CimaError) -> JSONResponse:
        is_for_host = getattr(request.scope.get("route"), "tags", None) == ["hosts"]
        return _refused(error, is_for_host=is_for_host)

    @api.exception_handler(RequestValidationError)
    async def malformed(_: Request, error: RequestValidationError) -> JSONResponse:
        return _error(422, first_of_request(error.errors()), "see /v1/openapi.json")

    @api.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> JSONResponse:
        headers = dict(error.headers or {})
        return _error(error.status_code, str(error.detail), "see /v1/openapi.json", headers)

    @api.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> JSONResponse:
        return _failed(error)

    def to_host(error: Exception) -> JSONResponse:
        return _refused(error, is_for_host=True) if isinstance(error, CimaError) else _failed(error)

    return Guard(Straight(api, frequent, to_host))


def _refused(error: CimaError, *, is_for_host: bool) -> JSONResponse:
    status = next((code for kind, code in _STATUS if isinstance(error, kind)), 400)
    headers = {"Retry-After": "5"} if status in {429, 503} else {}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if is_for_host:
        return JSONResponse(reports.refusal(error).model_dump(), status, headers)
    return _error(status, error.what, error.hint, headers, type(error).__name__)


def _failed(error: Exception) -> JSONResponse:
    _log.error("a request failed", exc_info=error)
    return _error(500, "the service failed: this is a fault of it", "see its log")


def _error(
    status: int,
    what: str,
    hint: str,
    headers: dict[str, str] | None = None,
    kind: str | None = None,
) -> JSONResponse:
    body = {"error": printable(what), "hint": printable(hint)}
    if kind is not None:
        body["kind"] = kind
    return JSONResponse(body, status, headers)

"""HTTP for tenants' verifiers: the same requests that a host's own agent takes, passed on to it.

``cima attest --url`` works against the service's address, where one host alone has a container of
that id, and against ``…/hosts/<attestation key's name>`` for that host. Source: fleet, section 2.
"""

import asyncio
import contextlib
import time
from typing import Any

from fastapi import APIRouter, Request, Response

from cima_runc.base import limits
from cima_runc.evidence.enrolment import Challenge, EnrolmentRequest, parse
from cima_runc.evidence.models import Evidence
from cima_runc.evidence.request import parse_request
from cima_runc.fleet import passed_on
from cima_runc.fleet.access import LimitedError
from cima_runc.fleet.hosts_api import AkName, address_of
from cima_runc.fleet.service import Service

_REFUSED: dict[int | str, dict[str, Any]] = {400: {}, 404: {}, 429: {}, 504: {}}
_EVIDENCE: dict[int | str, dict[str, Any]] = {200: {"model": Evidence}, **_REFUSED}


def routes(service: Service) -> APIRouter:
    """Return the routes."""
    router = APIRouter(tags=["tenants"])

    def limit(request: Request) -> None:
        if not service.rates.tenants.allows(address_of(request), time.monotonic()):
            raise LimitedError("too many requests", hint="ask again in a minute")

    async def passed(request: Request, kind: str, body: bytes, ak: str | None) -> Response:
        source = address_of(request)

        def ask() -> str:
            with service.database.write() as connection:
                if ak is not None:
                    host = passed_on.host_named(connection, ak)
                else:
                    host = passed_on.host_of(connection, parse_request(body).container)
                return passed_on.ask(connection, host, kind, body, source)

        def collect(name: str) -> tuple[int, bytes] | None:
            with service.database.write() as connection:
                return passed_on.collect(connection, name)

        name = await service.run(ask)
        with service.answers.on(name) as event, contextlib.suppress(TimeoutError):
            async with asyncio.timeout(passed_on.WAIT / 1000):
                await event.wait()
        found = await service.run(collect, name)
        if found is not None:
            return Response(found[1], found[0], media_type="application/json")
        raise passed_on.NotAnsweredError(
            "the host does not answer", hint="see whether it reports: cima fleet hosts"
        )

    def known_keys(ak: str) -> bytes:
        with service.database.read() as connection:
            return passed_on.keys_of(connection, ak)

    async def evidence_of(request: Request, ak: str | None) -> Response:
        limit(request)
        body = await request.body()
        parse_request(body[: limits.HTTP_REQUEST])
        return await passed(request, "evidence", body, ak)

    extra = {
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"type": "object"}}},
        }
    }

    @router.post("/v1/evidence", responses=_EVIDENCE, openapi_extra=extra)
    async def evidence(request: Request) -> Response:
        """Return evidence of a container, from the host that has it."""
        return await evidence_of(request, None)

    @router.post("/hosts/{ak}/v1/evidence", responses=_EVIDENCE, openapi_extra=extra)
    async def evidence_by_host(ak: AkName, request: Request) -> Response:
        """Return evidence of a container of this host."""
        return await evidence_of(request, ak)

    @router.get(
        "/hosts/{ak}/v1/enrolment",
        responses={200: {"model": EnrolmentRequest}, 404: {}, 429: {}},
    )
    async def enrolment(ak: AkName, request: Request) -> Response:
        """Return the keys that the host's TPM showed when it joined, for a tenant who enrols it."""
        limit(request)
        return Response(await service.run(known_keys, ak), media_type="application/json")

    @router.post("/hosts/{ak}/v1/activate", responses=_REFUSED, openapi_extra=extra)
    async def activate(ak: AkName, request: Request) -> Response:
        """Have the host's TPM open a tenant's credential, where the host allows it."""
        limit(request)
        body = await request.body()
        parse(Challenge, body, "the challenge")
        return await passed(request, "activate", body, ak)

    return router

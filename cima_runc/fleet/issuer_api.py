"""HTTP of the issuer: its description and keys for all, tokens and introspection by token.

Source: OpenID Connect Discovery 1.0, RFC 7517, RFC 7662; fleet, section 6.
"""

import asyncio
import time
from collections import Counter
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Connection

from cima_runc.fleet import clock, issuer, issuing, queries
from cima_runc.fleet.access import ForbiddenError, LimitedError, Person, Role
from cima_runc.fleet.claims import Profile
from cima_runc.fleet.people_api import ERRORS, Name, Uid, recognised
from cima_runc.fleet.service import Service

WAIT = 100.0
"""Seconds that a request with nonces waits for a report."""
_LOOK = 0.5
_WAITING = 16
"""Requests of one tenant that wait in one process."""
_Audience = Annotated[str, Field(min_length=1, max_length=255, pattern=r"^[!-~]+$")]
_Nonce = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{11,86}$")]
"""8 to 64 bytes, base64url (RFC 9711, 4.1)."""


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class NewWorkloadToken(_Body):
    """What a token is to be for."""

    audience: _Audience
    nonces: Annotated[list[_Nonce], Field(max_length=6)] = []
    profile: Profile = Profile.EAT
    seconds: Annotated[int, Field(ge=1, le=issuer.LONGEST)] = 300


class Grant(_Body):
    """What an administrator allows."""

    policy: Name
    audience: _Audience
    tenant: Name | None = None


def routes(service: Service) -> APIRouter:
    """Return the routes."""
    router = APIRouter(tags=["issuer"])
    Anybody = Annotated[Person, Depends(recognised(service))]
    url = service.issuer_url
    waiting: Counter[int | None] = Counter()

    @router.get("/.well-known/openid-configuration")
    async def description() -> dict[str, Any]:
        """Return what the issuer is."""
        return {
            "issuer": url,
            "jwks_uri": f"{url}/.well-known/jwks.json",
            "introspection_endpoint": f"{url}/v1/introspect",
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256"],
        }

    @router.get("/.well-known/jwks.json")
    async def keys() -> dict[str, Any]:
        """Return the keys that tokens are signed with, those of now and those before."""

        def read() -> dict[str, Any]:
            with service.database.read() as connection:
                return issuer.published(connection)

        found: dict[str, Any] = await service.run(read)
        return found

    def asker(person: Person) -> int | None:
        if person.role is Role.TENANT:
            if person.tenant is None:
                raise ForbiddenError("the token is of no tenant")
            return person.tenant
        person.must_be(Role.OPERATOR)
        return None

    @router.post("/v1/containers/{uid}/tokens", status_code=201, responses=ERRORS)
    async def token(uid: Uid, given: NewWorkloadToken, person: Anybody) -> dict[str, Any]:
        """Give a token for a container that is TRUSTED; with nonces, after its host's next
        report."""
        tenant = asker(person)
        who = f"{person.role.value} {tenant}"
        if not service.rates.tokens.allows(who, time.monotonic()):
            raise LimitedError("too many tokens", hint="ask again in a minute")
        asked = issuing.Asked(
            uid, given.audience, given.profile, given.seconds, tuple(given.nonces), clock.now()
        )

        def issue() -> tuple[str, int]:
            with service.database.write() as connection:
                return issuing.issue(
                    connection, asked, tenant, url=url, limit=service.settings.token_seconds
                )

        def may_be_fresh() -> bool:
            with service.database.read() as connection:
                return issuing.may_be_fresh(connection, asked)

        try:
            made, ends = await service.run(issue)
        except issuing.NotFreshError:
            if waiting[tenant] >= _WAITING:
                raise LimitedError("too many wait for tokens", hint="ask again later") from None
            waiting[tenant] += 1
            try:
                until = time.monotonic() + WAIT
                while not await service.run(may_be_fresh):
                    if time.monotonic() > until or service.is_ending():
                        raise
                    await asyncio.sleep(_LOOK)
            finally:
                waiting[tenant] -= 1
            made, ends = await service.run(issue)
        return {"token": made, "expires": queries.when(ends * 1000)}

    @router.post(
        "/v1/introspect",
        responses=ERRORS,
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {
                    "application/x-www-form-urlencoded": {
                        "schema": {
                            "type": "object",
                            "required": ["token"],
                            "properties": {"token": {"type": "string"}},
                        }
                    }
                },
            }
        },
    )
    async def introspect(request: Request, person: Anybody) -> dict[str, Any]:
        """Return whether a token still holds (RFC 7662)."""
        if person.role is not Role.TENANT:
            person.must_be(Role.VIEWER)
        tenant = person.tenant
        form = _form(await request.body())

        def read() -> dict[str, Any]:
            with service.database.read() as connection:
                return issuing.introspect(connection, form.get("token", ""), tenant)

        found: dict[str, Any] = await service.run(read)
        return found

    # -- what is allowed --------------------------------------------------------------------------

    async def change(do: Any) -> Any:
        def write() -> Any:
            with service.database.write() as connection:
                return do(connection)

        return await service.run(write)

    @router.get("/v1/token-grants", responses=ERRORS)
    async def grants(person: Anybody) -> list[dict[str, Any]]:
        """Return what tokens may be for."""
        person.must_be(Role.VIEWER)

        def read() -> list[dict[str, Any]]:
            with service.database.read() as connection:
                return queries.token_grants(connection)

        found: list[dict[str, Any]] = await service.run(read)
        return found

    @router.post("/v1/token-grants", status_code=201, responses=ERRORS)
    async def add_grant(given: Grant, person: Anybody) -> dict[str, Any]:
        """Allow tokens for an audience, for a tenant's containers that a policy trusts."""
        person.must_be(Role.ADMIN)

        def add(connection: Connection) -> str:
            return issuing.grant(
                connection, person.name, given.tenant, given.policy, given.audience
            )

        return {"uid": await change(add)}

    @router.delete("/v1/token-grants/{uid}", status_code=204, responses=ERRORS)
    async def remove_grant(uid: Uid, person: Anybody) -> None:
        """Allow it no more."""
        person.must_be(Role.ADMIN)
        await change(lambda connection: issuing.withdraw(connection, person.name, uid))

    return router


def _form(body: bytes) -> dict[str, str]:
    from urllib.parse import parse_qs

    text = body.decode("utf-8", "replace")
    try:
        found = parse_qs(text, max_num_fields=16)
    except ValueError:
        return {}
    return {name: values[0] for name, values in found.items()}

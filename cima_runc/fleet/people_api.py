"""HTTP for people and programs, by token: what :mod:`.queries` shows and :mod:`.changes` changes.

``Authorization: Bearer`` with a token of the service. Errors are objects with ``error`` and
``hint``. A tenant sees what is his alone. Source: fleet, sections 5 and 8.
"""

import time
from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi import Path as PathParameter
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Connection

from cima_runc.fleet import access, changes, enrolments, metrics, queries
from cima_runc.fleet.access import ForbiddenError, LimitedError, NotSignedInError, Person, Role
from cima_runc.fleet.difference import difference
from cima_runc.fleet.hosts_api import AkName, address_of
from cima_runc.fleet.service import Service
from cima_runc.fleet.webhooks import Private

_Any = TypeVar("_Any")
Uid = Annotated[str, PathParameter(pattern=r"^[0-9a-f]{6,24}$")]
Name = Annotated[str, PathParameter(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
Limit = Annotated[int, Query(ge=1, le=queries.MOST)]
_Text = Annotated[str, Field(min_length=1, max_length=4096)]
_Short = Annotated[str, Field(min_length=1, max_length=253)]
_After = Annotated[str | None, Query(max_length=100)]
_Word = Annotated[str | None, Query(max_length=4096)]
_Verdict = Annotated[Literal["TRUSTED", "UNTRUSTED", "STALE", "UNKNOWN"] | None, Query()]
ERRORS: dict[int | str, dict[str, Any]] = {
    code: {} for code in (400, 401, 403, 404, 413, 422, 429, 503)
}


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Approval(_Body):
    """What lets a waiting host join."""

    labels: Annotated[dict[_Short, _Short], Field(max_length=64)] = {}
    without_ek_certificate: bool = False
    replace: bool = False


class NewAssignment(_Body):
    """Which containers a policy is for."""

    policy: _Short
    match: Annotated[dict[_Short, _Text | dict[_Short, _Short]], Field(max_length=4)] = {}
    mode: Literal["enforce", "observe"] = "enforce"
    image_reference: _Short | None = None
    host_reference: _Short | None = None


class NewJoinToken(_Body):
    """A token that lets one host join."""

    labels: Annotated[dict[_Short, _Short], Field(max_length=64)] = {}
    hours: Annotated[float, Field(gt=0, le=720)] = 1.0
    without_ek_certificate: bool = False


class NewToken(_Body):
    """A token for a person or a program."""

    name: _Short
    role: Role
    tenant: _Short | None = None
    days: Annotated[float, Field(gt=0, le=3650)] | None = None


class NewTenant(_Body):
    """A tenant's keys."""

    keys: Annotated[list[Annotated[str, Field(max_length=256)]], Field(max_length=64)] = []


class NewWebhook(_Body):
    """Where events are sent."""

    url: Annotated[str, Field(min_length=1, max_length=2048)]
    kinds: Annotated[list[_Short], Field(max_length=32)] = []


class NewLabels(_Body):
    """A host's labels."""

    labels: Annotated[dict[_Short, _Short], Field(max_length=64)]


def recognised(service: Service) -> Callable[..., Any]:
    """Return what tells who asks, for FastAPI's Depends."""

    def who(secret: str) -> Person:
        with service.database.read() as connection:
            return access.person_of(connection, secret)

    async def person(
        request: Request, authorization: Annotated[str | None, Header()] = None
    ) -> Person:
        scheme, _, secret = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not secret:
            raise NotSignedInError(
                "a token is wanted: Authorization: Bearer", hint="cima fleet tokens"
            )
        try:
            found: Person = await service.run(who, secret)
        except NotSignedInError:
            # Whose token is good is never limited by others behind the same address.
            if not service.rates.refused.allows(address_of(request), time.monotonic()):
                raise LimitedError("too many requests", hint="ask again in a minute") from None
            raise
        service.admit(found)
        return found

    return person


def routes(service: Service) -> APIRouter:
    """Return the routes."""
    router = APIRouter(prefix="/v1", tags=["people"], responses=ERRORS)
    Anybody = Annotated[Person, Depends(recognised(service))]

    async def see(person: Person, view: Callable[[Connection, int | None], _Any]) -> _Any:
        """Show what a tenant may see of his own, and viewers of all."""

        def read() -> _Any:
            with service.database.read(person.tenant) as connection:
                return view(connection, person.tenant)

        if person.role is not Role.TENANT:
            person.must_be(Role.VIEWER)
        elif person.tenant is None:
            raise ForbiddenError("the token is of no tenant")
        found: _Any = await service.run(read)
        return found

    async def see_all(
        person: Person, view: Callable[[Connection], _Any], role: Role = Role.VIEWER
    ) -> _Any:
        """Show what is not for tenants."""
        person.must_be(role)
        return await see(person, lambda connection, _: view(connection))

    async def change(person: Person, role: Role | None, do: Callable[[Connection], _Any]) -> _Any:
        def write() -> _Any:
            with service.database.write() as connection:
                return do(connection)

        if role is not None:
            person.must_be(role)
        else:
            service.admit(person, changes=True)
        made: _Any = await service.run(write)
        return made

    # -- seeing -----------------------------------------------------------------------------------

    @router.get("/whoami")
    async def whoami(person: Anybody) -> dict[str, Any]:
        """Return who asks, and the role."""
        return {"name": person.name, "role": person.role.value}

    @router.get("/overview")
    async def overview(person: Anybody) -> dict[str, Any]:
        """Return how many containers have which verdict."""
        return await see(person, queries.overview)

    @router.get("/hosts")
    async def hosts(
        person: Anybody, after: _After = None, limit: Limit = 100
    ) -> list[dict[str, Any]]:
        """Return hosts."""
        return await see(
            person, lambda c, tenant: queries.hosts(c, tenant, after=after, limit=limit)
        )

    @router.get("/hosts/{ak}")
    async def host(ak: AkName, person: Anybody) -> dict[str, Any]:
        """Return one host."""
        return await see(person, lambda c, tenant: queries.host(c, ak, tenant))

    @router.get("/containers")
    async def containers(
        person: Anybody,
        *,
        verdict: _Verdict = None,
        host: _After = None,
        name: _After = None,
        image: _After = None,
        namespace: _After = None,
        everything: bool = False,
        after: _After = None,
        limit: Limit = 100,
    ) -> list[dict[str, Any]]:
        """Return containers; those that are gone or ended too with `everything`."""
        return await see(
            person,
            lambda c, tenant: queries.containers(
                c,
                tenant,
                verdict=verdict,
                ak_name=host,
                name=name,
                image=image,
                namespace=namespace,
                everything=everything,
                after=after,
                limit=limit,
            ),
        )

    @router.get("/containers/{uid}")
    async def container(uid: Uid, person: Anybody) -> dict[str, Any]:
        """Return one container, with findings and verdicts."""
        return await see(person, lambda c, tenant: queries.container(c, uid, tenant))

    @router.get("/containers/{uid}/records")
    async def records(
        uid: Uid,
        person: Anybody,
        since: Annotated[int, Query(ge=0, lt=2**53)] = 0,
        limit: Limit = 100,
    ) -> list[dict[str, Any]]:
        """Return a container's proved records."""
        return await see(
            person,
            lambda c, tenant: queries.records(c, uid, tenant, since=since, limit=limit),
        )

    @router.get("/find")
    async def find(
        person: Anybody, digest: _Word = None, path: _Word = None, limit: Limit = 100
    ) -> list[dict[str, Any]]:
        """Return where a file with this SHA-256, or at this path, ever ran."""
        return await see(
            person,
            lambda c, tenant: queries.find(c, tenant, digest=digest, path=path, limit=limit),
        )

    @router.get("/events")
    async def events(
        person: Anybody,
        *,
        kind: _After = None,
        container: _After = None,
        host: _After = None,
        before: _After = None,
        limit: Limit = 100,
    ) -> list[dict[str, Any]]:
        """Return events, the latest first."""
        return await see(
            person,
            lambda c, tenant: queries.events(
                c,
                tenant,
                kind=kind,
                container=container,
                ak_name=host,
                before=before,
                limit=limit,
            ),
        )

    @router.get("/audit")
    async def audit(
        person: Anybody,
        before: Annotated[int | None, Query(ge=0, lt=2**53)] = None,
        limit: Limit = 100,
    ) -> list[dict[str, Any]]:
        """Return audit entries, the latest first."""
        return await see_all(person, lambda c: queries.audit(c, before=before, limit=limit))

    @router.get("/audit/verify")
    async def audit_verify(person: Anybody) -> dict[str, Any]:
        """Walk along the chain of audit entries."""
        return await see_all(person, queries.audit_verified)

    @router.get("/policies")
    async def policies(person: Anybody) -> list[dict[str, Any]]:
        """Return all versions of all policies."""
        return await see_all(person, queries.policies)

    @router.get("/assignments")
    async def assignments(person: Anybody) -> list[dict[str, Any]]:
        """Return which containers which policy is for."""
        return await see_all(person, queries.assignments)

    @router.get("/references")
    async def references(person: Anybody) -> list[dict[str, Any]]:
        """Return all versions of all reference values."""
        return await see_all(person, queries.references)

    @router.get("/enrolments")
    async def waiting(person: Anybody) -> list[dict[str, Any]]:
        """Return the hosts that wait for a person."""
        return await see_all(person, queries.enrolments)

    @router.get("/join-tokens")
    async def join_tokens(person: Anybody) -> list[dict[str, Any]]:
        """Return join tokens, without what lets a host join."""
        return await see_all(person, queries.join_tokens, Role.OPERATOR)

    @router.get("/tokens")
    async def tokens(person: Anybody) -> list[dict[str, Any]]:
        """Return tokens, without what they are recognised by."""
        return await see_all(person, queries.tokens, Role.ADMIN)

    @router.get("/tenants")
    async def tenants(person: Anybody) -> list[dict[str, Any]]:
        """Return tenants and their keys."""
        return await see_all(person, queries.tenants)

    @router.get("/webhooks")
    async def webhooks(person: Anybody) -> list[dict[str, Any]]:
        """Return webhooks, and how their deliveries stand."""
        return await see(person, queries.webhooks)

    @router.get("/deliveries")
    async def deliveries(person: Anybody) -> list[dict[str, Any]]:
        """Return what webhooks did not take yet."""
        return await see(person, queries.undelivered)

    @router.get("/metrics", response_class=Response)
    async def all_metrics(person: Anybody) -> Response:
        """Return Prometheus metrics."""

        def text(connection: Connection) -> bytes:
            return service.metrics.text(queries.overview(connection), queries.backlog(connection))

        return Response(await see_all(person, text), media_type=metrics.CONTENT_TYPE)

    # -- changing ---------------------------------------------------------------------------------

    operator, admin = Role.OPERATOR, Role.ADMIN

    @router.post("/enrolments/{uid}/approve")
    async def approve(uid: Uid, given: Approval, person: Anybody) -> dict[str, Any]:
        """Let a waiting host join."""
        ak = await change(
            person,
            operator,
            lambda c: enrolments.approve(
                c,
                uid,
                actor=person.name,
                labels=given.labels,
                without_ek_certificate=given.without_ek_certificate,
                replace=given.replace,
            ),
        )
        return {"ak_name": ak}

    @router.post("/enrolments/{uid}/refuse", status_code=204)
    async def refuse(uid: Uid, person: Anybody) -> None:
        """Refuse a waiting host."""
        await change(person, operator, lambda c: enrolments.refuse(c, uid, actor=person.name))

    @router.post("/join-tokens", status_code=201)
    async def join_token(given: NewJoinToken, person: Anybody) -> dict[str, Any]:
        """Make a token that lets one host join; it is shown this once."""
        uid, secret = await change(
            person,
            operator,
            lambda c: changes.make_join_token(
                c,
                person.name,
                labels=given.labels,
                hours=given.hours,
                without_ek_certificate=given.without_ek_certificate,
            ),
        )
        return {"uid": uid, "token": secret}

    @router.delete("/join-tokens/{uid}", status_code=204)
    async def void_join_token(uid: Uid, person: Anybody) -> None:
        """Make a join token void."""
        await change(person, operator, lambda c: changes.void_join_token(c, person.name, uid))

    @router.delete("/hosts/{ak}", status_code=204)
    async def remove_host(ak: AkName, person: Anybody) -> None:
        """Take a host out of the fleet."""
        await change(person, operator, lambda c: changes.remove_host(c, person.name, ak))

    @router.put("/hosts/{ak}/labels", status_code=204)
    async def label_host(ak: AkName, given: NewLabels, person: Anybody) -> None:
        """Give a host other labels."""
        await change(
            person, operator, lambda c: changes.label_host(c, person.name, ak, given.labels)
        )

    text_body = {
        "requestBody": {
            "required": True,
            "content": {"application/octet-stream": {"schema": {"type": "string"}}},
        }
    }

    @router.put("/policies/{name}", status_code=201, openapi_extra=text_body)
    async def add_policy(name: Name, request: Request, person: Anybody) -> dict[str, Any]:
        """Make the next version of a policy: the body is TOML."""
        person.must_be(operator)
        try:
            text = (await request.body()).decode("utf-8")
        except UnicodeDecodeError as error:
            raise changes.ChangeError("the policy is not UTF-8") from error
        made = await change(
            person, operator, lambda c: changes.add_policy(c, person.name, name, text)
        )
        return {"policy": made}

    @router.post("/policies/{name}/diff", openapi_extra=text_body)
    async def policy_diff(name: Name, request: Request, person: Anybody) -> dict[str, Any]:
        """Return which verdicts a new version of a policy would change; nothing is changed."""
        person.must_be(operator)
        try:
            text = (await request.body()).decode("utf-8")
        except UnicodeDecodeError as error:
            raise changes.ChangeError("the policy is not UTF-8") from error
        found: dict[str, Any] = await service.run(
            difference, service.database, service.pcrs, name, text
        )
        return found

    @router.put("/references/{name}", status_code=201, openapi_extra=text_body)
    async def add_reference(name: Name, request: Request, person: Anybody) -> dict[str, Any]:
        """Make the next version of reference values: the body is a file of `cima reference`."""
        person.must_be(operator)
        read = await service.run(changes.new_reference, await request.body())
        made = await change(
            person, operator, lambda c: changes.add_reference(c, person.name, name, read)
        )
        return {"reference": made}

    @router.delete("/references/{name}", status_code=204)
    async def retire_reference(name: Name, person: Anybody) -> None:
        """Withdraw reference values."""
        await change(person, operator, lambda c: changes.retire_reference(c, person.name, name))

    @router.post("/assignments", status_code=201)
    async def assign(given: NewAssignment, person: Anybody) -> dict[str, Any]:
        """Assign a policy to containers."""
        uid = await change(
            person,
            operator,
            lambda c: changes.assign(
                c,
                person.name,
                given.policy,
                given.match,
                mode=given.mode,
                image_reference=given.image_reference,
                host_reference=given.host_reference,
            ),
        )
        return {"uid": uid}

    @router.delete("/assignments/{uid}", status_code=204)
    async def unassign(uid: Uid, person: Anybody) -> None:
        """Take an assignment back."""
        await change(person, operator, lambda c: changes.unassign(c, person.name, uid))

    @router.post("/tokens", status_code=201)
    async def token(given: NewToken, person: Anybody) -> dict[str, Any]:
        """Make a token; it is shown this once."""
        uid, secret = await change(
            person,
            admin,
            lambda c: changes.make_token(
                c, person.name, given.name, given.role, tenant=given.tenant, days=given.days
            ),
        )
        return {"uid": uid, "token": secret}

    @router.delete("/tokens/{uid}", status_code=204)
    async def revoke(uid: Uid, person: Anybody) -> None:
        """Revoke a token."""
        await change(person, admin, lambda c: changes.revoke_token(c, person.name, uid))

    @router.put("/tenants/{name}", status_code=204)
    async def tenant(name: Name, given: NewTenant, person: Anybody) -> None:
        """Make a tenant, or give one more keys."""
        await change(person, admin, lambda c: changes.add_tenant(c, person.name, name, given.keys))

    @router.post("/webhooks", status_code=201)
    async def add_webhook(given: NewWebhook, person: Anybody) -> dict[str, Any]:
        """Add a webhook: the operator's, or a tenant's for his own containers."""
        uid, secret = await change(
            person,
            None if person.role is Role.TENANT else operator,
            lambda c: changes.add_webhook(
                c,
                person.name,
                given.url,
                kinds=given.kinds,
                tenant=person.tenant,
                allow_private=Private.by(service.settings).of(person.tenant),
            ),
        )
        return {"uid": uid, "secret": secret}

    @router.delete("/webhooks/{uid}", status_code=204)
    async def remove_webhook(uid: Uid, person: Anybody) -> None:
        """Remove a webhook."""
        await change(
            person,
            None if person.role is Role.TENANT else operator,
            lambda c: changes.remove_webhook(c, person.name, uid, tenant=person.tenant),
        )

    @router.post("/events/{uid}/redeliver")
    async def redeliver(uid: Uid, person: Anybody) -> dict[str, Any]:
        """Send an event again to the webhooks that did not take it."""
        count = await change(person, operator, lambda c: changes.redeliver(c, person.name, uid))
        return {"deliveries": count}

    return router

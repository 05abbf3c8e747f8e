"""The page's views: server-rendered HTML for who signed in with a token of the service.

No script, no content from elsewhere; forms carry what only this session knows. Source: fleet,
section 9.
"""

import asyncio
import contextlib
import json
import time
from collections.abc import Awaitable, Callable
from functools import wraps
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qsl, quote

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from sqlalchemy import Connection

from cima_runc.base.errors import CimaError
from cima_runc.base.text import printable
from cima_runc.fleet import changes, enrolments, keys, oidc, queries
from cima_runc.fleet.access import (
    AccessError,
    ForbiddenError,
    LimitedError,
    NotSignedInError,
    Person,
    Role,
)
from cima_runc.fleet.database import DatabaseError
from cima_runc.fleet.hosts_api import AkName, address_of
from cima_runc.fleet.oidc import OidcError, Provider
from cima_runc.fleet.page import figures
from cima_runc.fleet.page.sessions import COOKIE, LIFETIME, PageSessions
from cima_runc.fleet.page.templates import render
from cima_runc.fleet.people_api import Uid
from cima_runc.fleet.service import Service
from cima_runc.fleet.verdicts import measured_line
from cima_runc.ml.contents import File

POLICY = (
    "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
"""Content-Security-Policy: a style sheet and forms of this site, and nothing else at all."""
_STATUS: tuple[tuple[type[CimaError], int], ...] = (
    (AccessError, 403),
    (LimitedError, 429),
    (queries.NoSuchThingError, 404),
    (changes.NotFoundError, 404),
    (enrolments.NoSuchEnrolmentError, 404),
    (DatabaseError, 503),
    (OidcError, 502),
)
_SIGN_ONS = 2
"""People who come from the provider at a time."""
_ROWS = 100
_View = Callable[..., Awaitable[Response]]


class FormError(AccessError):
    """A form was not made for this session."""


def routes(service: Service) -> APIRouter:
    """Return the routes."""
    router = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)
    with service.database.write() as connection:
        key = keys.key_of(connection, keys.SESSION)
    sessions = PageSessions(key)
    provider = Provider(service.settings.oidc, key) if service.settings.oidc is not None else None
    signing_on = asyncio.Semaphore(_SIGN_ONS)
    room = files("cima_runc.fleet.page")
    style, icon = room.joinpath("style.css").read_bytes(), room.joinpath("icon.svg").read_bytes()

    async def person_of(request: Request) -> Person:
        cookie = request.cookies.get(COOKIE)

        def read() -> Person:
            with service.database.read() as connection:
                return sessions.person(connection, cookie)

        found: Person = await service.run(read)
        service.admit(found)
        return found

    async def read(person: Person, view: Callable[[Connection, int | None], Any]) -> Any:
        if person.role is Role.TENANT and person.tenant is None:
            raise ForbiddenError("the token is of no tenant")
        tenant = person.tenant if person.role is Role.TENANT else None

        def work() -> Any:
            with service.database.read(tenant) as connection:
                return view(connection, tenant)

        return await service.run(work)

    async def form_of(request: Request) -> dict[str, str]:
        fields = _fields(await request.body(), 64)
        if not sessions.is_form(request.cookies.get(COOKIE), fields.get("form", "")):
            raise FormError("this form is not of your session", hint="open its page again")
        return fields

    def shown(request: Request, person: Person | None, name: str, **values: Any) -> HTMLResponse:
        status = values.pop("status", 200)
        cookie = request.cookies.get(COOKIE)
        html = render(
            name,
            person=person,
            is_tenant=person is not None and person.role is Role.TENANT,
            may_change=person is not None and person.role in {Role.OPERATOR, Role.ADMIN},
            form=sessions.form(cookie) if cookie and person else "",
            path=request.url.path,
            **values,
        )
        return HTMLResponse(html, status)

    def page(view: _View) -> _View:
        """Answer errors as a page, and say to browsers what it may load: next to nothing."""

        @wraps(view)
        async def safely(request: Request, **named: Any) -> Response:
            try:
                answer = await view(request, **named)
            except NotSignedInError:
                where = quote(str(request.url.path), safe="/")
                answer = RedirectResponse(f"/sign-in?next={where}", 303)
            except CimaError as error:
                status = next((code for kind, code in _STATUS if isinstance(error, kind)), 400)
                answer = shown(request, None, "error", error=error, status=status)
            answer.headers["Content-Security-Policy"] = POLICY
            answer.headers["Cross-Origin-Opener-Policy"] = "same-origin"
            return answer

        return safely

    def all_of(person: Person) -> None:
        """See that this is not a tenant: what all share is not for them."""
        person.must_be(Role.VIEWER)

    # -- who it is --------------------------------------------------------------------------------

    @router.get("/style.css")
    async def style_sheet() -> Response:
        """Return the style sheet."""
        return Response(style, media_type="text/css")

    @router.get("/icon.svg")
    async def the_icon() -> Response:
        """Return the icon."""
        return Response(icon, media_type="image/svg+xml")

    @router.get("/sign-in")
    @page
    async def sign_in_form(request: Request) -> Response:
        """Ask for a token."""
        return shown(
            request,
            None,
            "sign_in",
            next=_own(request.query_params.get("next")),
            wrong="",
            has_provider=provider is not None,
        )

    @router.post("/sign-in")
    @page
    async def sign_in(request: Request) -> Response:
        """Take a token, and give a cookie."""
        if request.headers.get("Sec-Fetch-Site", "same-origin") not in {"same-origin", "none"}:
            raise FormError("another site sent this form", hint="open the page yourself")
        fields = _fields(await request.body(), 8)
        where = _own(fields.get("next"))

        def work() -> str:
            with service.database.read() as connection:
                return sessions.sign_in(connection, fields.get("token", "").strip())

        try:
            cookie = await service.run(work)
        except NotSignedInError:
            if not service.rates.refused.allows(address_of(request), time.monotonic()):
                raise LimitedError("too many attempts", hint="try again in a minute") from None
            return shown(
                request,
                None,
                "sign_in",
                next=where,
                wrong="This is no token here.",
                has_provider=provider is not None,
                status=403,
            )
        answer = RedirectResponse(where, 303)
        keep(answer, cookie)
        return answer

    def keep(answer: Response, cookie: str) -> None:
        """Have the browser keep who is signed in."""
        answer.set_cookie(
            COOKIE,
            cookie,
            max_age=LIFETIME,
            path="/",
            secure=True,
            httponly=True,
            samesite="strict",
        )

    async def ask_provider(request: Request, do: Callable[[Provider], Any]) -> Any:
        """Do what waits for the provider, away from those threads that hosts wait for."""
        if provider is None:
            raise queries.NoSuchThingError("there is no provider", hint="oidc in the settings")
        address, now = address_of(request), time.monotonic()
        # Taken now, and given back if it comes to something: many may come at once.
        if not service.rates.refused.allows(address, now):
            raise LimitedError("too many attempts", hint="try again in a minute")
        async with signing_on:
            done = await asyncio.to_thread(do, provider)
        service.rates.refused.give_back(address, now)
        return done

    @router.get("/sign-in/provider")
    @page
    async def to_provider(request: Request) -> Response:
        """Send somebody to the provider."""
        where = _own(request.query_params.get("next"))
        url, pending = await ask_provider(request, lambda one: one.begin(where))
        answer = RedirectResponse(url, 303)
        # Lax: the provider's page sends the browser back.
        answer.set_cookie(
            oidc.COOKIE,
            pending,
            max_age=oidc.PENDING_SECONDS,
            path="/",
            secure=True,
            httponly=True,
            samesite="lax",
        )
        return answer

    @router.get("/sign-in/callback")
    @page
    async def from_provider(request: Request) -> Response:
        """Take somebody back from the provider, and give a cookie."""
        pending, query = request.cookies.get(oidc.COOKIE), request.url.query
        who, where = await ask_provider(request, lambda one: one.finish(pending, query))

        def work() -> str:
            with service.database.write() as connection:
                return sessions.sign_in(connection, oidc.sign_on(connection, who))

        cookie = await service.run(work)
        # A page in between: browsers do not show a strict cookie where another site has begun.
        answer = shown(request, None, "signed_on", next=_own(where))
        keep(answer, cookie)
        answer.delete_cookie(oidc.COOKIE, path="/", secure=True, httponly=True, samesite="lax")
        return answer

    @router.post("/sign-out")
    @page
    async def sign_out(request: Request) -> Response:
        """Take the cookie back."""
        await form_of(request)
        answer = RedirectResponse("/sign-in", 303)
        answer.delete_cookie(COOKIE, path="/", secure=True, httponly=True, samesite="strict")
        return answer

    # -- views ------------------------------------------------------------------------------------

    @router.get("/")
    @page
    async def overview(request: Request) -> Response:
        """Show the whole."""
        person = await person_of(request)
        found = await read(
            person,
            lambda c, tenant: {
                "now": queries.overview(c, tenant),
                "hours": figures.by_hour(c, tenant),
                "findings": figures.latest_findings(c, tenant),
                "untrusted": queries.containers(c, tenant, verdict="UNTRUSTED", limit=10),
            },
        )
        most = max((sum(hour["counts"].values()) for hour in found["hours"]), default=0)
        return shown(request, person, "overview", most=max(most, 1), **found)

    @router.get("/hosts")
    @page
    async def hosts(request: Request) -> Response:
        """Show hosts."""
        person, after = await person_of(request), request.query_params.get("after")
        rows = await read(
            person, lambda c, tenant: queries.hosts(c, tenant, after=after, limit=_ROWS)
        )
        more = f"/hosts?after={quote(rows[-1]['ak_name'])}" if len(rows) == _ROWS else ""
        return shown(request, person, "hosts", rows=rows, more=more)

    @router.get("/hosts/{ak}")
    @page
    async def host(request: Request, ak: AkName) -> Response:
        """Show one host."""
        person = await person_of(request)
        found = await read(
            person,
            lambda c, tenant: {
                "host": queries.host(c, ak, tenant),
                "rows": queries.containers(c, tenant, ak_name=ak, limit=_ROWS),
                "events": queries.events(c, tenant, ak_name=ak, limit=20),
            },
        )
        return shown(request, person, "host", **found)

    @router.get("/containers")
    @page
    async def containers(request: Request) -> Response:
        """Show containers."""
        person, asked = await person_of(request), request.query_params
        kept = {
            key: asked[key] for key in ("verdict", "name", "namespace", "image") if asked.get(key)
        }
        everything = bool(asked.get("all"))
        rows = await read(
            person,
            lambda c, tenant: queries.containers(
                c, tenant, **kept, everything=everything, after=asked.get("after"), limit=_ROWS
            ),
        )
        more = ""
        if len(rows) == _ROWS:
            named = {**kept, **({"all": "1"} if everything else {}), "after": rows[-1]["uid"]}
            more = "/containers?" + "&".join(
                f"{key}={quote(value)}" for key, value in named.items()
            )
        return shown(
            request, person, "containers", rows=rows, more=more, asked=kept, everything=everything
        )

    @router.get("/containers/{uid}")
    @page
    async def container(request: Request, uid: Uid) -> Response:
        """Show one container, findings first."""
        person = await person_of(request)
        since = _number(request.query_params.get("since"))
        found = await read(
            person,
            lambda c, tenant: {
                "one": queries.container(c, uid, tenant),
                "first": queries.records(c, uid, tenant, limit=20),
                "records": queries.records(c, uid, tenant, since=since, limit=_ROWS),
            },
        )
        made = {row["record"].get("content", {}).get("type"): row for row in found.pop("first")}
        rows = [_record(row) for row in found.pop("records")]
        last = rows[-1]["number"] if len(rows) == _ROWS else None
        more = f"/containers/{uid}?since={last + 1}#ran" if last is not None else ""
        return shown(
            request,
            person,
            "container",
            rows=rows,
            more=more,
            configuration=made.get("config"),
            layers=made.get("rootfs"),
            **found,
        )

    @router.get("/images/{digest}")
    @page
    async def image(request: Request, digest: str) -> Response:
        """Show an image: its reference values, and where it is and was."""
        person = await person_of(request)
        rows = await read(
            person,
            lambda c, tenant: queries.containers(
                c, tenant, image=digest, everything=True, limit=queries.MOST
            ),
        )
        references = []
        if person.role is not Role.TENANT:
            references = [
                row
                for row in await read(person, lambda c, _: queries.references(c))
                if row["image"] == digest
            ]
        if not rows and not references:
            raise queries.NoSuchThingError(
                "there is no such image here", hint="cima fleet references"
            )
        return shown(request, person, "image", digest=digest, rows=rows, references=references)

    @router.get("/search")
    @page
    async def search(request: Request) -> Response:
        """Show where a file ever ran, by its digest or path."""
        person, word = await person_of(request), request.query_params.get("q", "")[:4096].strip()
        digits = word.removeprefix("sha256:").lower()
        is_digest = len(digits) == 64 and all(one in "0123456789abcdef" for one in digits)
        rows = []
        if word:
            rows = await read(
                person,
                lambda c, tenant: queries.find(
                    c,
                    tenant,
                    digest=digits if is_digest else None,
                    path=None if is_digest else word,
                    limit=queries.MOST,
                ),
            )
        return shown(request, person, "search", word=word, rows=rows, most=queries.MOST)

    @router.get("/policies")
    @page
    async def policies(request: Request) -> Response:
        """Show policies with their effect."""
        person = await person_of(request)
        all_of(person)
        found = await read(
            person,
            lambda c, _: {
                "policies": queries.policies(c),
                "assignments": queries.assignments(c),
                "references": queries.references(c),
            },
        )
        return shown(request, person, "policies", **found)

    @router.get("/enrolments")
    @page
    async def waiting(request: Request) -> Response:
        """Show hosts that wait for a person."""
        person = await person_of(request)
        all_of(person)
        rows = await read(person, lambda c, _: queries.enrolments(c))
        return shown(request, person, "enrolments", rows=rows)

    @router.post("/enrolments/{uid}/{decision}")
    @page
    async def decide(request: Request, uid: Uid, decision: str) -> Response:
        """Let a host join, or refuse it."""
        person, fields = await person_of(request), await form_of(request)
        person.must_be(Role.OPERATOR)
        labels = _labels(fields.get("labels", ""))

        def write() -> None:
            with service.database.write() as connection:
                if decision == "approve":
                    enrolments.approve(
                        connection,
                        uid,
                        actor=person.name,
                        labels=labels,
                        without_ek_certificate=fields.get("without_ek_certificate") == "on",
                        replace=fields.get("replace") == "on",
                    )
                else:
                    enrolments.refuse(connection, uid, actor=person.name)

        if decision not in {"approve", "refuse"}:
            raise queries.NoSuchThingError("there is no such decision", hint="approve or refuse")
        await service.run(write)
        return RedirectResponse("/enrolments", 303)

    @router.get("/events")
    @page
    async def events(request: Request) -> Response:
        """Show what happened."""
        person, before = await person_of(request), request.query_params.get("before")
        rows = await read(
            person, lambda c, tenant: queries.events(c, tenant, before=before, limit=_ROWS)
        )
        more = f"/events?before={quote(rows[-1]['uid'])}" if len(rows) == _ROWS else ""
        return shown(request, person, "events", rows=rows, more=more)

    @router.get("/webhooks")
    @page
    async def webhooks(request: Request) -> Response:
        """Show webhooks, and what they did not take."""
        person = await person_of(request)
        found = await read(
            person,
            lambda c, tenant: {
                "rows": queries.webhooks(c, tenant),
                "failed": queries.undelivered(c, tenant),
            },
        )
        return shown(request, person, "webhooks", **found)

    @router.get("/audit")
    @page
    async def audit(request: Request) -> Response:
        """Show what persons changed, and whether what is shown of the chain holds."""
        person = await person_of(request)
        all_of(person)
        before = _number(request.query_params.get("before")) or None
        found = await read(
            person,
            lambda c, _: {
                "rows": queries.audit(c, before=before, limit=_ROWS),
                "chain": queries.audit_some_verified(c, before=before, limit=_ROWS),
            },
        )
        rows = found["rows"]
        more = f"/audit?before={rows[-1]['number']}" if len(rows) == _ROWS else ""
        return shown(request, person, "audit", more=more, **found)

    return router


def _fields(body: bytes, most: int) -> dict[str, str]:
    """Return what a form holds.

    Raises:
        FormError: more than ``most`` fields; no form of ours has as many.
    """
    try:
        return dict(parse_qsl(body.decode("ascii", "replace"), max_num_fields=most))
    except ValueError as error:
        raise FormError("this form has too many fields", hint="open its page again") from error


def _own(where: str | None) -> str:
    """Return a path of this site, whatever was asked for."""
    if not where or not where.startswith("/") or where[1:2] in {"/", "\\"} or len(where) > 500:
        return "/"
    return quote(where, safe="/")


def _number(text: str | None) -> int:
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 16 else 0


def _labels(text: str) -> dict[str, str]:
    labels = {}
    for one in text.split():
        key, separator, value = one.partition("=")
        if not separator or not key or not value:
            raise changes.ChangeError(f"{printable(one)} is no label", hint="KEY=VALUE")
        labels[key] = value
    return labels


def _record(row: dict[str, Any]) -> dict[str, Any]:
    """Return a stored record as the page shows it: of a file its path, of others their content."""
    raw, file = row["record"], None
    # Stored as it was sent and proved: it can be read, or is shown as it is.
    with contextlib.suppress(CimaError):
        found = measured_line(json.dumps(raw).encode("utf-8")).content
        if isinstance(found, File):
            file = {"path": printable(found.path), "digest": found.digest.hex()}
    content = raw.get("content", {})
    return {
        "number": int(raw.get("recnum", 0)),
        "proved": row["proved"],
        "type": "file" if file else content.get("type") or raw.get("content_type"),
        "content": content,
        "file": file,
    }

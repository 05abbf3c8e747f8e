"""HTTP for hosts: nonces, reports, answers, enrolment. Source: fleet, sections 3 and 4."""

import asyncio
import contextlib
import time
from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Query, Request, Response

from cima_runc.base import limits
from cima_runc.base.errors import CimaError
from cima_runc.base.rate import network
from cima_runc.evidence.compressed import BombError, decompressed
from cima_runc.evidence.enrolment import EnrolmentAnswer, parse
from cima_runc.evidence.errors import EvidenceError, EvidenceTooLargeError
from cima_runc.evidence.host_enrolment import EnrolmentChallenge, EnrolmentState, HostEnrolment
from cima_runc.evidence.host_enrolment import parse as parse_host
from cima_runc.evidence.report_answer import LONG_POLL, Accepted, Invitation, Refused, Resync
from cima_runc.evidence.report_nonce import NonceRefusedError
from cima_runc.fleet import clock, enrolments, passed_on
from cima_runc.fleet.access import LimitedError
from cima_runc.fleet.bodies import Bodies
from cima_runc.fleet.database import DatabaseError
from cima_runc.fleet.reports import NotEnrolledError, Outcome, refusal
from cima_runc.fleet.service import Service
from cima_runc.verifier.errors import VerificationError

AkName = Annotated[str, Path(pattern=r"^000b[0-9a-f]{64}$", description="TPM name of the key")]
RequestName = Annotated[str, Path(pattern=r"^[0-9A-Za-z_-]{1,64}$")]
_JSON = "application/json"
_RETRY = {"Retry-After": "5"}


class EnrolmentClosedError(CimaError):
    """Nobody can join now."""


def address_of(request: Request) -> str:
    """Return what counts as one address of who asks."""
    return network(request.client.host) if request.client is not None else "unknown"


class Frequent:
    """The two requests that hosts make all the time."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self.strangers = Bodies()
        # Of each host: a report beside one that it has given up waiting for, and an answer.
        self.reports = Bodies(2 * limits.REPORT, None)
        self.answers = Bodies(limits.EVIDENCE, None)
        self.enrolments = Bodies(limits.STRANGERS_ENROLMENTS, 8 * limits.STRANGERS_ENROLMENTS)

    def session_is_good(self, authorization: str | None, ak: str) -> bool:
        """Return whether somebody is the host that the service has proved a while ago."""
        scheme, _, session = (authorization or "").partition(" ")
        sessions = self._service.sessions
        return scheme.lower() == "bearer" and sessions.is_good(session, ak, clock.now() / 1000)

    async def nonce(self, request: Request, ak: str, wait: float) -> Response:
        """Answer with a nonce; to a host that is proved after ``wait`` seconds at most.

        Raises:
            LimitedError: this host, or who is not proved from this address, asks too often.
        """
        service, rates = self._service, self._service.rates
        proved = self.session_is_good(request.headers.get("authorization"), ak)
        rate, who = (rates.polls, ak) if proved else (rates.nonces, address_of(request))
        if not rate.allows(who, time.monotonic()):
            raise LimitedError("too many nonces", hint="ask again in a minute")
        if wait and proved and not service.is_ending():
            with service.polls.on(ak) as event, contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await event.wait()
        if proved:
            return _answer(200, await service.run_for_host(self._invite, ak))
        # Nothing is looked up for somebody who is not proved.
        made = Invitation(
            nonce=service.nonces.issue(bytes.fromhex(ak), clock.now() / 1000),
            interval=service.settings.interval,
            min_interval=service.settings.min_interval,
        )
        return _answer(200, made)

    def _invite(self, ak: str) -> Invitation:
        service = self._service
        with service.database.write() as connection:
            return service.reports.invitation(ak, proved=True, connection=connection)

    async def report(self, request: Request, ak: str) -> Response:
        """Take a report; answer what became of it.

        Raises:
            LimitedError: too much is sent by this host, or from this address, at a time.
        """
        rates, metrics = self._service.rates, self._service.metrics
        now = time.monotonic()
        # Neither somebody who sends rubbish, nor a host that reports all the time, slows others:
        # nor those behind the same address, where they have reported before.
        proved = self.session_is_good(request.headers.get("authorization"), ak)
        who = ak if proved else address_of(request)
        has_room = (
            rates.reports.has_room(ak, now)
            and rates.volume.has_room(ak, now)
            # Taken now, and given back if it is not refused: many may come at once.
            and rates.refused.allows(who, now)
        )
        if not has_room:
            metrics.reports.labels("limited").inc()
            limited = LimitedError("too many reports", hint="report again in a minute")
            return _answer(429, refusal(limited), _RETRY)
        bodies = self.reports if proved else self.strangers
        is_refused = False
        try:
            async with bodies.of(request, who) as body:
                answer, is_refused = await self._take(ak, request, body)
                return answer
        finally:
            if not is_refused:
                rates.refused.give_back(who, now)

    async def _take(self, ak: str, request: Request, body: bytes) -> tuple[Response, bool]:
        """Return the answer to a report, and whether it is refused."""
        service, rates, metrics = self._service, self._service.rates, self._service.metrics
        encoding, now = request.headers.get("content-encoding"), time.monotonic()

        def take() -> tuple[Outcome, int]:
            raw = decompressed(body, encoding)
            return service.reports.take(ak, raw), len(raw)

        began = time.perf_counter()
        try:
            outcome, size = await service.run_for_host(take)
        except DatabaseError as error:
            metrics.reports.labels("failed").inc()
            return _answer(503, refusal(error), _RETRY), False
        except CimaError as error:
            metrics.reports.labels("refused").inc()
            metrics.refusals.labels(type(error).__name__).inc()
            return _answer(_status(error), refusal(error)), True
        finally:
            metrics.seconds.observe(time.perf_counter() - began)
        rates.reports.spend(ak, now, 1)
        rates.volume.spend(ak, now, size / limits.MIB)
        metrics.reports.labels("accepted" if outcome.is_accepted else "resync").inc()
        return _answer(200 if outcome.is_accepted else 409, outcome.answer), False


def routes(service: Service, frequent: Frequent) -> APIRouter:
    """Return the routes."""
    router = APIRouter(tags=["hosts"])
    rates = service.rates

    @router.get("/v1/hosts/{ak}/nonce", response_model=Invitation, responses={429: {}, 503: {}})
    async def nonce(
        ak: AkName,
        request: Request,
        wait: Annotated[float, Query(ge=0, le=LONG_POLL)] = 0.0,
    ) -> Response:
        """Return a nonce for the next report; with `wait`, when a tenant asks for something or the
        time is up."""
        return await frequent.nonce(request, ak, wait)

    @router.post(
        "/v1/hosts/{ak}/reports",
        response_model=Accepted,
        responses={
            400: {"model": Refused},
            403: {"model": Refused},
            404: {"model": Refused},
            409: {"model": Resync},
            413: {"model": Refused},
            422: {"model": Refused},
            429: {"model": Refused},
            503: {"model": Refused},
        },
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {"application/octet-stream": {"schema": {"type": "string"}}},
            }
        },
    )
    async def report(ak: AkName, request: Request) -> Response:
        """Take a host's report: two lines of JSON, the payload and the proof."""
        return await frequent.report(request, ak)

    @router.post("/v1/hosts/{ak}/answers/{name}", status_code=204, responses={403: {}, 404: {}})
    async def answer(
        ak: AkName,
        name: RequestName,
        request: Request,
        *,
        content_type: Annotated[str | None, Header()] = None,
        content_encoding: Annotated[str | None, Header()] = None,
        authorization: Annotated[str | None, Header()] = None,
    ) -> Response:
        """Take a host's answer to a tenant's request."""
        if not frequent.session_is_good(authorization, ak):
            raise NotEnrolledError("the session is not this host's, or has ended")
        now = time.monotonic()
        if not rates.answered.has_room(ak, now) or not rates.answers.allows(ak, now):
            raise LimitedError("too many answers", hint="answer again in a minute")
        status = 200 if (content_type or "").startswith(_JSON) else 502

        def keep(body: bytes) -> int | None:
            with service.database.read() as connection:
                if not passed_on.is_wanted(connection, ak, name):
                    return None
            raw = decompressed(body, content_encoding, limits.EVIDENCE)
            with service.database.write() as connection:
                return len(raw) if passed_on.answer(connection, ak, name, status, raw) else None

        async with frequent.answers.of(request, ak) as body:
            size = await service.run_for_host(keep, body)
        if size is None:
            raise passed_on.NotHereError("nobody waits for this answer any more")
        rates.answered.spend(ak, now, size / limits.MIB)
        return Response(status_code=204)

    def begin(asked: HostEnrolment) -> EnrolmentChallenge:
        hardware = enrolments.hardware_of(asked.tpm, service.manufacturers)
        with service.database.write() as connection:
            return enrolments.begin(connection, asked, hardware)

    def opened(name: str, given: EnrolmentAnswer) -> EnrolmentState:
        with service.database.write() as connection:
            return enrolments.answer(connection, name, given)

    def state(name: str) -> EnrolmentState:
        with service.database.read() as connection:
            return enrolments.state_of(connection, name)

    def may_enrol(request: Request) -> None:
        if not service.settings.enrolment:
            raise EnrolmentClosedError(
                "hosts cannot join now", hint="enrolment = true in the service's settings"
            )
        if not rates.enrolments.allows(address_of(request), time.monotonic()):
            raise LimitedError("too many attempts to join", hint="try again in a minute")

    @router.post(
        "/v1/enrolments",
        response_model=EnrolmentChallenge,
        responses={400: {}, 403: {}, 429: {}},
        openapi_extra=_body_of(HostEnrolment),
    )
    async def enrol(request: Request) -> Response:
        """Begin to join: the answer is a credential for the host's TPM."""
        may_enrol(request)
        async with frequent.enrolments.of(request, address_of(request)) as body:
            asked = parse_host(HostEnrolment, small_body(request, body), "the enrolment")
            return _answer(200, await service.run(begin, asked))

    @router.post(
        "/v1/enrolments/{name}/answer",
        response_model=EnrolmentState,
        responses={400: {}, 403: {}, 404: {}, 429: {}},
        openapi_extra=_body_of(EnrolmentAnswer),
    )
    async def activated(name: RequestName, request: Request) -> Response:
        """Give what was in the credential."""
        may_enrol(request)
        async with frequent.enrolments.of(request, address_of(request)) as body:
            given = parse(EnrolmentAnswer, small_body(request, body), "the answer")
            return _answer(200, await service.run(opened, name, given))

    @router.get(
        "/v1/enrolments/{name}", response_model=EnrolmentState, responses={404: {}, 429: {}}
    )
    async def enrolment(name: RequestName, request: Request) -> Response:
        """Return how an enrolment stands."""
        if not rates.nonces.allows(address_of(request), time.monotonic()):
            raise LimitedError("too many requests", hint="ask again in a minute")
        return _answer(200, await service.run(state, name))

    return router


def small_body(request: Request, body: bytes) -> bytes:
    """Return a request's body as it was before it was compressed.

    Raises:
        EvidenceError: it is not compressed as it says, or becomes too large.
    """
    encoding = request.headers.get("content-encoding")
    return decompressed(body, encoding, limits.VERIFIER_INPUT)


def _body_of(kind: Any) -> dict[str, Any]:
    schema = {"type": "object", "description": kind.__doc__}
    return {"requestBody": {"required": True, "content": {_JSON: {"schema": schema}}}}


def _answer(status: int, made: Any, headers: dict[str, str] | None = None) -> Response:
    return Response(made.model_dump_json(), status, headers, _JSON)


def _status(error: CimaError) -> int:
    if isinstance(error, NotEnrolledError):
        return 404
    if isinstance(error, EvidenceTooLargeError | BombError):
        return 413
    if isinstance(error, EvidenceError):
        return 400
    if isinstance(error, NonceRefusedError):
        return 403
    if isinstance(error, VerificationError):
        return 422
    return 400

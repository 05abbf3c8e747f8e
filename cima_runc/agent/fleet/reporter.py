"""The reporter: pushes reports, in threads of its own; nothing of a container's start waits for it.

One thread reports: after each interval, and soon after a register has changed. Another holds a long
poll, so that tenants' requests come at once; a third answers them. Without an answer all back off,
with jitter, and what is not confirmed is sent again. Source: fleet, section 3.
"""

import asyncio
import logging
import queue
import random
import re
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeVar

from cima_runc.agent import enrolment
from cima_runc.agent.assembly import Assembly
from cima_runc.agent.attester import AttestError, MovedError, Quoted
from cima_runc.agent.fleet.client import Client, ServiceError, ServiceRefusedError, refusal_of
from cima_runc.agent.fleet.line import StoredRecords, compose
from cima_runc.agent.fleet.note import FILE, Note
from cima_runc.agent.fleet.snapshot import Listing, Sent, Snapshot, is_readable, take_snapshot
from cima_runc.agent.journald import about
from cima_runc.agent.rooms import Rooms, Submit, Turn
from cima_runc.base import limits
from cima_runc.base.bounded import read_bounded
from cima_runc.base.errors import CimaError
from cima_runc.base.text import printable
from cima_runc.config import Settings
from cima_runc.evidence.aggregation import Place
from cima_runc.evidence.enrolment import Challenge
from cima_runc.evidence.host_enrolment import (
    EnrolmentChallenge,
    EnrolmentState,
    HostEnrolment,
    parse,
)
from cima_runc.evidence.models import AggregationPart, QuotePart
from cima_runc.evidence.report import Proof, claim_digest, report_body
from cima_runc.evidence.report_answer import (
    LONG_POLL,
    Accepted,
    Invitation,
    Refused,
    Resync,
    TenantChallenge,
    TenantRequest,
)
from cima_runc.evidence.request import Request
from cima_runc.ml.store import ContainerNote, Store
from cima_runc.tpm.structures import parse_public

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

_NONCE_SECONDS = 45.0
"""How old a nonce may be when a report is begun with it; it lives for 60 seconds."""
_ATTEMPTS = 4
"""Reports that are made anew since another bind came between, before one is made in one turn of the
writer's thread, with few records."""
_FEW_RECORDS = 64 * limits.KIB
_BACKOFF_FIRST, _BACKOFF_LAST = 1.0, 300.0
"""Seconds between tries; the longest is what a service that is back has to wait for."""
_APPROVAL_SECONDS = 30.0
"""How often is asked whether somebody has approved of the host."""
_ANSWERED = 1024
"""Tenants' requests that are remembered, so that none is answered twice."""
_WORK_SECONDS = 120.0


_ANSWER_TRIES = 3
_Body = tuple[str, bytes]
"""Media type, and what is sent."""
_JSON, _PROBLEM = "application/json", "application/problem+json"
_LEFTOVERS = 64
"""Runs that were let go of which one report lists."""
_LEFTOVER_TRIES = 64
"""Reports that list one of them at most: what the run after it does not prove by then, it never
will."""


@dataclass
class _Leftover:
    listing: Listing
    tries: int = _LEFTOVER_TRIES


class Attest(Protocol):
    """Makes evidence for somebody outside."""

    def __call__(self, request: Request, *, source: str | None) -> Coroutine[Any, Any, bytes]:
        """Return evidence; as :meth:`cima_runc.agent.main.Agent.attest`."""


class _Stop(Exception):
    """The agent ends."""


class Reporter:
    """Reports to the fleet's service until :meth:`stop`."""

    def __init__(
        self,
        *,
        settings: Settings,
        boot_id: str,
        store: Store,
        assembly: Assembly,
        submit: Submit,
        attest: Attest,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        """``submit`` and ``attest`` run in ``loop``."""
        self._settings = settings
        self._boot_id = boot_id
        self._store = store
        self._assembly = assembly
        self._submit = submit
        self._attest = attest
        self._loop = loop
        self._clients = [Client(settings.fleet) for _ in range(3)]
        self._stored = StoredRecords(store, assembly)
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._is_on = threading.Event()
        """Set while the service takes reports."""
        self._lock = threading.Lock()
        self._invitation: tuple[Invitation, float] | None = None
        self._session: str | None = None
        self._interval = settings.fleet.interval
        self._min_interval = settings.fleet.min_interval
        self._mark: object = None
        self._ak = b""
        self._note: Note | None = None
        self._leftovers: dict[int, _Leftover] = {}
        self._followed: set[int] = set()
        """Runs that were looked at, whether they are left over."""
        self._with_boot_log = True
        self._asked: queue.Queue[TenantRequest | TenantChallenge | None] = queue.Queue()
        self._handed: OrderedDict[str, None] = OrderedDict()
        """Names of requests that were taken, or are in the queue."""
        self.last: float | None = None
        """When the last report was accepted, of a monotonic clock."""
        self.trouble: str | None = "nothing was reported yet"
        """Why reports are not accepted at the moment, one line."""
        self._threads = [
            threading.Thread(target=self._run, args=works, name=name, daemon=True)
            for name, works in (
                ("reporter", (self._report_on, self._is_in_trouble)),
                ("reporter-poll", (self._poll_on, self._missed)),
                ("reporter-answers", (self._answer_on, self._missed)),
            )
        ]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End, and wait a little for what goes on."""
        self._stopping.set()
        self._wake.set()
        self._is_on.set()
        self._asked.put(None)
        for client in self._clients:
            client.close()
        for thread in self._threads:
            thread.join(2.0)

    def look(self, mark: object) -> None:
        """Heed how the registers are now; where ``mark`` is another, a report follows soon."""
        if mark != self._mark:
            self._mark = mark
            self._wake.set()

    def wants(self, note: ContainerNote, count: int) -> bool:
        """Whether the service has not proved all ``count`` records of a registration that it may
        read."""
        if not is_readable(note, self._settings.fleet.service_key):
            return False
        return self.confirmed(note.registration) < count

    def confirmed(self, registration: int) -> int:
        """Return how many of a registration's records the service has proved."""
        return 0 if self._note is None else self._note.records.get(registration, 0)

    def describe(self) -> dict[str, Any]:
        """Return what ``cima status`` shows."""
        last = self.last
        return {
            "url": self._clients[0].url,
            "enrolled": self._note is not None and self._note.enrolled,
            "last_report_seconds": None if last is None else round(time.monotonic() - last, 1),
            "trouble": self.trouble,
        }

    # -- the threads --------------------------------------------------------------------------

    def _run(self, work: Callable[[], None], failed: Callable[[Exception], None]) -> None:
        """Do ``work`` over and over, ever more slowly where it fails."""
        pause = _BACKOFF_FIRST
        while not self._stopping.is_set():
            try:
                work()
                pause = _BACKOFF_FIRST
                continue
            except _Stop:
                return
            except Exception as error:
                if self._stopping.is_set():
                    return
                wait = random.uniform(0.1, pause)  # noqa: S311 - jitter
                if isinstance(error, ServiceRefusedError) and error.retry_after is not None:
                    wait += error.retry_after
                failed(error)
            pause = min(2 * pause, _BACKOFF_LAST)
            self._stopping.wait(wait)

    def _is_in_trouble(self, error: Exception) -> None:
        if not isinstance(error, CimaError | OSError | TimeoutError):
            _log.exception("reporting failed")
        said = printable(str(error) or type(error).__name__)
        if said != self.trouble:
            _log.warning("nothing is reported: %s", said, extra=about("report-failed"))
        self.trouble = said
        self._is_on.clear()

    def _missed(self, error: Exception) -> None:
        """Heed that a long poll has failed: reports go on without."""
        if not isinstance(error, CimaError | OSError | TimeoutError):
            _log.exception("asking for tenants' requests failed")
        _log.debug("no tenants' requests: %s", error)

    def _report_on(self) -> None:
        note = self._note or self._open_note()
        if not note.enrolled:
            self._join(note)
        began = time.monotonic()
        self._wake.clear()
        try:
            more = self._report(note)
        except ServiceRefusedError as error:
            self._refused(note, error)
            raise
        if self.trouble is not None:
            _log.info("the fleet's service takes reports", extra=about("reporting"))
        self.trouble, self.last = None, time.monotonic()
        self._is_on.set()
        spent = time.monotonic() - began
        if not more:
            self._wake.wait(max(self._interval - spent, 0.0))
        self._stopping.wait(max(self._min_interval - (time.monotonic() - began), 0.0))

    def _refused(self, note: Note, error: ServiceRefusedError) -> None:
        if error.error == "NotEnrolledError":
            note.enrolled = False
        elif error.error == "BootLogError" and self._with_boot_log:
            # Without it the report is as good: the service shows that it has none.
            _log.warning("the firmware's event log is not reported any more: %s", error)
            self._with_boot_log = False
        self._invitation = None

    def _open_note(self) -> Note:
        ak = self._work(lambda rooms: rooms.attester.attestation_key().public)
        self._ak = parse_public(ak).name
        note = Note(self._store.root / FILE, self._clients[0].url, self._ak, self._boot_id)
        note.forget(note.records.keys() - set(self._store.registrations()))
        self._note = note
        return note

    # -- a report -----------------------------------------------------------------------------

    def _report(self, note: Note) -> bool:
        """Make and send one report; returns whether there is more to send."""
        nonce = self._nonce()
        snapshot, line, quoted, place = self._quoted(note, nonce)
        note.sent(snapshot.bound.table, snapshot.mark)
        body = report_body(line, self._proof(note, quoted, place))
        route = f"hosts/{self._ak.hex()}/reports"
        answer = self._clients[0].ask("POST", route, body, session=self._session, packed=True)
        if isinstance(answer, Resync):
            _log.info(
                "the service goes on from what it has: %d records", sum(note.records.values())
            )
            note.resync(answer.confirmed)
            self._followed.clear()
            self._invite(answer.invitation)
            return True
        if not isinstance(answer, Accepted):
            raise ServiceError("the service answers a report with something else")
        self._invite(answer.invitation)
        self._session = answer.session or self._session
        self._mark = (snapshot.mark, False)
        states: dict[int, str] = {
            one.note.registration: one.note.state for one in snapshot.listings
        }
        changed = note.accepted(answer.confirmed, states)
        more = self._follow_runs(snapshot, note)
        if changed:
            note.write()
        return more or any(
            one.secret is not None and note.done(one.note.registration) < one.count
            for one in snapshot.listings
        )

    def _follow_runs(self, snapshot: Snapshot, note: Note) -> bool:
        """Find runs that were let go of before the service had them whole: a later run of their
        line proves them. Returns whether there are new ones."""
        for number, left in list(self._leftovers.items()):
            if note.records.get(number, 0) >= left.listing.count or left.tries <= 0:
                del self._leftovers[number]
        new = {number for one in snapshot.listings for number in one.earlier}
        new -= self._followed | snapshot.present
        found = False
        for number in new:
            self._followed.add(number)
            with suppress(CimaError, OSError):
                run = self._store.read_note(number)
                if not is_readable(run, self._settings.fleet.service_key):
                    continue
                count = self._stored.count(number)
                if note.records.get(number, 0) < count:
                    secret = self._store.read_secret(number)
                    self._leftovers[number] = _Leftover(Listing(run, None, secret, count))
                    found = True
        return found

    def _nonce(self) -> bytes:
        with self._lock:
            kept, self._invitation = self._invitation, None
        if kept is None or time.monotonic() - kept[1] > _NONCE_SECONDS:
            route = f"hosts/{self._ak.hex()}/nonce"
            answer = self._clients[0].ask("GET", route, session=self._session)
            if not isinstance(answer, Invitation):
                raise ServiceError("the service gives no nonce")
            # Tenants' requests may have come with it.
            self._invite(answer)
            with self._lock:
                kept, self._invitation = self._invitation, None
            assert kept is not None
        return kept[0].nonce

    def _invite(self, invitation: Invitation) -> None:
        with self._lock:
            self._invitation = invitation, time.monotonic()
            given: list[TenantRequest | TenantChallenge] = list(invitation.requests)
            given += invitation.challenges
            for asked in given:
                if asked.id not in self._handed and self._asked.qsize() < _ANSWERED:
                    self._handed[asked.id] = None
                    self._asked.put(asked)
            while len(self._handed) > 2 * _ANSWERED:
                self._handed.popitem(last=False)
        self._interval, self._min_interval = invitation.interval, invitation.min_interval

    def _sent(self, note: Note) -> Sent:
        numbers = note.records.keys() | note.held.keys()
        return Sent(note.base, {number: note.done(number) for number in numbers}, note.listed)

    def _quoted(self, note: Note, nonce: bytes) -> tuple[Snapshot, bytes, Quoted, Place]:
        """Return a snapshot, the line that it makes, and the quote for it."""
        with_host = self._shows_log()

        def made(snapshot: Snapshot, sent: Sent, room: int) -> bytes:
            return compose(
                snapshot,
                nonce=nonce,
                ak=self._ak,
                boot_id=self._boot_id,
                sent=sent,
                stored=self._stored,
                room=room,
            )

        def quote(rooms: Rooms, snapshot: Snapshot, line: bytes) -> tuple[Quoted, Place]:
            claim = claim_digest(self._ak, nonce, line)
            return rooms.attester.report(claim, snapshot.bound, with_host=with_host)

        for _ in range(_ATTEMPTS):
            sent = self._sent(note)
            snapshot = self._work(lambda rooms: self._snapshot(rooms, sent))  # noqa: B023
            line = made(snapshot, sent, limits.REPORT_PIECE)
            with suppress(MovedError):
                quoted, place = self._work(
                    lambda rooms: quote(rooms, snapshot, line)  # noqa: B023
                )
                return snapshot, line, quoted, place

        def at_once(rooms: Rooms) -> tuple[Snapshot, bytes, Quoted, Place]:
            sent = self._sent(note)
            snapshot = self._snapshot(rooms, sent)
            line = made(snapshot, sent, _FEW_RECORDS)
            return (snapshot, line, *quote(rooms, snapshot, line))

        return self._work(at_once)

    def _snapshot(self, rooms: Rooms, sent: Sent) -> Snapshot:
        rooms.commit(bind=False)
        snapshot = take_snapshot(rooms.writer, sent, self._settings.fleet.service_key)
        left = list(islice(self._leftovers.values(), _LEFTOVERS))
        for one in left:
            one.tries -= 1
        listings = (*snapshot.listings, *(one.listing for one in left))
        return replace(snapshot, listings=listings)

    def _shows_log(self) -> bool:
        ima = self._settings.ima
        there = ima.required or Path(ima.directory).exists()
        return self._settings.fleet.host_log != "none" and there

    def _proof(self, note: Note, quoted: Quoted, place: Place) -> Proof:
        boot_log = None
        if self._with_boot_log and not note.boot_log:
            try:
                boot_log = self._assembly.boot_log()
            except AttestError as error:
                _log.warning("the firmware's event log is not reported: %s", error)
                self._with_boot_log = False
        public = self._work(lambda rooms: rooms.attester.attestation_key().public)
        return Proof(
            quote=QuotePart(
                attest=quoted.quote.attest,
                signature=quoted.quote.signature,
                pcrs={str(pcr): value for pcr, value in quoted.values.items()},
            ),
            aggregation=AggregationPart(index=place.index, path=place.path),
            ak=self._assembly.ak_part(public),
            host_log=self._assembly.report_log(quoted, note.host_log),
            boot_log=boot_log,
        )

    # -- joining ------------------------------------------------------------------------------

    def _join(self, note: Note) -> None:
        """Enrol, by a token or by somebody's approval, which is waited for.

        Raises:
            ServiceError: the service does not take this host.
        """
        client = self._clients[0]
        host = HostEnrolment(
            name=self._settings.fleet.name or _host_name(),
            token=self._token(),
            tpm=self._work(lambda rooms: enrolment.request(rooms.attester)),
        )
        raw = self._sure(client.raw("POST", "enrolments", host.model_dump_json().encode()))
        challenge = parse(EnrolmentChallenge, raw, "the service's challenge")
        answer = self._work(lambda rooms: enrolment.answer(rooms.attester, challenge.challenge))
        route = f"enrolments/{challenge.id}"
        body = answer.model_dump_json().encode()
        state = self._state(client.raw("POST", f"{route}/answer", body))
        while state.state == "waiting":
            self.trouble = "somebody has to approve of this host: cima fleet approve"
            _log.info("the fleet's service waits for somebody's approval of this host")
            if self._stopping.wait(_APPROVAL_SECONDS * random.uniform(0.8, 1.2)):  # noqa: S311
                raise _Stop
            state = self._state(client.raw("GET", route))
        if state.state != "enrolled":
            raise ServiceError(
                f"the fleet's service does not take this host: {printable(state.what)}",
                hint="give it a new join token: cima configure fleet",
            )
        note.enrolled = True
        note.write()
        _log.info("joined the fleet", extra=about("joined"))

    def _token(self) -> str | None:
        path = self._settings.fleet.join_token_file
        try:
            raw = read_bounded(path, limits.JOIN_TOKEN)
        except FileNotFoundError:
            return None
        text = raw.decode("ascii", "replace").strip()
        if not text or len(raw) > limits.JOIN_TOKEN or not text.isprintable():
            raise ServiceError(f"{path} does not hold a join token")
        return text

    def _state(self, answer: tuple[int, bytes, float | None]) -> EnrolmentState:
        return parse(EnrolmentState, self._sure(answer), "the service's answer")

    @staticmethod
    def _sure(answer: tuple[int, bytes, float | None]) -> bytes:
        status, raw, retry_after = answer
        if status not in (200, 201, 202):
            raise refusal_of(status, raw, retry_after)
        return raw

    # -- tenants ------------------------------------------------------------------------------

    def _poll_on(self) -> None:
        """Hold one long poll."""
        self._is_on.wait()
        if self._stopping.is_set():
            raise _Stop
        began = time.monotonic()
        answer = self._clients[1].ask(
            "GET",
            f"hosts/{self._ak.hex()}/nonce?wait={LONG_POLL}",
            session=self._session,
            wait=LONG_POLL,
        )
        if not isinstance(answer, Invitation):
            raise ServiceError("the service gives no nonce")
        self._invite(answer)
        if not answer.requests and not answer.challenges:
            # A service that does not wait is not asked more often for it.
            self._stopping.wait(max(LONG_POLL / 5 - (time.monotonic() - began), 0.0))

    def _answer_on(self) -> None:
        """Answer one request."""
        asked = self._asked.get()
        if asked is None:
            raise _Stop
        try:
            self._answer(asked)
        except Exception:
            # The service hands it over again.
            self._handed.pop(asked.id, None)
            raise

    def _answer(self, asked: TenantRequest | TenantChallenge) -> None:
        if isinstance(asked, TenantRequest):
            media_type, body = self._evidence(asked)
        else:
            media_type, body = self._opened(asked)
        route = f"hosts/{self._ak.hex()}/answers/{asked.id}"
        for pause in range(_ANSWER_TRIES):
            status, _, _ = self._clients[2].raw(
                "POST", route, body, session=self._session, media_type=media_type
            )
            if status < 500 and status != 429:
                return
            self._stopping.wait(1 + pause)
        raise ServiceError(f"the service takes no answer: status {status}")

    def _evidence(self, asked: TenantRequest) -> _Body:
        """Return what a tenant gets; as anybody outside, he is told nothing but that."""
        source = f"fleet/{asked.request.container[:64]}"
        try:
            return _JSON, self._in_loop(self._attest(asked.request, source=source))
        except (CimaError, OSError, TimeoutError) as error:
            return _refusal(error)

    def _opened(self, asked: TenantChallenge) -> _Body:
        if not self._settings.fleet.tenants_may_enrol:
            return _refusal(
                CimaError("this host lets no tenants enrol", hint="fleet.tenants_may_enrol")
            )
        challenge = Challenge(credential=asked.credential, encrypted_secret=asked.encrypted_secret)
        try:
            answer = self._work(lambda rooms: enrolment.answer(rooms.attester, challenge))
        except CimaError as error:
            return _refusal(error)
        return _JSON, answer.model_dump_json().encode("ascii")

    # -- the agent's other threads ------------------------------------------------------------

    def _work(self, work: Callable[[Rooms], _T]) -> _T:
        return self._in_loop(self._submit(work, Turn.USUAL))

    def _in_loop(self, work: Coroutine[Any, Any, _T]) -> _T:
        if self._stopping.is_set():
            work.close()
            raise _Stop
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        deadline = time.monotonic() + _WORK_SECONDS
        while True:
            try:
                return future.result(0.5)
            except TimeoutError:
                if future.done():
                    raise
                if self._stopping.is_set():
                    future.cancel()
                    raise _Stop from None
                if time.monotonic() > deadline:
                    future.cancel()
                    raise


def _host_name() -> str:
    """Return what the kernel calls the host, in the letters that a name may have."""
    found = socket.gethostname()[: limits.HOST_NAME]
    return re.sub(r"[^A-Za-z0-9_.-]", "-", found) or "host"


def _refusal(error: BaseException) -> _Body:
    what = error.what if isinstance(error, CimaError) else "the host cannot answer now"
    hint = error.hint if isinstance(error, CimaError) else ""
    refused = Refused(error=type(error).__name__, what=what[: limits.PATH], hint=hint[:200])
    return _PROBLEM, refused.model_dump_json().encode("utf-8")

"""The service, but for HTTP: what all requests share."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from cima_runc.base.errors import CimaError
from cima_runc.base.rate import RateLimit
from cima_runc.evidence.report_nonce import NonceMaker
from cima_runc.fleet import keys, migrate, passed_on
from cima_runc.fleet.access import LimitedError, Person
from cima_runc.fleet.appraisal import Pcrs
from cima_runc.fleet.database import Database, DatabaseError
from cima_runc.fleet.judge import Judge
from cima_runc.fleet.metrics import Metrics
from cima_runc.fleet.reports import Reports
from cima_runc.fleet.sessions import Sessions
from cima_runc.fleet.settings import Settings
from cima_runc.fleet.values import ValuesCache
from cima_runc.fleet.work import Worker

_HOSTS_THREADS, _OTHER_THREADS = 8, 4
"""Requests of one process that use the database at a time: hosts' reports, and all others, which
these do not wait for."""
_POLL = 0.25
"""Seconds between looks for requests that hosts in a long poll should be woken for, and for answers
that tenants wait for."""


@dataclass
class Rates:
    """How often who may ask."""

    reports: RateLimit
    """By attestation key: reports that were accepted."""
    volume: RateLimit
    """By attestation key: MiB of reports that were accepted."""
    refused: RateLimit
    """Reports that were refused: by attestation key where it has reported before, else by address;
    by address, tokens that nobody has."""
    nonces: RateLimit
    """By address: nonces without a session."""
    polls: RateLimit
    """By attestation key: nonces with a session."""
    answers: RateLimit
    """By attestation key: answers to tenants."""
    answered: RateLimit
    """By attestation key: MiB of them."""
    enrolments: RateLimit
    tenants: RateLimit
    tokens: RateLimit
    """By tenant."""
    people: RateLimit
    """By tenant: what it looks at."""
    changes: RateLimit
    """By tenant: what it changes, each an entry of the audit log that stays."""


@dataclass
class Waiting:
    """Requests that wait until something is there: hosts in a long poll, by attestation key's name;
    tenants, by the name of what they asked for."""

    events: dict[str, set[asyncio.Event]] = field(default_factory=dict)

    @contextlib.contextmanager
    def on(self, name: str) -> Iterator[asyncio.Event]:
        """Give an event that is set when something is there for ``name``, while this lasts."""
        event = asyncio.Event()
        self.events.setdefault(name, set()).add(event)
        try:
            yield event
        finally:
            found = self.events[name]
            found.discard(event)
            if not found:
                del self.events[name]

    def wake(self, names: set[str]) -> None:
        """Wake those that something is there for."""
        for name in names & self.events.keys():
            for event in self.events[name]:
                event.set()


class Service:
    """What all requests share; make it after the tables are there."""

    def __init__(self, settings: Settings) -> None:
        """Open the database and get the keys.

        Raises:
            DatabaseError, SchemaError: the database is away, or its tables are of another form.
        """
        self.settings = settings
        self.database = Database(settings.database_url)
        migrate.check(self.database)
        with self.database.write() as connection:
            nonce = keys.key_of(connection, keys.NONCE)
            session = keys.key_of(connection, keys.SESSION)
        self.nonces = NonceMaker(nonce, settings.nonce_seconds)
        self.sessions = Sessions(session)
        self.pcrs = Pcrs(settings.binding_pcr, settings.host_pcr)
        self.judge = Judge(ValuesCache(), self.pcrs)
        self.reports = Reports(self.database, settings, self.judge, self.nonces, self.sessions)
        self.manufacturers = _read(settings)
        named = f"[{settings.address}]" if ":" in settings.address else settings.address
        self.issuer_url = (settings.issuer or f"https://{named}:{settings.port}").rstrip("/")
        self.source = f"urn:cima-verifier:{settings.address}:{settings.port}"
        self.worker = Worker(self.database, settings, self.judge, self.source)
        self.metrics = Metrics()
        self.polls, self.answers = Waiting(), Waiting()
        each = settings.reports_per_minute
        self.rates = Rates(
            reports=RateLimit(each),
            volume=RateLimit(settings.report_mib_per_minute),
            refused=RateLimit(60),
            nonces=RateLimit(each * 10),
            polls=RateLimit(each * 2),
            answers=RateLimit(each * 10),
            answered=RateLimit(settings.answer_mib_per_minute),
            enrolments=RateLimit(settings.enrolments_per_minute),
            tenants=RateLimit(settings.tenants_per_minute),
            tokens=RateLimit(settings.tokens_per_minute),
            people=RateLimit(settings.tenant_views_per_minute),
            changes=RateLimit(settings.tenant_changes_per_minute),
        )
        self._hosts_threads = ThreadPoolExecutor(_HOSTS_THREADS, "hosts")
        self._threads = ThreadPoolExecutor(_OTHER_THREADS, "request")
        self.is_ending: Callable[[], bool] = lambda: False
        """Whether the process is to end: nobody is kept waiting any more."""

    def admit(self, person: Person, *, changes: bool = False) -> None:
        """See that a tenant leaves room for others.

        Raises:
            LimitedError: it looks at, or ``changes``, too much.
        """
        rate = self.rates.changes if changes else self.rates.people
        if person.tenant is not None and not rate.allows(str(person.tenant), time.monotonic()):
            raise LimitedError("too many requests of this tenant", hint="ask again in a minute")

    async def run(self, do: Any, *arguments: Any) -> Any:
        """Run what uses the database in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, do, *arguments)

    async def run_for_host(self, do: Any, *arguments: Any) -> Any:
        """Run it in a thread of those that serve hosts' reports."""
        return await asyncio.get_running_loop().run_in_executor(self._hosts_threads, do, *arguments)

    async def wake_waiting(self) -> None:
        """Wake hosts in a long poll when something waits for them, and tenants when their answers
        are there, until cancelled."""
        while True:
            await asyncio.sleep(_POLL)
            if self.is_ending():
                self.polls.wake(set(self.polls.events))
            with contextlib.suppress(DatabaseError):
                if self.polls.events and not self.is_ending():
                    self.polls.wake(await self.run_for_host(self._waited_for))
                if self.answers.events:
                    asked = list(self.answers.events)
                    self.answers.wake(await self.run_for_host(self._answered, asked))

    def _waited_for(self) -> set[str]:
        with self.database.read() as connection:
            return passed_on.hosts_waited_for(connection)

    def _answered(self, asked: list[str]) -> set[str]:
        with self.database.read() as connection:
            return passed_on.answered(connection, asked)

    def close(self) -> None:
        """End the work in the background, and let go of the database."""
        self.worker.stop()
        for threads in (self._hosts_threads, self._threads):
            threads.shutdown(cancel_futures=True)
        self.database.close()


class ManufacturersError(CimaError):
    """The certificates of TPM manufacturers cannot be read."""


def _read(settings: Settings) -> bytes | None:
    if settings.manufacturers is None:
        return None
    try:
        return settings.manufacturers.read_bytes()
    except OSError as error:
        raise ManufacturersError(
            f"{settings.manufacturers}: {error.strerror}", hint="manufacturers in the settings"
        ) from error

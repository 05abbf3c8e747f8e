"""The service, but for HTTP: what all requests share."""

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from cima_runc.base.errors import CimaError
from cima_runc.base.rate import RateLimit
from cima_runc.evidence.report_nonce import NonceMaker
from cima_runc.fleet import keys, migrate, passed_on
from cima_runc.fleet.appraisal import Pcrs
from cima_runc.fleet.database import Database, DatabaseError
from cima_runc.fleet.judge import Judge
from cima_runc.fleet.metrics import Metrics
from cima_runc.fleet.reports import Reports
from cima_runc.fleet.sessions import Sessions
from cima_runc.fleet.settings import Settings
from cima_runc.fleet.values import ValuesCache
from cima_runc.fleet.work import Worker

_THREADS = 8
"""Requests of one process that use the database at a time."""
_POLL = 0.25
"""Seconds between looks for requests that hosts in a long poll should be woken for."""


@dataclass
class Rates:
    """How often who may ask."""

    reports: RateLimit
    """By attestation key: reports that were accepted."""
    refused: RateLimit
    """By address: reports that were refused, and tokens that nobody has."""
    nonces: RateLimit
    """By address: nonces without a session."""
    enrolments: RateLimit
    tenants: RateLimit
    tokens: RateLimit
    """By tenant."""


@dataclass
class Waiting:
    """Hosts in a long poll, by attestation key's name."""

    events: dict[str, set[asyncio.Event]] = field(default_factory=dict)

    def add(self, ak_name: str) -> asyncio.Event:
        """Return an event that is set when something waits for this host."""
        event = asyncio.Event()
        self.events.setdefault(ak_name, set()).add(event)
        return event

    def remove(self, ak_name: str, event: asyncio.Event) -> None:
        """Wait no more."""
        found = self.events.get(ak_name, set())
        found.discard(event)
        if not found:
            self.events.pop(ak_name, None)

    def wake(self, ak_names: set[str]) -> None:
        """Wake those that something waits for."""
        for name in ak_names & self.events.keys():
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
        self.waiting = Waiting()
        each = settings.reports_per_minute
        self.rates = Rates(
            reports=RateLimit(each),
            refused=RateLimit(60),
            nonces=RateLimit(each * 10),
            enrolments=RateLimit(settings.enrolments_per_minute),
            tenants=RateLimit(settings.tenants_per_minute),
            tokens=RateLimit(settings.tokens_per_minute),
        )
        self._threads = ThreadPoolExecutor(_THREADS, "request")
        self.is_ending: Callable[[], bool] = lambda: False
        """Whether the process is to end: nobody is kept waiting any more."""

    async def run(self, do: Any, *arguments: Any) -> Any:
        """Run what uses the database in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, do, *arguments)

    async def wake_hosts(self) -> None:
        """Wake hosts in a long poll when something waits for them, until cancelled."""
        while True:
            await asyncio.sleep(_POLL)
            if self.is_ending():
                self.waiting.wake(set(self.waiting.events))
            elif self.waiting.events:
                with contextlib.suppress(DatabaseError):
                    self.waiting.wake(await self.run(self._waited_for))

    def _waited_for(self) -> set[str]:
        with self.database.read() as connection:
            return passed_on.hosts_waited_for(connection)

    def close(self) -> None:
        """End the work in the background, and let go of the database."""
        self.worker.stop()
        self._threads.shutdown(cancel_futures=True)
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

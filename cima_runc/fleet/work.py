"""Work in the background: whichever process lives does it, and none of it is lost with one.

What is to be done are rows. A process takes a job for a time; if it dies, the job is anybody's
again. In PostgreSQL and SQLite it is the same code. Source: fleet, section 5.
"""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, and_, delete, func, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from cima_runc.fleet import clock, enrolments, events, hosts, issuer, passed_on, verdicts, webhooks
from cima_runc.fleet.database import Database, DatabaseError, update_all
from cima_runc.fleet.events import Told
from cima_runc.fleet.judge import Judge
from cima_runc.fleet.schema import (
    Container,
    Delivery,
    Event,
    Host,
    Job,
    table_of,
)
from cima_runc.fleet.settings import Settings

_log = logging.getLogger(__name__)
_JOB, _HOST, _CONTAINER = table_of(Job), table_of(Host), table_of(Container)

REAPPRAISE = "reappraise"
"""A policy, a reference or an assignment is another: ``subject`` is ``all``, or a host's number."""
_LEASE = 60_000
_EVERY = 0.5
"""Seconds between looks for work."""
_RETENTION_EVERY = 600.0
"""Seconds between looks for what is too old, where there was nothing more: each reads whole
tables."""
_DAY = 86_400_000
_HOSTS = 500
CONTAINERS = 200
"""Containers of a host that are appraised anew in one transaction."""


def later(connection: Connection, kind: str, subject: str) -> None:
    """Put a job down, in the transaction of what makes it necessary.

    One that waits for the same already is enough; one that somebody has begun is to be done anew.
    """
    now = clock.now()
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    new = insert(_JOB).values(
        kind=kind, subject=subject, due=now, taken_until=0, attempts=0, error=""
    )
    again = {"due": now, "taken_until": 0, "attempts": _JOB.c.attempts + 1}
    connection.execute(new.on_conflict_do_update(index_elements=["kind", "subject"], set_=again))


class Worker:
    """Does what is due; one thread in each process."""

    def __init__(self, database: Database, settings: Settings, judge: Judge, source: str) -> None:
        """``source`` is the service's address, as webhooks name it."""
        self._database = database
        self._settings = settings
        self._judge = judge
        self._outbox = webhooks.Outbox(database, source, webhooks.Private.by(settings))
        self._ended = threading.Event()
        self._threads = [
            threading.Thread(target=self._loop, args=(each,), daemon=True, name=each.__name__)
            for each in (self.deadlines, self.jobs, self.deliveries, self.retention)
        ]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End, after what is being done."""
        self._ended.set()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(15)
        self._outbox.stop()

    def _loop(self, do: Callable[[], int]) -> None:
        while not self._ended.is_set():
            try:
                more = do()
            except DatabaseError as error:
                _log.warning("%s", error)
                more = 0
            except Exception:
                _log.exception("work in the background failed")
                more = 0
            if not more:
                self._ended.wait(_RETENTION_EVERY if do == self.retention else _EVERY)

    # -- deadlines --------------------------------------------------------------------------------

    def deadlines(self) -> int:
        """Tell of hosts whose deadline has passed; return of how many."""
        with self._database.write() as connection:
            now = clock.now()
            rows = connection.execute(
                select(_HOST.c.id, _HOST.c.deadline)
                .where(
                    _HOST.c.state == "enrolled",
                    verdicts.is_late(now),
                    _HOST.c.stale_told != _HOST.c.deadline,
                )
                .order_by(_HOST.c.deadline)
                .limit(_HOSTS)
                .with_for_update(skip_locked=True)
            ).all()
            told = [(row.id, {"stale_told": row.deadline}) for row in rows]
            update_all(connection, _HOST, told)
            stale = events.Kind.HOST_STALE
            hosts_told = [Told(stale, {"deadline": row.deadline}, row.id) for row in rows]
            events.tell_all(connection, hosts_told, now)
            self._tell_tenants(connection, [row.id for row in rows], now)
            return len(rows)

    def _tell_tenants(self, connection: Connection, hosts_: Sequence[int], now: int) -> None:
        told = [
            Told(events.Kind.CONTAINER_STALE, {**data, "verdict": "STALE"}, host, container)
            for host, container, data in hosts.tenants_containers(connection, hosts_)
        ]
        events.tell_all(connection, told, now)

    # -- jobs -------------------------------------------------------------------------------------

    def jobs(self) -> int:
        """Do the job that waits longest; return whether there was one."""
        with self._database.write() as connection:
            now = clock.now()
            job = connection.execute(
                select(_JOB.c.id, _JOB.c.kind, _JOB.c.subject, _JOB.c.attempts)
                .where(_JOB.c.due <= now, _JOB.c.taken_until < now)
                .order_by(_JOB.c.due)
                .limit(1)
                .with_for_update(skip_locked=True)
            ).first()
            if job is None:
                return 0
            connection.execute(
                update(_JOB).where(_JOB.c.id == job.id).values(taken_until=now + _LEASE)
            )
        if job.subject == "all":
            self._spread(job.id, job.attempts)
        else:
            self._reappraise(job.id, job.attempts, int(job.subject))
        return 1

    def _spread(self, job: int, attempts: int) -> None:
        with self._database.write() as connection:
            # All of them: a report that still chose by what was before may not be committed yet,
            # with a host's first containers; the job waits for its host's row.
            found = connection.execute(select(_HOST.c.id).order_by(_HOST.c.id)).scalars()
            for host in found.all():
                later(connection, REAPPRAISE, str(host))
            self._done(connection, job, attempts)

    def _reappraise(self, job: int, attempts: int, host: int) -> None:
        """Appraise a host's containers anew, earlier runs first; some at a time, so that its
        reports do not wait for all that ever ran on it."""
        after: tuple[int, int] | None = (-1, -1)
        while after is not None:
            with self._database.write() as connection:
                # The host's row first, and then the job's, as those do who ask for one.
                of_host = select(_HOST).where(_HOST.c.id == host).with_for_update()
                row = connection.execute(of_host).mappings().first()
                # Where it was asked for again meanwhile, it is due anew, from the beginning.
                mine = update(_JOB).where(_JOB.c.id == job, _JOB.c.attempts == attempts)
                if not connection.execute(mine.values(taken_until=clock.now() + _LEASE)).rowcount:
                    return
                after = self._reappraise_some(connection, dict(row) if row else None, after)
                if after is None:
                    self._done(connection, job, attempts)

    def _reappraise_some(
        self, connection: Connection, host: Mapping[str, Any] | None, after: tuple[int, int]
    ) -> tuple[int, int] | None:
        """Appraise the next containers of a host, whose row is locked; return where to go on, None
        at their end."""
        # After a restore nothing is judged before the host reports, which asks for this anew.
        if host is None or hosts.awaits_resync(host):
            return None
        column = _CONTAINER.c
        run = func.coalesce(column.run, 0)
        rows = connection.execute(
            select(_CONTAINER)
            .where(
                column.host == host["id"],
                column.kind == "container",
                column.forgotten.is_(False),
                or_(run > after[0], and_(run == after[0], column.id > after[1])),
            )
            .order_by(run, column.id)
            .limit(CONTAINERS)
        ).mappings()
        containers = [dict(container) for container in rows]
        self._judge.judge(connection, containers, host, {}, clock.now())
        if len(containers) < CONTAINERS:
            return None
        return containers[-1]["run"] or 0, containers[-1]["id"]

    def _done(self, connection: Connection, job: int, attempts: int) -> None:
        # Not where it was asked for again meanwhile.
        connection.execute(delete(_JOB).where(_JOB.c.id == job, _JOB.c.attempts == attempts))

    # -- webhooks, retention ----------------------------------------------------------------------

    def deliveries(self) -> int:
        """Begin to send what is due to webhooks; return how much."""
        return self._outbox.begin_due()

    def retention(self) -> int:
        """Remove some of what is older than it is kept; audit entries and verdicts stay. Returns
        whether there may be more."""
        now = clock.now()
        before = now - self._settings.keep_days * _DAY
        delivery, event = table_of(Delivery), table_of(Event)
        with self._database.write() as connection:
            passed_on.forget(connection, now)
            enrolments.forget(connection, now - _DAY)
            issuer.forget(connection, now)
            found = connection.execute(
                select(event.c.id).where(event.c.time < before).order_by(event.c.time).limit(_HOSTS)
            )
            old = list(found.scalars())
            connection.execute(delete(delivery).where(delivery.c.event.in_(old)))
            connection.execute(delete(event).where(event.c.id.in_(old)))
            more = hosts.forget_containers(connection, before)
        return int(more or len(old) == _HOSTS)

"""What the service lets those do who are no hosts of it: not yet, or not any more."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import insert, select, update
from starlette.requests import Request

from cima_runc.base import limits
from cima_runc.base.rate import RateLimit
from cima_runc.evidence.report_nonce import NonceRefusedError
from cima_runc.fleet import clock, passed_on
from cima_runc.fleet.access import LimitedError
from cima_runc.fleet.database import Database, NotStorableError
from cima_runc.fleet.hosts_api import Frequent, routes
from cima_runc.fleet.metrics import Metrics
from cima_runc.fleet.reports import Reports
from cima_runc.fleet.schema import Base, Container, Event, EvidenceRequest, Host, table_of
from cima_runc.fleet.sessions import Sessions
from cima_runc.verifier.report.check import ReportPolicy

AK, OTHER = "000b" + "0" * 64, "000b" + "1" * 64
_HOST, _REQUEST = table_of(Host), table_of(EvidenceRequest)


@pytest.fixture(name="database")
def _database(tmp_path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path}/fleet.db")
    Base.metadata.create_all(database.engine)
    with database.write() as connection:
        for ak in (AK, OTHER):
            connection.execute(insert(_HOST).values(_row(Host, ak_name=ak, state="enrolled")))
    yield database
    database.close()


def _row(of: type[Base], **known: Any) -> dict[str, Any]:
    """A row with something in each column that must have something."""
    found: dict[str, Any] = {}
    for column in table_of(of).columns:
        if not column.nullable and not column.primary_key and column.default is None:
            kind = column.type.python_type
            found[column.name] = "" if kind is object else kind()  # our own type of texts
    return found | known


def test_a_host_that_was_removed_is_handed_nothing_and_answers_nothing(database: Database) -> None:
    """Kind: what proves who somebody was says nothing of what he may do now."""
    body = b'{"container":"' + b"a" * 64 + b'","nonce":"' + b"00" * 32 + b'"}'
    with database.write() as connection:
        host = passed_on.host_named(connection, AK)
        uids = [passed_on.ask(connection, host, "activate", body, f"{n}") for n in range(2)]
        assert passed_on.is_wanted(connection, AK, uids[0])
        connection.execute(update(_HOST).values(state="removed").where(_HOST.c.ak_name == AK))
        assert passed_on.take(connection, AK) == ((), ())
        assert not passed_on.is_wanted(connection, AK, uids[0])
        assert not passed_on.answer(connection, AK, uids[0], 200, b"{}")
        assert passed_on.hosts_waited_for(connection) == set()


def test_who_asks_is_not_told_whether_more_than_one_has_it(database: Database) -> None:
    def said() -> str:
        with (
            database.read() as connection,
            pytest.raises(passed_on.NotHereError) as refused,
        ):
            passed_on.host_of(connection, "a")
        return refused.value.what

    none = said()
    with database.write() as connection:
        connection.execute(update(_HOST).values(boot_id="b"))
        for host in connection.execute(select(_HOST.c.id)).scalars().all():
            values = {"name": "a", "kind": "container", "slot": 1, "boot_id": "b"}
            row = _row(Container, host=host, uid=f"{host}", **values)
            connection.execute(insert(table_of(Container)).values(row))
    assert said() == none


def test_a_host_that_does_not_report_keeps_no_id_from_another(database: Database) -> None:
    """Kind: what was so once counts as if it were still so."""
    now = clock.now()
    with database.write() as connection:
        hosts = connection.execute(select(_HOST.c.id).order_by(_HOST.c.id)).scalars().all()
        for at, host in enumerate(hosts):
            fresh = {"quoted": now - at * 600_000, "deadline": now + 60_000 - at * 600_000}
            is_it = _HOST.c.id == host
            connection.execute(update(_HOST).values(boot_id="b", **fresh).where(is_it))
            values = {"name": "a", "kind": "container", "slot": 1, "boot_id": "b"}
            row = _row(Container, host=host, uid=f"{host}", **values)
            connection.execute(insert(table_of(Container)).values(row))
        assert passed_on.host_of(connection, "a") == hosts[0]
        # Of those that report, each may list what it likes: nobody is answered by the id alone.
        connection.execute(update(_HOST).values(quoted=now, deadline=now + 60_000))
        with pytest.raises(passed_on.NotHereError):
            passed_on.host_of(connection, "a")
        assert passed_on.host_named(connection, OTHER) == hosts[1]


def test_those_that_wait_most_make_room_for_others(database: Database) -> None:
    """Kind: a room for all that some fill."""
    with database.write() as connection:
        host = passed_on.host_named(connection, AK)

        def ask(source: str) -> str:
            return passed_on.ask(connection, host, "evidence", b"{}", source)

        every = limits.WAITING_FROM_ONE_SOURCE
        filled = [ask(f"192.0.2.{n // every}") for n in range(limits.TENANTS_REQUESTS)]
        own = [ask("198.51.100.1") for _ in range(every - 1)]
        with pytest.raises(passed_on.BusyError):
            ask("198.51.100.1")  # as many as the others have, and no more
        over = passed_on.answered(connection, [*filled, *own])
        assert len(over) == len(own) and over < set(filled)
        # Who gave way is told so at once, and the host's answer is wanted no more.
        uid = over.pop()
        assert not passed_on.is_wanted(connection, AK, uid)
        status, body = passed_on.collect(connection, uid) or (0, b"")
        assert status == 429 and b"too many" in body
        sources = limits.TENANTS_REQUESTS // every + 1
        others = [ask(f"203.0.113.{n}") for n in range(limits.TENANTS_REQUESTS - sources)]
        assert not passed_on.answered(connection, [*own[:1], *others])


def test_why_what_cannot_be_stored_is_refused_is_told(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kind: a host that is refused for ever, and nobody is told why it is STALE."""
    payload = SimpleNamespace(nonce=b"")
    report: Any = SimpleNamespace(payload=payload)
    monkeypatch.setattr("cima_runc.fleet.reports.parse_report", lambda _: report)

    def apply(*_: object) -> None:
        raise NotStorableError("no such thing can be: a NUL")

    reports = object.__new__(Reports)
    reports._database = database
    reports._nonces = SimpleNamespace(check=lambda *_: None)  # type: ignore[assignment]
    reports._policy = ReportPolicy()
    monkeypatch.setattr("cima_runc.fleet.reports.of_host", lambda *_: None)
    monkeypatch.setattr(reports, "_apply", apply)
    for _ in range(2):
        with pytest.raises(NotStorableError):
            reports.take(AK, b"")
    with database.read() as connection:
        row = connection.execute(select(_HOST.c.refused).where(_HOST.c.ak_name == AK)).scalar()
        told = connection.execute(select(table_of(Event).c.data)).scalars().all()
    assert row == "NotStorableError"
    assert [one["what"] for one in told] == ["no such thing can be: a NUL"]


def test_what_is_sent_to_join_has_an_end() -> None:
    """Kind: many small limits, and none on how many of them there are at a time."""
    allowing = SimpleNamespace(allows=lambda *_: True)
    service: Any = SimpleNamespace(
        settings=SimpleNamespace(enrolment=True),
        rates=SimpleNamespace(enrolments=allowing, nonces=allowing),
    )
    frequent = Frequent(service)
    ways = {route.name: route.endpoint for route in routes(service, frequent).routes}

    def request(body: bytes, more: bool) -> Request:
        async def receive() -> dict[str, object]:
            if body:
                sent.append(len(body))
            return {"type": "http.request", "body": body, "more_body": more}

        scope = {"type": "http", "method": "POST", "headers": [], "client": ("192.0.2.1", 1)}
        return Request(scope, receive)

    async def run() -> None:
        part = bytes(limits.VERIFIER_INPUT)
        with pytest.raises(LimitedError):
            async with asyncio.timeout(5):
                await ways["enrol"](request(part, True))
        with pytest.raises(LimitedError):
            async with asyncio.timeout(5):
                await ways["activated"]("a", request(part, True))

    sent: list[int] = []
    asyncio.run(run())
    assert sum(sent) <= 2 * limits.STRANGERS_ENROLMENTS + 2 * limits.VERIFIER_INPUT


def test_who_asks_at_once_is_limited_as_who_asks_one_by_one() -> None:
    """Kind: a limit is looked at before and taken after what it limits."""
    rates = SimpleNamespace(
        **{name: RateLimit(60) for name in ("reports", "volume")}, refused=RateLimit(5)
    )
    held, checked = asyncio.Event(), []

    async def check(_: object) -> None:
        checked.append(1)
        await held.wait()
        raise NonceRefusedError("no nonce of ours")

    service: Any = SimpleNamespace(
        rates=rates, metrics=Metrics(), sessions=Sessions(bytes(32)), run_for_host=check
    )
    frequent = Frequent(service)

    def request(size: int = 1) -> Request:
        async def receive() -> dict[str, object]:
            return {"type": "http.request", "body": bytes(size), "more_body": False}

        scope = {"type": "http", "method": "POST", "headers": [], "client": ("192.0.2.1", 1)}
        return Request(scope, receive)

    async def run() -> list[int]:
        many = [asyncio.create_task(frequent.report(request(), AK)) for _ in range(40)]
        await asyncio.sleep(0.01)
        held.set()
        return [answer.status_code for answer in await asyncio.gather(*many)]

    assert sorted(asyncio.run(run())) == [403] * 5 + [429] * 35
    assert len(checked) == 5

    async def too_large() -> None:
        for _ in range(6):
            with pytest.raises(LimitedError):
                await frequent.report(request(limits.STRANGERS_BODIES + 1), OTHER)

    # What was not looked at has cost nothing.
    rates.refused = RateLimit(5)
    asyncio.run(too_large())
    assert rates.refused.allows("192.0.2.1", time.monotonic())

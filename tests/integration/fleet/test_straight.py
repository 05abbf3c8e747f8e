"""What hosts ask for all the time is answered the same, with the framework and without."""

import json
from typing import Any

import httpx
import pytest

from cima_runc.fleet.straight import Straight
from tests.support.fleet_host import FleetHost
from tests.support.served_fleet import ServedFleet

# Without a host's own state there is nothing that differs between databases.
pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
AK = "000b" + "ab" * 32


def both(
    fleet: ServedFleet, method: str, path: str, query: str = "", **named: Any
) -> tuple[httpx.Response, httpx.Response]:
    """Ask as agents write it, and so that the framework takes it: it leaves out what it does not
    know."""
    straight = fleet.client.request(method, f"{path}?{query}".rstrip("?"), **named)
    usual = fleet.client.request(method, f"{path}?{query}&x=1".replace("?&", "?"), **named)
    return straight, usual


ASKED: list[tuple[str, str, str, bytes | None]] = [
    ("GET", f"/v1/hosts/{AK}/nonce", "", None),
    ("GET", f"/v1/hosts/{AK}/nonce", "wait=1", None),
    ("GET", f"/v1/hosts/{AK}/nonce", "wait=99", None),
    ("GET", f"/v1/hosts/{AK}/nonce", "wait=-1", None),
    ("GET", f"/v1/hosts/{AK}/nonce", "wait=nan", None),
    ("GET", f"/v1/hosts/{AK[:-1]}/nonce", "", None),
    ("GET", f"/v1/hosts/{AK.upper()}/nonce", "", None),
    ("POST", f"/v1/hosts/{AK}/nonce", "", None),
    ("GET", f"/v1/hosts/{AK}/reports", "", None),
    ("POST", f"/v1/hosts/{AK}/reports", "", b""),
    ("POST", f"/v1/hosts/{AK}/reports", "", b"{}\n{}\n"),
    ("POST", f"/v1/hosts/{AK}/reports", "", b"\x28\xb5\x2f\xfd"),
    ("POST", f"/v1/hosts/{AK}/reports/", "", b""),
    ("POST", f"/v1/hosts/{AK}%0a/reports", "", b""),
]


def test_the_same_answer(fleet: ServedFleet) -> None:
    for method, path, query, body in ASKED:
        straight, usual = both(fleet, method, path, query, content=body)
        assert straight.status_code == usual.status_code, (method, path, query, body)
        assert straight.headers["content-type"] == usual.headers["content-type"]
        assert straight.headers["x-content-type-options"] == "nosniff"
        assert without_nonce(straight) == without_nonce(usual)


def without_nonce(answer: httpx.Response) -> Any:
    found = json.loads(answer.content)
    return {key: value for key, value in found.items() if key != "nonce"}


def test_it_is_asked_as_agents_ask(fleet: ServedFleet, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    real = Straight._answering

    def answering(self: Straight, scope: Any) -> Any:
        found = real(self, scope)
        taken.append(found is not None)
        return found

    monkeypatch.setattr(Straight, "_answering", answering)
    host = FleetHost()
    fleet.enrol(host)
    fleet.invitation(host, wait=0.1)
    fleet.sync(host)
    assert taken and all(taken)


def test_who_asks_too_often_and_a_database_that_is_away(fleet: ServedFleet) -> None:
    host = FleetHost()
    fleet.enrol(host)
    path = f"/v1/hosts/{host.tpm.ak_name.hex()}"
    body = host.report(fleet.nonce(host))
    fleet.service.database.engine.dispose()
    fleet.service.database.engine = broken(fleet)
    for answer in both(fleet, "POST", f"{path}/reports", content=body):
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        assert answer.json()["error"] == "DatabaseError"
    fleet.service.rates.nonces._per_minute = 0
    for answer in both(fleet, "GET", f"{path}/nonce"):
        assert (answer.status_code, answer.json()["error"]) == (429, "LimitedError")


def broken(fleet: ServedFleet) -> Any:
    """An engine of a file that is not there."""
    from cima_runc.fleet.database import Database

    return Database(f"{fleet.service.database.url}/nowhere/fleet.db").engine


def test_a_fault_of_ours_is_one(fleet: ServedFleet, monkeypatch: pytest.MonkeyPatch) -> None:
    def fault(*_: object) -> None:
        raise ZeroDivisionError

    host = FleetHost()
    fleet.enrol(host)
    body = host.report(fleet.nonce(host))
    monkeypatch.setattr(fleet.service.reports, "take", fault)
    path = f"/v1/hosts/{host.tpm.ak_name.hex()}/reports"
    straight, usual = both(fleet, "POST", path, content=body)
    assert straight.status_code == usual.status_code == 500
    assert straight.json() == usual.json()

"""What holds the database, and for how long: others wait for it."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import Connection

from cima_runc.evidence.enrolment import EnrolmentRequest
from cima_runc.evidence.host_enrolment import HostEnrolment
from cima_runc.fleet import changes, enrolments, keys, reports
from cima_runc.fleet.database import Database
from tests.support.endorsement_key import ATTRIBUTES, endorsement_key, new_point
from tests.support.fleet_host import FleetHost
from tests.support.served_fleet import ServedFleet


def join(fleet: ServedFleet) -> int:
    ek = endorsement_key(new_point(), ATTRIBUTES, bytes(32))
    tpm = EnrolmentRequest(ak_public=FleetHost().tpm.ak_public, ek_public=ek)
    asked = HostEnrolment(name="host", token=None, tpm=tpm)
    return fleet.client.post("/v1/enrolments", content=asked.model_dump_json()).status_code


def add_reference(fleet: ServedFleet) -> int:
    raw = b'{"version": 1, "kind": "host", "files": {}}'
    return fleet.ask("PUT", "/v1/references/host", content=raw).status_code


def ask_how_it_stands(fleet: ServedFleet) -> int:
    assert fleet.client.get("/v1/enrolments/nobodys").status_code == 404
    return 200


def send_report(fleet: ServedFleet) -> int:
    host = FleetHost()
    fleet.enrol(host)
    host.bind()
    return fleet.send(host, host.report(fleet.nonce(host))).status_code


def send_a_strangers(fleet: ServedFleet) -> int:
    """Two: the first is told of whoever sent it."""
    host, stranger = FleetHost(), FleetHost()
    fleet.enrol(host)
    for one in (host, stranger):
        one.bind()
    few = host.report(fleet.nonce(host), pcrs=[12])
    by_another_key = stranger.report(fleet.nonce(host))
    for sent in (few, by_another_key):
        assert fleet.send(host, sent).status_code == 422
    return 200


@pytest.mark.parametrize(
    ("module", "name", "do"),
    [
        (enrolments, "vouched", join),
        (changes, "parse_reference", add_reference),
        (reports, "of_host", send_report),
        (reports, "is_of_host", send_a_strangers),
        (enrolments, "state_of", ask_how_it_stands),
    ],
)
def test_what_was_sent_is_read_before_anybody_waits_for_it(
    fleet: ServedFleet,
    monkeypatch: pytest.MonkeyPatch,
    module: Any,
    name: str,
    do: Callable[[ServedFleet], int],
) -> None:
    """Kind: what somebody sent is checked, for as long as that takes, while SQLite's one writer is
    held."""
    writing, opened, wanted = threading.local(), Database.write, getattr(module, name)
    seen = []

    @contextmanager
    def write(database: Database) -> Iterator[Connection]:
        with opened(database) as connection:
            writing.now = True
            try:
                yield connection
            finally:
                writing.now = False

    def look(*given: Any, **named: Any) -> Any:
        seen.append(getattr(writing, "now", False))
        return wanted(*given, **named)

    fleet.service.manufacturers = b"none"
    monkeypatch.setattr(Database, "write", write)
    monkeypatch.setattr(module, name, look)
    assert do(fleet) in {200, 201}
    assert seen and not any(seen)


def test_processes_that_begin_at_once_have_one_key(fleet: ServedFleet) -> None:
    """Kind: what is made where there is none is made twice, and each process goes by its own."""
    database, found = fleet.service.database, []

    def begin() -> None:
        with database.write() as connection:
            found.append(keys.key_of(connection, "new"))

    other = threading.Thread(target=begin)
    with database.write() as connection:
        own = keys.key_of(connection, "new")
        other.start()
        other.join(0.3)  # it waits; where it did not, it would have made its own by now
    other.join()
    assert found == [own]

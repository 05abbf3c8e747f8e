"""What is kept has an end: by its time, and in number, whatever peers do."""

from typing import Any

import pytest
from sqlalchemy import func, insert, select, text
from sqlalchemy.event import listen

from cima_runc.base import limits
from cima_runc.evidence.enrolment import EnrolmentRequest
from cima_runc.evidence.host_enrolment import HostEnrolment
from cima_runc.evidence.report_answer import Refused
from cima_runc.fleet import changes, clock, enrolments, migrate
from cima_runc.fleet.schema import Delivery, Enrolment, Event, Record, new_uid, table_of
from tests.support.endorsement_key import ATTRIBUTES, endorsement_key, new_point
from tests.support.fleet_host import FleetHost
from tests.support.served_fleet import ServedFleet


def count(fleet: ServedFleet, kind: Any) -> int:
    with fleet.service.database.read() as connection:
        found = connection.execute(select(func.count()).select_from(table_of(kind)))
        return int(found.scalar_one())


def clean_up(fleet: ServedFleet) -> int:
    """Remove what is to go; return in how many turns."""
    turns = 1
    while fleet.service.worker.retention():
        turns += 1
    return turns


def do(fleet: ServedFleet, statement: str) -> None:
    with fleet.service.database.write() as connection:
        connection.execute(text(statement))


def test_what_ran_when_its_host_rebooted_goes_when_its_boot_does(fleet: ServedFleet) -> None:
    """Nobody gives its slot up, and nobody may tell of its end."""
    fleet.service.worker.stop()
    host = FleetHost()
    fleet.enrol(host)
    host.start("web")
    fleet.sync(host)
    before = fleet.container("web")
    host.reboot()
    host.start("other")
    fleet.sync(host)
    # It ran for long without anything new; its boot has ended now.
    do(fleet, "UPDATE container SET last_change = 0")
    clean_up(fleet)
    records = count(fleet, Record)
    assert fleet.get(f"/v1/containers/{before['uid']}/records")
    do(fleet, "UPDATE host_boot SET ended = 0")
    clean_up(fleet)
    assert fleet.get(f"/v1/containers/{before['uid']}/records") == []
    assert count(fleet, Record) == records - before["proved"]
    after = fleet.container("web")
    assert (after["verdict"], after["why"]) == ("STALE", before["why"])
    assert fleet.container("other")["proved"] == 2
    fleet.sync(host)


def kept_of(fleet: ServedFleet, host: FleetHost) -> tuple[int, int]:
    """Return how much the service says that it keeps of a host, and how much that is."""
    name = host.tpm.ak_name.hex()
    of_host = f"container.host = (SELECT id FROM host WHERE ak_name = '{name}')"
    with fleet.service.database.read() as connection:
        rows = connection.execute(text(f"SELECT count(*) FROM container WHERE {of_host}"))
        size = 1_024 * rows.scalar_one()
        for table in ("record", "held"):
            found = connection.execute(
                text(
                    f"SELECT coalesce(sum(length(content)), 0) FROM {table} "
                    f"JOIN container ON container.id = {table}.container WHERE {of_host}"
                )
            )
            size += int(found.scalar_one())
        found = connection.execute(
            text(
                "SELECT coalesce(sum(length(digests) + coalesce(length(shown), 0)), 0) "
                f"FROM host_log_part WHERE host = (SELECT id FROM host WHERE ak_name = '{name}')"
            )
        )
        size += int(found.scalar_one())
    return fleet.get(f"/v1/hosts/{name}")["stored"], size


def test_what_is_kept_of_a_host_has_an_end_where_one_is_set(fleet: ServedFleet) -> None:
    """Kind: a host that is within every rate fills the database in the end."""
    fleet.service.worker.stop()
    host, other = FleetHost(), FleetHost()
    for one in (host, other):
        fleet.enrol(one)
        one.piece = 3
    old = host.start("old")
    for at in range(10):
        host.run(old, b"/bin/%d" % at)
    host.bind()
    while host.changed or fleet.container("old")["proved"] < 12:
        fleet.report(host)
        stored, size = kept_of(fleet, host)
        assert stored == size > 1_024
    fleet.service.reports._room = stored + 2_000
    large = host.start("large")
    for at in range(20):
        host.run(large, b"/bin/%d" % at + b"x" * 200)
    host.bind()
    answers = [fleet.report(host) for _ in range(8)]
    assert isinstance(answers[-1], Refused) and answers[-1].error == "QuotaError"
    assert "host_gib" in answers[-1].hint
    stored, size = kept_of(fleet, host)
    assert stored == size <= fleet.service.reports._room
    assert fleet.get(f"/v1/hosts/{host.tpm.ak_name.hex()}")["refused"] == "QuotaError"
    other.start("web")
    fleet.sync(other)
    # What goes with its time makes room.
    do(
        fleet,
        "UPDATE container SET last_change = 0, has_ended = true, slot = NULL WHERE name = 'old'",
    )
    clean_up(fleet)
    after, size = kept_of(fleet, host)
    assert after == size < stored
    fleet.service.reports._room = None
    fleet.sync(host)
    counted = kept_of(fleet, host)
    assert counted[0] == counted[1]
    do(fleet, "ALTER TABLE host DROP COLUMN stored")
    do(fleet, "UPDATE alembic_version SET version_num = '0006'")
    assert migrate.migrate(fleet.service.database)
    assert kept_of(fleet, host) == counted


@pytest.mark.parametrize("shows_lines", [True, False])
def test_what_is_kept_of_a_hosts_log_is_kept_of_the_host(
    fleet: ServedFleet, monkeypatch: pytest.MonkeyPatch, shows_lines: bool
) -> None:
    """Kind: something that a host has the service keep is not counted as its own."""
    fleet.service.worker.stop()
    host = FleetHost(in_full=shows_lines)
    fleet.enrol(host)
    monkeypatch.setattr(limits, "FLEET_BOOTS", 3)
    sizes = []
    for _ in range(6):
        for at in range(20):
            host.host_runs(b"/usr/bin/%d" % at)
        fleet.sync(host)
        stored, size = kept_of(fleet, host)
        assert stored == size
        sizes.append(size)
        host.reboot()
    # Of the boots that are kept; of older ones nothing is.
    assert sizes[0] >= 640 and sizes[2] >= 3 * 640 and sizes[5] < sizes[0] * 5
    fleet.sync(host)
    do(fleet, "UPDATE host_boot SET ended = 0")
    clean_up(fleet)
    stored, size = kept_of(fleet, host)
    assert stored == size < sizes[5]
    fleet.service.reports._room = stored + 100
    for at in range(20):
        host.host_runs(b"/usr/sbin/%d" % at)
    answer = fleet.report(host)
    assert isinstance(answer, Refused) and answer.error == "QuotaError"
    assert kept_of(fleet, host) == (stored, size)
    fleet.service.reports._room = None
    fleet.sync(host)
    # A service before this one did not count it.
    counted = kept_of(fleet, host)
    do(fleet, f"UPDATE host SET stored = stored - {counted[1] - 1_024 * len(host.containers)}")
    do(fleet, "UPDATE alembic_version SET version_num = '0007'")
    assert migrate.migrate(fleet.service.database)
    assert kept_of(fleet, host) == counted


def test_counting_what_is_kept_costs_no_statement_for_each_container(fleet: ServedFleet) -> None:
    """Kind: what one setting is for costs all, whether or not it is set."""
    fleet.service.worker.stop()
    host = FleetHost()
    fleet.enrol(host)
    host.piece = 3
    for name in ("a", "b", "c"):
        number = host.start(name)
        for at in range(10):
            host.run(number, b"/bin/%d" % at)
    host.bind()
    asked: list[str] = []
    engine = fleet.service.database.engine
    listen(engine, "before_cursor_execute", lambda *given: asked.append(given[2]))
    while host.changed or fleet.container("c")["proved"] < 12:
        fleet.report(host)
    of_held = [one for one in asked if " held" in one]
    assert any(one.startswith("DELETE") for one in of_held)
    assert not [one for one in of_held if "sum(" in one]
    stored, size = kept_of(fleet, host)
    assert stored == size


@pytest.mark.parametrize("number", [3, 1_200])
def test_events_go_in_parts_and_all_of_them(fleet: ServedFleet, number: int) -> None:
    fleet.service.worker.stop()
    with fleet.service.database.read() as connection:
        before = connection.execute(select(func.count()).select_from(table_of(Event))).scalar_one()
    fleet.write(
        changes.add_webhook, "http://127.0.0.1:9/", kinds=[], tenant=None, allow_private=True
    )
    with fleet.service.database.write() as connection:
        hook = connection.execute(text("SELECT id FROM webhook")).scalar_one()
        row = {"kind": "host.booted", "data": {}}
        rows = [row | {"uid": new_uid(), "time": at} for at in range(number)]
        connection.execute(insert(table_of(Event)), rows)
        olds = connection.execute(text(f"SELECT id FROM event WHERE time < {number}")).scalars()
        sent = [{"webhook": hook, "event": at, "attempts": 0, "due": None} for at in olds]
        connection.execute(insert(table_of(Delivery)), sent)
    turns = clean_up(fleet)
    assert (turns > 1) == (number > 1_000)
    assert (count(fleet, Event), count(fleet, Delivery)) == (before, 0)


def ask_to_join(fleet: ServedFleet, token: str | None = None) -> None:
    ek = endorsement_key(new_point(), ATTRIBUTES, bytes(32))
    tpm = EnrolmentRequest(ak_public=FleetHost().tpm.ak_public, ek_public=ek)
    asked = HostEnrolment(name="host", token=token, tpm=tpm)
    with fleet.service.database.write() as connection:
        enrolments.begin(connection, asked, enrolments.Hardware())


def test_who_asks_to_join_is_forgotten_when_it_is_over(fleet: ServedFleet) -> None:
    fleet.service.worker.stop()
    for _ in range(3):
        ask_to_join(fleet)
    clean_up(fleet)
    assert count(fleet, Enrolment) == 3
    do(
        fleet,
        f"UPDATE enrolment SET expires = {clock.now() - 90_000_000} WHERE id IN "
        "(SELECT id FROM enrolment ORDER BY id LIMIT 2)",
    )
    clean_up(fleet)
    assert count(fleet, Enrolment) == 1


def test_strangers_do_not_fill_the_list_of_hosts_that_wait(
    fleet: ServedFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "ENROLMENTS_WAITING", 3)
    for _ in range(3):
        ask_to_join(fleet)
    with pytest.raises(enrolments.JoinRefusedError, match="too many"):
        ask_to_join(fleet)
    # Who has a token waits for nobody.
    ask_to_join(fleet, fleet.write(changes.make_join_token)[1])
    do(fleet, "UPDATE enrolment SET expires = 0")
    ask_to_join(fleet)

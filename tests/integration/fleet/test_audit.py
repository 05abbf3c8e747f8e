"""The chain of what persons changed: whole, and the part of it that is looked at."""

import itertools
from collections.abc import Sequence

import pytest
from sqlalchemy import Connection, RowMapping, text
from sqlalchemy.event import listen

from cima_runc.fleet import audit
from tests.integration.fleet.test_page import look, visitor
from tests.support.served_fleet import ServedFleet


def grow(fleet: ServedFleet, number: int) -> int:
    """Have the chain be of as many entries; return the number of the last."""
    with fleet.service.database.write() as connection:
        for _ in range(number - audit.verify(connection).entries):
            audit.note(connection, "tester", "x", "y", {})
        found = audit.verify(connection)
    assert found.broken is None
    return found.entries


CHANGES = {
    "actor": "UPDATE audit SET actor = 'eve' WHERE number = {}",
    "detail": "UPDATE audit SET detail = '{{\"a\": 1}}' WHERE number = {}",
    "digest": "UPDATE audit SET digest = 'none' WHERE number = {}",
    "gone": "DELETE FROM audit WHERE number = {}",
}


def test_a_changed_entry_is_told_where_it_is_shown(fleet: ServedFleet) -> None:
    fleet.service.worker.stop()
    last = grow(fleet, 150)
    views = {None: range(last - 99, last + 1), 101: range(1, 101)}
    for change, number in itertools.product(CHANGES, [1, 30, 99, 100, 101, 149]):
        with fleet.service.database.write() as connection:
            kept = connection.begin_nested()
            assert not any(is_told(connection, before) for before in views)
            connection.execute(text(CHANGES[change].format(number)))
            assert audit.verify(connection).broken in {number, number + 1}
            told = {before for before in views if is_told(connection, before)}
            # One that is gone shows at the one after it.
            shown = number + (change == "gone")
            assert told >= {each for each in views if shown in views[each]}, (change, number)
            kept.rollback()


def is_told(connection: Connection, before: int | None) -> bool:
    return audit.verify_some(connection, before=before, limit=100).broken is not None


def test_the_page_tells(fleet: ServedFleet) -> None:
    fleet.service.worker.stop()
    grow(fleet, 5)
    client = visitor(fleet, fleet.admin)
    assert "The entries shown here fit" in look(client, "/audit").text
    with fleet.service.database.write() as connection:
        connection.execute(text(CHANGES["actor"].format(3)))
    page = look(client, "/audit").text
    assert "Entry 3 does not fit" in page and "shown here fit" not in page


def test_what_the_page_costs_does_not_grow_with_the_chain(
    fleet: ServedFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kind: a view whose cost has no end."""
    fleet.service.worker.stop()
    client = visitor(fleet, fleet.admin)
    asked: list[str] = []
    engine = fleet.service.database.engine
    listen(engine, "before_cursor_execute", lambda *given: asked.append(given[2]))
    read: list[int] = []
    walk = audit._walk

    def counted(rows: Sequence[RowMapping], number: int, digest: str) -> audit.Verified:
        read.append(len(rows))
        return walk(rows, number, digest)

    for number in (120, 400):
        grow(fleet, number)
        asked.clear()
        monkeypatch.setattr(audit, "_walk", counted)
        look(client, "/audit")
        look(client, "/audit?before=110")
        monkeypatch.undo()
        of_audit = [one for one in asked if "FROM audit" in one]
        assert of_audit and all("LIMIT" in one for one in of_audit)
    assert read == [100] * 4

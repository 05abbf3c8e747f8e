import json
from collections.abc import Callable
from dataclasses import replace

import pytest

from cima_runc.agent import core as core_module
from cima_runc.agent.core import Core, CoreError, EndedError, dropped_in
from cima_runc.base import limits
from cima_runc.config import LimitSettings
from cima_runc.cpcr.inner import inner
from cima_runc.cpcr.table import Table
from cima_runc.ima.template import Func as TemplateFunc
from cima_runc.ml.contents import Lost, parse_rootfs
from cima_runc.ml.records import Record, parse_line
from cima_runc.ml.store import ContainerNote
from cima_runc.sensor.events import Event, Func
from tests.support.simulated_agent import NO_ROOTFS

EVENT = Event(
    registration=1,
    time_ns=0,
    cgroup_id=0,
    mntns=101,
    pid=4,
    uid=0,
    ino=9,
    dev=(0, 30),
    func=Func.BPRM_CHECK,
    digest=b"\1" * 32,
    hash_algo=4,
    error=0,
    path=b"/bin/sh",
    path_error=0,
)


def a_note(registration: int, container_id: str | None = None, uid: int = 0) -> ContainerNote:
    return ContainerNote(
        registration=registration,
        id=container_id or f"box{registration}",
        boot_id="boot",
        mntns=100 + registration,
        cgroup="/box",
        pid=3,
        start_ticks=4,
        bundle=f"/bundle{registration}",
        started="now",
        state="created",
        uid=uid,
    )


def registered(
    core: Core, registration: int, container_id: str | None = None, uid: int = 0
) -> list[Record]:
    note = a_note(registration, container_id, uid)
    contents = [{"type": "register"}, {"type": "config", "config": {}}]
    return core.register(note, bytes([registration]) * 32, contents, "now")[1]


def test_events_go_to_the_registration_that_they_name() -> None:
    core = Core(Table())
    registered(core, 1)
    registered(core, 2)
    first = core.measure(EVENT, 5, "now")
    second = core.measure(replace(EVENT, registration=2), None, "now")
    assert first is not None and second is not None
    assert (first.cpcr, second.cpcr) == ("box1", "box2")
    assert (first.recnum, second.recnum) == (2, 2)
    assert (first.meta["ima_line"], second.meta["ima_line"]) == (5, None)


def test_a_file_comes_once() -> None:
    core = Core(Table())
    registered(core, 1)
    assert core.measure(EVENT, None, "now") is not None
    assert core.measure(EVENT, None, "now") is None
    assert core.measure(replace(EVENT, func=Func.MMAP_CHECK), None, "now") is None
    assert core.measure(replace(EVENT, digest=b"\2" * 32), None, "now") is not None
    assert core.measure(replace(EVENT, path=b"/bin/ls"), None, "now") is not None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"digest": None, "hash_algo": -1, "error": 26}, "no digest: Text file busy"),
        ({"digest": b"\1" * 20, "hash_algo": 2}, "ima_hash=sha256"),
        ({"path": None, "path_error": 36}, "no path: File name too long"),
        ({"denied": True}, "denied, it is not in the container's image"),
        ({"denied": True, "path": None, "path_error": 36}, "denied"),
    ],
)
def test_what_cannot_be_named_is_a_violation(change: dict[str, object], reason: str) -> None:
    core = Core(Table())
    registered(core, 1)
    record = core.measure(replace(EVENT, **change), None, "now")  # type: ignore[arg-type]
    assert record is not None
    assert record.content["type"] == "violation"
    assert reason in record.content["reason"]
    assert record.content["denied"] is change.get("denied", False)
    assert b"/bin/sh".hex() == record.content["path_hex"] or "path" in change


def test_what_was_denied_has_not_run() -> None:
    core = Core(Table())
    registered(core, 1)
    core.measure(replace(EVENT, denied=True), None, "now")
    record = core.measure(EVENT, None, "now")
    assert record is not None and record.content_type == "ima_template"


@pytest.mark.parametrize(
    ("limit", "path"),
    [({"records": 100}, b"/bin/%d"), ({"bytes": 1 << 20}, b"/" + b"d" * 4000 + b"%d")],
)
def test_one_container_has_no_more_than_its_share(limit: dict[str, int], path: bytes) -> None:
    core = Core(Table(), limits_of_each=lambda: LimitSettings(**limit))
    registered(core, 1)
    registered(core, 2)
    files = [replace(EVENT, path=path % number) for number in range(200)]
    found = [record for each in files if (record := core.measure(each, None, "now"))]
    assert 0 < len(found) < 200
    assert found[-1].content["type"] == "lost"
    assert found[-1].content["count"] is None
    assert "limit of" in found[-1].content["reason"]
    assert {record.content_type for record in found[:-1]} == {"ima_template"}
    assert len(found) + 2 == 101 or "bytes" in limit
    assert core.measure(replace(EVENT, registration=2), None, "now") is not None
    assert core.end(1, "ended", "later", 1).content["type"] == "exit"


def test_one_mount_namespace_is_one_living_containers() -> None:
    core = Core(Table())
    registered(core, 1)
    note = next(iter(core.containers)).note
    other = note.model_copy(update={"registration": 2, "id": "thief"})
    with pytest.raises(CoreError, match="belongs to container box1"):
        core.register(other, bytes(32), [], "now")
    core.end(1, "ended", "later", 5)
    core.register(other, bytes(32), [], "later")


def test_events_after_the_end_are_refused() -> None:
    core = Core(Table())
    registered(core, 1)
    core.measure(EVENT, None, "now")
    core.end(1, "ended", "later", 5)
    # An agent that was killed just then reads again what it has recorded.
    assert core.measure(EVENT, None, "later") is None
    with pytest.raises(EndedError, match="registration 1, which has ended"):
        core.measure(replace(EVENT, path=b"/bin/late"), None, "later")
    with pytest.raises(CoreError):
        core.measure(replace(EVENT, registration=9), None, "later")


def test_the_table_holds_every_register() -> None:
    table = Table()
    core = Core(table)
    registered(core, 1)
    registered(core, 2)
    assert core.changed_registrations == [1, 2]
    before = core.update_table()
    assert before == table.digest == core.table
    assert not core.changed
    for container in core.containers:
        partition = container.partition
        wanted = inner(container.secret, partition.cpcr, partition.count)
        assert table.inner(container.note.slot) == wanted
    mark = core.change_mark
    found = core.get(1)
    assert found is not None
    core.lost(1, 3, "dropped", "now")
    assert core.changed
    assert core.update_table() != before
    assert [slot for slot, _ in core.changes(mark)] == [found.note.slot]


@pytest.mark.parametrize(
    "change",
    [
        lambda core: core.add(1, Lost(count=1, reason="x"), "now"),
        lambda core: core.add_file(
            1, b"d" * 32, b"/x", func=TemplateFunc.BPRM_CHECK, line=1, time="now"
        ),
        lambda core: core.measure(EVENT, None, "now"),
        lambda core: core.dropped(1, 1, "now"),
        lambda core: core.end(1, "ended", "now", 5),
    ],
)
def test_whatever_changes_a_register_changes_the_table(change: Callable[[Core], object]) -> None:
    core = Core(Table())
    registered(core, 1)
    before = core.update_table()
    change(core)
    assert core.changed_registrations == [1]
    assert core.update_table() != before


@pytest.mark.parametrize("state", ["running", "stopped"])
def test_a_container_that_is_restored_is_bound(state: str) -> None:
    core = Core(Table())
    registered(core, 1)
    found = core.get(1)
    assert found is not None
    core.end(1, "ended", "later", 5) if state == "stopped" else None
    other = Core(Table())
    other.restore(found)
    assert other.changed_registrations == [1]
    core.update_table()
    assert other.update_table() == core.table


def test_an_ended_container_keeps_its_leaf() -> None:
    table = Table()
    core = Core(table)
    registered(core, 1)
    core.end(1, "ended", "later", 5)
    core.update_table()
    container = core.get(1)
    assert container is not None and container.note.state == "stopped"
    held = table.inner(container.note.slot)
    registered(core, 2)
    core.update_table()
    assert core.bound(()) == []
    assert table.inner(container.note.slot) == held != bytes(32)


def a_run(core: Core, registration: int, run: int) -> ContainerNote:
    note = ContainerNote(
        registration=registration,
        id="box",
        boot_id="boot",
        mntns=registration,
        cgroup="/box",
        pid=3,
        start_ticks=4,
        bundle="/b",
        started="now",
        state="created",
        line="ab" * 32,
        run=run,
    )
    return core.register(note, bytes(32), [Lost(count=0, reason="x")], "now")[0]


def with_two_runs() -> Core:
    """The first has ended, and the second is not bound."""
    core = Core(Table())
    a_run(core, 1, 1)
    core.end(1, "ended", "later", 5)
    a_run(core, 2, 2)
    return core


def test_a_run_is_let_go_of_once_the_next_is_bound() -> None:
    table = Table()
    core = Core(table)
    first = a_run(core, 1, 1)
    core.end(1, "ended", "later", 5)
    core.update_table()
    assert core.bound(()) == []
    a_run(core, 2, 2)
    core.update_table()
    assert core.bound({1}) == []
    assert [one.number for one in core.bound(())] == [1]
    assert core.get(1) is None
    assert table.inner(first.slot) == bytes(32)
    latest = core.run_of("ab" * 32)
    assert latest is not None and latest.number == 2


def test_a_run_that_was_forgotten_is_not_let_go_of_again() -> None:
    core = with_two_runs()
    core.forget(1)
    core.update_table()
    assert core.bound(()) == []
    assert core.get(2) is not None


@pytest.mark.parametrize(("until", "found"), [(4, []), (5, [1]), (6, [1, 2])])
def test_what_had_ended_by_a_time(until: int, found: list[int]) -> None:
    core = Core(Table())
    for number, ended in ((1, 5), (2, 6), (3, 7)):
        registered(core, number)
        core.end(number, "ended", "later", ended)
    registered(core, 4)
    assert core.ended_before(until) == found


def test_of_what_ended_at_a_time_that_nobody_knows_it_was_long_ago() -> None:
    core, restored = Core(Table()), Core(Table())
    registered(core, 1)
    core.end(1, "ended", "later", 5)
    container = core.get(1)
    assert container is not None
    container.note = container.note.model_copy(update={"ended_ns": None})
    restored.restore(container)
    assert restored.ended_before(0) == [1]


def test_a_run_stays_where_the_next_came_to_nothing() -> None:
    core = with_two_runs()
    core.forget(2)
    core.update_table()
    assert core.bound(()) == []
    latest = core.run_of("ab" * 32)
    assert latest is not None and latest.number == 1


@pytest.mark.parametrize("order", [(1, 2), (2, 1)])
def test_of_runs_that_are_restored_the_last_is_kept(order: tuple[int, int]) -> None:
    core, restored = Core(Table()), Core(Table())
    for number in (1, 2):
        a_run(core, number, number)
        core.end(number, "ended", "later", number)
    for number in order:
        found = core.get(number)
        assert found is not None
        restored.restore(found)
    restored.update_table()
    assert [one.number for one in restored.bound(())] == [1]


def test_a_file_of_the_kernels_log_comes_once_and_its_line_is_kept() -> None:
    core = Core(Table())
    registered(core, 1)
    container = core.get(1)
    assert container is not None and container.last_line is None

    def add(path: bytes, line: int) -> Record | None:
        return core.add_file(
            1, b"\1" * 32, path, func=TemplateFunc.BPRM_CHECK, line=line, time="now"
        )

    assert add(b"/bin/a", 0) is not None
    assert container.last_line == 0
    assert add(b"/bin/b", 7) is not None
    assert add(b"/bin/c", 3) is not None
    assert container.last_line == 7
    count = container.partition.count
    core.update_table()
    assert add(b"/bin/a", 9) is None
    assert (container.partition.count, core.changed, container.last_line) == (count, False, 7)


def test_what_the_sensor_dropped_is_counted_and_nothing_else() -> None:
    core = Core(Table())
    registered(core, 1)
    records = [
        core.dropped(1, 3, "now"),
        core.lost(1, 40, "another reason", "now"),
        core.lost(1, None, "the sensor dropped events", "now"),
        core.dropped(1, 4, "now"),
    ]
    assert dropped_in(records) == 7


def test_where_nothing_is_missing_no_record_speaks_of_it() -> None:
    core = Core(Table())
    assert all("missing" not in record.meta for record in registered(core, 1))


def test_what_is_missing_stands_in_every_record() -> None:
    core = Core(Table(), ("tpm",))
    records = registered(core, 1)
    records.append(core.lost(1, None, "why", "now"))
    event = core.measure(EVENT, None, "now")
    assert event is not None
    for record in [*records, event, core.end(1, "ended", "now", 5)]:
        assert record.meta["missing"] == ["tpm"]


def test_live_is_found_by_id_and_bundle() -> None:
    core = Core(Table())
    registered(core, 1, "same")
    registered(core, 2, "same")
    found = core.live("same", "/bundle1")
    assert found is not None and found.note.registration == 1
    core.end(1, "ended", "now", 5)
    assert core.live("same", "/bundle1") is None
    assert core.live("same", "/bundle9") is None


def test_a_users_containers_have_one_limit_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else one user could fill the disk that all records are on."""
    monkeypatch.setattr(limits, "USER_BYTES", 50_000)
    core = Core(Table())
    for number in range(1, 11):
        registered(core, number, uid=1000 if number > 2 else 0)
    reasons = [
        record.content["reason"]
        for number in range(1, 11)
        for at in range(40)
        if (record := core.measure(replace(EVENT, registration=number, path=b"/%d" % at), 1, ""))
        and record.content.get("type") == "lost"
    ]
    assert 1 < len(reasons) <= 8 and {"the user's limit of 50000 bytes of records is reached"} == {
        *reasons
    }
    assert core.bytes_of(1000) > 50_000 and core.bytes_of(0) == 0
    for number in range(1, 11):
        core.end(number, "ended", "now", 1)
        core.forget(number)
    assert core.bytes_of(1000) == 0


@pytest.mark.parametrize("text", ["A", "\u00e9"])
def test_no_record_is_larger_than_what_reads_it_takes(text: str) -> None:
    """Environment values become digests, letters six bytes: 8 MiB of configuration may be 100."""
    core = Core(Table())
    note = a_note(1)
    large = {"type": "config", "config": {"a": text * (limits.RECORD // len(json.dumps(text)))}}
    whole = {"type": "config", "config": {"a": text * limits.RECORD}}
    with pytest.raises(CoreError, match="its config record has"):
        core.register(note, bytes(32), [{"type": "register"}, whole], "now")
    assert core.get(1) is None and core.in_namespace(note.mntns) is None
    _, records = core.register(note, bytes(32), [{"type": "register"}, large], "now")
    assert parse_line(records[1].to_line()) == records[1]


def test_a_users_bytes_are_those_of_his_records() -> None:
    core, restored = Core(Table()), Core(Table())
    records = registered(core, 1, uid=1000)
    registered(core, 2)
    first = sum(len(record.to_line()) for record in records)
    assert (core.bytes_of(1000), core.bytes_of(0)) == (first, 0)
    core.measure(EVENT, None, "now")
    assert core.bytes_of(1000) > first
    one, other = core.get(1), core.get(2)
    assert one is not None and other is not None
    restored.restore(one)
    restored.restore(other)
    assert (restored.bytes_of(1000), restored.bytes_of(0)) == (one.size, 0)
    registered(restored, 3, uid=1000)
    restored.forget(1)
    assert restored.bytes_of(1000) == first


@pytest.mark.parametrize(("room", "kind"), [(0, "ima_template"), (-1, "cima")])
@pytest.mark.parametrize("whose", ["container", "user"])
def test_a_limit_is_what_is_allowed(
    whose: str, room: int, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = LimitSettings()
    core = Core(Table(), limits_of_each=lambda: most)
    registered(core, 1, uid=1000)
    container = core.get(1)
    assert container is not None
    grown = core_module._LINE + 2 * len(EVENT.path or b"")
    if whose == "user":
        monkeypatch.setattr(limits, "USER_BYTES", core.bytes_of(1000) + grown + room)
    else:
        size = container.size + grown + room
        most = LimitSettings.model_construct(records=100, bytes=size)
    record = core.measure(EVENT, None, "now")
    assert record is not None and record.content_type == kind


def test_a_registrations_records_name_its_process() -> None:
    core = Core(Table())
    assert [record.meta["pid"] for record in registered(core, 1)] == [3, 3]


def test_a_record_may_be_as_large_as_readers_take(monkeypatch: pytest.MonkeyPatch) -> None:
    size = max(len(record.to_line()) for record in registered(Core(Table()), 1))
    monkeypatch.setattr(limits, "RECORD", size)
    registered(Core(Table()), 1)
    monkeypatch.setattr(limits, "RECORD", size - 1)
    with pytest.raises(CoreError):
        registered(Core(Table()), 1)


def test_a_root_filesystem_that_is_too_large_leaves_the_register_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    core = Core(Table())
    registered(core, 1)
    before = core.update_table()
    monkeypatch.setattr(limits, "RECORD", 50)
    with pytest.raises(CoreError, match="its rootfs record has"):
        core.add(1, parse_rootfs(NO_ROOTFS), "now")
    assert not core.changed
    assert core.update_table() == before
    container = core.get(1)
    assert container is not None and container.partition.count == 2

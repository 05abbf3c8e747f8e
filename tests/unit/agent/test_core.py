from dataclasses import replace

import pytest

from cima_runc.agent.core import Core, CoreError
from cima_runc.config import LimitSettings
from cima_runc.cpcr.binding import Bind
from cima_runc.cpcr.tree import Tree, leaf_hash
from cima_runc.ml.records import Record
from cima_runc.ml.store import ContainerNote
from cima_runc.sensor.events import Event, Func

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


def registered(core: Core, registration: int, container_id: str | None = None) -> list[Record]:
    note = ContainerNote(
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
    )
    contents = [{"type": "register"}, {"type": "config", "config": {}}]
    return core.register(note, bytes([registration]) * 32, contents, "now")[1]


def test_events_go_to_the_registration_that_they_name() -> None:
    core = Core(Tree())
    registered(core, 1)
    registered(core, 2)
    first = core.measure(EVENT, 5, "now")
    second = core.measure(replace(EVENT, registration=2), None, "now")
    assert first is not None and second is not None
    assert (first.cpcr, second.cpcr) == ("box1", "box2")
    assert (first.recnum, second.recnum) == (2, 2)
    assert (first.meta["ima_line"], second.meta["ima_line"]) == (5, None)


def test_a_file_comes_once() -> None:
    core = Core(Tree())
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
    core = Core(Tree())
    registered(core, 1)
    record = core.measure(replace(EVENT, **change), None, "now")  # type: ignore[arg-type]
    assert record is not None
    assert record.content["type"] == "violation"
    assert reason in record.content["reason"]
    assert record.content["denied"] is change.get("denied", False)
    assert b"/bin/sh".hex() == record.content["path_hex"] or "path" in change


def test_what_was_denied_has_not_run() -> None:
    core = Core(Tree())
    registered(core, 1)
    core.measure(replace(EVENT, denied=True), None, "now")
    record = core.measure(EVENT, None, "now")
    assert record is not None and record.content_type == "ima_template"


@pytest.mark.parametrize(
    ("limit", "path"),
    [({"records": 100}, b"/bin/%d"), ({"bytes": 1 << 20}, b"/" + b"d" * 4000 + b"%d")],
)
def test_one_container_has_no_more_than_its_share(limit: dict[str, int], path: bytes) -> None:
    core = Core(Tree(), limits=lambda: LimitSettings(**limit))
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
    core = Core(Tree())
    registered(core, 1)
    note = next(iter(core.containers)).note
    other = note.model_copy(update={"registration": 2, "id": "thief"})
    with pytest.raises(CoreError, match="belongs to container box1"):
        core.register(other, bytes(32), [], "now")
    core.end(1, "ended", "later", 5)
    core.register(other, bytes(32), [], "later")


def test_events_after_the_end_are_refused() -> None:
    core = Core(Tree())
    registered(core, 1)
    core.end(1, "ended", "later", 5)
    with pytest.raises(CoreError):
        core.measure(EVENT, None, "later")
    with pytest.raises(CoreError):
        core.measure(replace(EVENT, registration=9), None, "later")


def test_a_bind_holds_every_register() -> None:
    tree = Tree()
    core = Core(tree)
    registered(core, 1)
    registered(core, 2)
    assert core.changed
    bind = core.next_bind(1, bytes(32))
    assert bind == Bind(1, tree.root, bytes(32))
    assert not core.changed
    for container in core.containers:
        leaf = leaf_hash(container.secret, container.partition.cpcr, container.partition.count)
        from cima_runc.cpcr.tree import root_from_path

        slot = container.note.slot
        assert root_from_path(leaf, slot, tree.path(slot)) == bind.root
    before = bind.root
    core.lost(1, 3, "dropped", "now")
    assert core.changed
    assert core.next_bind(2, bytes(32)).root != before


def test_an_ended_container_keeps_its_leaf() -> None:
    core = Core(Tree())
    registered(core, 1)
    core.end(1, "ended", "later", 5)
    root = core.next_bind(1, bytes(32)).root
    registered(core, 2)
    container = core.get(1)
    assert container is not None and container.note.state == "stopped"
    assert core.next_bind(2, bytes(32)).root != root


def test_what_is_missing_stands_in_every_record() -> None:
    core = Core(Tree(), ("tpm",))
    records = registered(core, 1)
    records.append(core.lost(1, None, "why", "now"))
    event = core.measure(EVENT, None, "now")
    assert event is not None
    for record in [*records, event, core.end(1, "ended", "now", 5)]:
        assert record.meta["missing"] == ["tpm"]


def test_live_is_found_by_id_and_bundle() -> None:
    core = Core(Tree())
    registered(core, 1, "same")
    registered(core, 2, "same")
    found = core.live("same", "/bundle1")
    assert found is not None and found.note.registration == 1
    core.end(1, "ended", "now", 5)
    assert core.live("same", "/bundle1") is None
    assert core.live("same", "/bundle9") is None

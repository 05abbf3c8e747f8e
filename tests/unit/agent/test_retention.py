import json
import os
import time
from contextlib import suppress
from pathlib import Path

import pytest

from cima_runc.agent.core import Core
from cima_runc.agent.current import CurrentSettings
from cima_runc.agent.index import Container
from cima_runc.agent.retention import Retention, Stored, to_remove
from cima_runc.agent.runs import Runs
from cima_runc.agent.wall_clock import WallClock
from cima_runc.agent.writer import Writer
from cima_runc.base import clock, limits
from cima_runc.config import Settings, StorageSettings
from cima_runc.cpcr.table import Table
from cima_runc.ml.lines import Lines, LineState
from cima_runc.ml.partition import Partition
from cima_runc.ml.store import ContainerNote, Store

OLD = "2001-01-01T00:00:00.000Z"


def a_note(registration: int, **changes: object) -> ContainerNote:
    fields = {
        "registration": registration,
        "id": f"box-{registration}",
        "boot_id": "this",
        "mntns": registration,
        "cgroup": "/",
        "pid": 1,
        "start_ticks": 1,
        "bundle": "/b",
        "slot": registration,
        "started": OLD,
        "ended": OLD,
        "state": "stopped",
    }
    return ContainerNote.model_validate({**fields, **changes})


def chosen(stored: list[Stored], quota: int, before: str | None = None) -> list[int]:
    found = to_remove(stored, quota=quota, ended_before=before)
    return [one.note.registration for one in found]


def test_the_oldest_go_until_the_rest_fits() -> None:
    stored = [Stored(a_note(number), 10, True) for number in range(1, 6)]
    assert chosen(stored, 50) == []
    assert chosen(stored, 49) == [1]
    assert chosen(stored, 30) == [1, 2]
    assert chosen(stored, 0) == [1, 2, 3, 4, 5]


def test_what_lives_stays_whatever_it_takes() -> None:
    stored = [Stored(a_note(1), 10, False), Stored(a_note(2), 10, True)]
    assert chosen(stored, 0) == [2]


def test_a_user_costs_nobody_elses_records() -> None:
    """Root's are the oldest; what a user has in plenty goes first, his own oldest first."""
    stored = [
        *(Stored(a_note(number), 10, True) for number in range(1, 4)),
        *(Stored(a_note(number, uid=1000), 10, True) for number in range(4, 24)),
        *(Stored(a_note(number, uid=1001), 10, True) for number in range(24, 26)),
    ]
    assert chosen(stored, 160) == list(range(4, 22))
    assert chosen(stored, 1600) == []
    with_living = [*stored, Stored(a_note(26, uid=1000, state="running", ended=None), 500, False)]
    assert chosen(with_living, 560) == list(range(4, 24))


def test_age_is_a_reason_too() -> None:
    stored = [Stored(a_note(1), 1, True), Stored(a_note(2, ended=clock.now()), 1, True)]
    assert chosen(stored, 100, "2020-01-01T00:00:00.000Z") == [1]


def test_what_containers_rely_on_goes_after_the_last_of_them() -> None:
    earlier = {"boot_id": "earlier"}
    stored = [
        Stored(a_note(1, kind="dependencies", **earlier), 10, True),
        Stored(a_note(2, **earlier), 10, True),
        Stored(a_note(3, **earlier), 10, True),
        Stored(a_note(4), 10, True),
    ]
    assert chosen(stored, 30) == [2]
    assert chosen(stored, 20) == [2, 3]
    assert chosen(stored, 10) == [2, 3, 4]
    assert chosen(stored, 5) == [2, 3, 4, 1]


class Host:
    """A state directory and a core."""

    def __init__(self, root: Path) -> None:
        self.store = Store(root)
        self.store.prepare()
        # An agent has just run.
        (root / "clock.json").write_text(json.dumps({"time": time.time_ns()}))
        self.core = Core(Table())
        self.runs = runs = Runs(self.store, Lines(self.store.root / "lines"))
        self.writer = Writer(self.core, self.store, runs, None, lambda registration: None)

    def stored(self, note: ContainerNote, records: int = 4) -> None:
        self.store.create(note, bytes(32))
        partition = Partition(note.id)
        content = {"type": "exit", "reason": "x" * (1 << 18)}
        self.store.append(note.registration, [partition.add(content, {}) for _ in range(records)])
        self.store.sync()
        self.store.close_partition(note.registration)
        if note.boot_id == "this":
            self.writer.restore(Container(note, bytes(32), partition))

    def retention(self, wall_clock: WallClock | None = None, **settings: int) -> Retention:
        current = CurrentSettings(Settings(storage=StorageSettings(**settings)))
        return Retention(
            *(current, "this", self.writer, self.store, self.runs), wall_clock=wall_clock
        )

    def apply(self, **settings: int) -> Retention:
        made = self.retention(**settings)
        made.apply()
        return made


def test_records_go_with_all_that_is_known_of_them(tmp_path: Path) -> None:
    host = Host(tmp_path / "state")
    host.store.see("earlier")
    host.store.see("this")
    host.stored(a_note(1, boot_id="earlier"))
    host.stored(a_note(2))
    host.stored(a_note(3, state="running", ended=None))
    assert host.apply(quota_mib=4).removed_unattested == 0
    assert host.store.boots() == {"earlier", "this"}
    kept = host.apply(quota_mib=2)
    assert host.store.registrations() == [3]
    assert host.store.boots() == {"this"}
    assert host.core.get(2) is None
    assert host.core.get(3) is not None
    assert kept.size == host.store.size(3)


def test_what_was_not_attested_does_not_go_in_silence(tmp_path: Path) -> None:
    host = Host(tmp_path / "state")
    host.stored(a_note(1, attested=4))
    host.stored(a_note(2, attested=3))
    assert host.apply(quota_mib=1).removed_unattested == 1
    (line,) = (host.store.root / "removed.jsonl").read_bytes().splitlines()
    said = json.loads(line)
    assert (said["registration"], said["id"], said["records"], said["attested"]) == (
        2,
        "box-2",
        4,
        3,
    )


def test_age(tmp_path: Path) -> None:
    host = Host(tmp_path / "state")
    host.stored(a_note(1))
    host.stored(a_note(2, ended=clock.now()))
    host.apply(keep_days=0)
    assert host.store.registrations() == [1, 2]
    host.apply(keep_days=30)
    assert host.store.registrations() == [2]


def test_a_container_that_its_host_took_down_is_as_old_as_that(tmp_path: Path) -> None:
    """It may have begun long before, and have run until then."""
    host = Host(tmp_path / "state")
    now = time.time()
    for number, days in ((1, 1), (2, 40)):
        boot = f"boot {number}"
        host.stored(a_note(number, boot_id=boot, state="running", ended=None))
        host.store.see(boot)
        for path in (
            host.store.root / "boots" / boot / "seen",
            host.store.root / f"containers/{number:08d}/records.jsonl",
        ):
            os.utime(path, (now - days * 86_400,) * 2)
    host.apply(keep_days=30)
    assert host.store.registrations() == [1]
    assert host.store.boots() == {"boot 1", "this"}
    # Whatever else is known of that boot: what wrote records ran.
    (host.store.root / "boots/boot 1/seen").unlink()
    host.apply(keep_days=2)
    assert host.store.registrations() == [1]


@pytest.mark.parametrize(("ago", "kept"), [(29, True), (31, False)])
def test_in_one_boot_age_is_by_the_clock_that_nobody_sets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ago: int, kept: bool
) -> None:
    """A host that begins in 1970 and gets its time later has containers of 1970."""
    host = Host(tmp_path / "state")
    day = 86_400 * 10**9
    monkeypatch.setattr(clock, "since_boot", lambda: 100 * day)
    host.stored(a_note(1, ended_ns=(100 - ago) * day))
    host.apply(keep_days=30)
    assert host.store.registrations() == ([1] if kept else [])


def test_a_clock_that_is_set_forward_removes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    host = Host(tmp_path / "state")
    for number in range(1, 4):
        ended = None if number == 3 else clock.now()
        host.stored(a_note(number, started=clock.now(), ended=ended, boot_id="earlier"))
    (host.store.root / f"unmeasured/{time.time_ns()}-1.json").write_text("{}")
    host.runs._lines.write(LineState(line=b"1" * 32, run=1, last=None, time=clock.now()))
    now = time.time_ns() + 300 * 86_400 * 10**9
    retention = host.retention(WallClock(host.store.root / "clock.json", lambda: now), keep_days=30)
    for _ in range(2):
        retention.apply()
    assert host.store.registrations() == [1, 2, 3]
    assert len(host.store.unmeasured()) == 1
    assert host.runs._lines.read(b"1" * 32) is not None
    (line,) = caplog.messages
    assert line.startswith(f"the clock says {clock.at(now)}, where about ")
    # What is too much goes by number, whatever the time is.
    host.apply(quota_mib=1)
    assert len(host.store.registrations()) == 0


def test_the_writer_is_never_kept_for_long(tmp_path: Path) -> None:
    """A host may have stored a hundred thousand: looking through them is not the writer's, and of
    what goes it takes a few at a time. What has changed since the look counts."""
    host = Host(tmp_path / "state")
    line = "31" * 32
    for number in range(1, 101):
        host.stored(a_note(number, line=line, run=number, boot_id="earlier"), records=0)
        host.runs.keep(host.store.read_note(number))
    host.runs._lines.write(LineState(line=b"1" * 32, run=100, last=None, time=OLD))
    retention = host.retention(keep_days=30)
    plan = retention.plan()
    assert len(host.store.registrations()) == 100 and plan.lines == [(0, b"1" * 32)]
    host.store.write_note(host.store.read_note(1).model_copy(update={"attested": 7}))
    left = []
    while retention.carry_out(plan):
        left.append(len(host.store.registrations()))
        if len(left) == 1:  # the line's next run begins
            host.stored(a_note(200, line=line, run=101, state="running", ended=None), records=0)
            host.runs.keep(host.store.read_note(200))
    assert left == [68, 37, 5]
    assert host.store.registrations() == [200]
    assert host.runs._lines.read(b"1" * 32) is not None
    assert host.retention(keep_days=30).carry_out(host.retention(keep_days=30).plan()) is False


def test_a_partition_that_comes_or_goes_meanwhile_spoils_no_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = Host(tmp_path / "state")
    for number in (1, 2):
        host.stored(a_note(number, boot_id="earlier"), records=0)
    read_note = Store.read_note

    def read(store: Store, number: int) -> ContainerNote:
        note = read_note(store, number)
        if number == 1:
            store.discard(number)
        return note

    monkeypatch.setattr(Store, "read_note", read)
    assert [one.note.registration for one in host.retention(keep_days=1).plan().gone] == [2]


@pytest.mark.parametrize("damaged", ["containers/00000001/records.jsonl", "boots/earlier"])
def test_one_that_cannot_be_read_keeps_no_other_from_going(tmp_path: Path, damaged: str) -> None:
    """Else the disk would fill: it is the oldest, and the first to go, each time."""
    host = Host(tmp_path / "state")
    host.stored(a_note(1, boot_id="earlier", ended=None), records=0)
    host.stored(a_note(2, boot_id="other"), records=0)
    path = tmp_path / "state" / damaged
    path.unlink(missing_ok=True)
    path.mkdir() if path.suffix else path.touch()
    with suppress(OSError):
        host.apply(keep_days=1)
    assert host.store.registrations() == [1]


def test_what_is_removed_is_not_looked_for_later(tmp_path: Path) -> None:
    host = Host(tmp_path / "state")
    for number in range(1, 10):
        host.stored(a_note(number, state="running", ended=None), records=1)
        host.writer.end(number, "ended")
    host.writer.write()
    host.apply(quota_mib=1)
    assert 0 < len(host.store.registrations()) < 9
    host.writer.forget_ended(clock.since_boot())
    host.writer.write()
    assert list(host.core.containers) == []


def test_a_users_lines_cost_nobody_elses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else what root's container came to is forgotten, and its next run is a first one."""
    monkeypatch.setattr(limits, "LINES", 16)
    host = Host(tmp_path / "state")
    roots = host.runs.next(bytes(32))
    for number in range(1, 33):
        for uid in (1000, 1001):
            host.runs.next(bytes([number]) * 31 + bytes([uid % 256]), uid)
    host.apply()
    assert host.runs.next(roots.line).run == 2
    assert host.runs._lines.users() == [1000, 1001]
    for uid in (1000, 1001):
        path = tmp_path / f"state/lines/{uid}"
        assert len(list(path.iterdir())) == limits.LINES // limits.USER_PART
    # What an earlier agent kept among root's goes on.
    user = b"u" * 32
    host.runs._lines.write(LineState(line=user, run=7, last=None, time=clock.now()))
    assert host.runs.next(user, 1000).run == 8
    assert host.runs._lines.read(user) is None
    old = LineState(line=user, run=8, last=None, time=OLD)
    host.runs._lines.of_user(1000).write(old)
    host.apply(keep_days=30)
    assert host.runs._lines.of_user(1000).read(user) is None


def test_notes_of_unmeasured_starts_go_by_age_and_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(limits, "UNMEASURED", 3)
    host = Host(tmp_path / "state")
    now = time.time_ns()
    directory = host.store.root / "unmeasured"
    ages = [0, 1, 2, 3, 40]
    for days in ages:
        (directory / f"{now - days * 86_400 * 10**9}-1.json").write_text("{}")
    (directory / "another").write_text("")
    host.apply(keep_days=30)
    assert len(host.store.unmeasured()) == 3
    assert min(when for when, _ in host.store.unmeasured()) == now - 2 * 86_400 * 10**9
    assert "2 containers that started unmeasured" in caplog.text
    host.apply(keep_days=2)
    assert len(host.store.unmeasured()) == 2
    host.apply()
    assert len(host.store.unmeasured()) == 2
    assert (directory / "another").exists()

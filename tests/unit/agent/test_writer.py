import json
from pathlib import Path
from typing import Any

import pytest

from cima_runc.agent.core import Core
from cima_runc.agent.runs import Runs
from cima_runc.agent.writer import Writer
from cima_runc.base import clock
from cima_runc.cpcr.table import Table
from cima_runc.ml.lines import Lines
from cima_runc.ml.store import ContainerNote, Store


class Host:
    """A writer on a disk that may be full."""

    def __init__(self, root: Path) -> None:
        self.store = Store(root)
        self.store.prepare()
        self.core = Core(Table())
        runs = Runs(self.store, Lines(self.store.root / "lines"))
        self.ended: list[int] = []
        self.writer = Writer(self.core, self.store, runs, None, self.ended.append)

    def begin(self, number: int) -> ContainerNote:
        note = ContainerNote(
            registration=number,
            id=f"box{number}",
            boot_id="boot",
            mntns=number,
            cgroup="/",
            pid=1,
            start_ticks=1,
            bundle="/b",
            started=clock.now(),
            state="created",
        )
        return self.writer.begin(note, bytes(32), [{"type": "register"}])


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path / "state")


def full(*_: Any, **__: Any) -> None:
    raise OSError(28, "No space left on device")


def test_what_has_ended_is_forgotten_once_that_is_durable(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.begin(1)
    host.writer.write()
    host.writer.end(1, "ended")
    with monkeypatch.context() as disk:
        disk.setattr(host.store, "append", full)
        with pytest.raises(OSError, match="No space"):
            host.writer.write()
        host.writer.forget_ended(clock.since_boot())
        assert host.core.get(1) is not None
        assert host.ended == []
    host.writer.write()
    assert host.ended == [1]
    assert host.store.read_note(1).state == "stopped"
    host.writer.forget_ended(clock.since_boot())
    assert host.core.get(1) is None
    assert host.store.registrations() == [1]


def test_nothing_is_written_later_of_what_was_discarded(host: Host) -> None:
    host.begin(1)
    host.writer.end(1, "refused")
    host.writer.discard(1)
    host.writer.write()
    assert host.ended == []
    assert host.store.registrations() == []
    assert host.writer.backlog == 0


def test_a_directory_that_cannot_be_made_leaves_nothing(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host.store, "create", full)
    with pytest.raises(OSError, match="No space"):
        host.begin(1)
    assert list(host.core.containers) == []
    assert host.writer.backlog == 0
    monkeypatch.undo()
    assert host.begin(1).slot >= 0


def test_what_the_sensor_dropped_is_said_once(host: Host) -> None:
    """It is told how many in all."""
    host.begin(1)
    for total in (0, 3, 3, 5, 4):
        host.writer.dropped(1, total)
    host.writer.dropped(7, 9)
    host.writer.write()
    records = [json.loads(line)["content"] for line in host.store.lines(1)]
    assert [one["count"] for one in records if one["type"] == "lost"] == [3, 2]
    host.writer.end(1, "ended")
    host.writer.dropped(1, 6)
    host.writer.write()
    assert json.loads([*host.store.lines(1)][-1])["content"]["type"] == "exit"

"""An agent that starts on a full disk: it runs, refuses what is new, and makes room."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cima_runc.ml.listing import stored_notes
from cima_runc.tpm.swtpm import software_tpm
from tests.support.simulated_agent import SimulatedAgent, SimulatedKernel

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system")
_DISK = "2m"
_RECORD_BYTES = 300_000


@pytest.fixture
def state(tmp_path: Path) -> Iterator[Path]:
    """A state directory on a small disk of its own."""
    path = tmp_path / "state"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={_DISK},mode=700", "state", path]
    subprocess.run(command, check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)


class Kernel(SimulatedKernel):
    """The simulated kernel, in this process."""

    def __call__(self, name: str, *arguments: Any) -> Any:
        return getattr(self, name)(*arguments)


@contextmanager
def agent(
    state: Path, tcti: str, boot_id: str, kernel: Kernel, **settings: Any
) -> Iterator[SimulatedAgent]:
    """An agent that has started; nothing of it is left but what is on the disk."""
    made = SimulatedAgent(state, tcti, boot_id, kernel, settings)
    try:
        made.rooms.take_over()
        yield made
    finally:
        made.tpm.close()
        os.close(made.store._lock)


def fill(state: Path) -> None:
    """Leave no room, as whoever shares the disk may."""
    handle = os.open(state / "filling", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        while True:
            os.write(handle, bytes(512))
    except OSError:
        pass
    finally:
        os.close(handle)


def live(made: SimulatedAgent, name: str, pid: int) -> None:
    """A container of many records comes and goes."""
    number = made.start(name, pid)
    for at in range(_RECORD_BYTES // 4000):
        made.kernel("execute", number, b"/%d" % at + b"/x" * 1700)
    made.rooms.commit(bind=True)
    made.stop(name, pid)


def tick(made: SimulatedAgent) -> None:
    made.rooms.writer.probe()
    made.rooms.commit(bind=True)


@pytest.mark.parametrize("ended_meanwhile", [False, True])
@pytest.mark.parametrize("boot", ["this", "the next"])
def test_it_starts_refuses_and_makes_room(state: Path, boot: str, *, ended_meanwhile: bool) -> None:
    kernel = Kernel()
    with software_tpm() as tcti:
        with agent(state, tcti, "this", kernel) as first:
            for at in range(3):
                live(first, f"gone-{at}", 100 + at)
            living = first.start("living", 7)
            tick(first)
        if ended_meanwhile or boot != "this":
            kernel.exit(7)
        if boot != "this":
            kernel.rows.clear()
        fill(state)
        quota = {"storage": {"quota_mib": 1}}
        with agent(state, tcti, boot, kernel, **quota) as again:
            trouble = again.writer.trouble
            assert trouble is not None and "No space left" in trouble.reason
            with pytest.raises(OSError, match="No space left"):
                again.start("new", 8)
            kernel.exit(8)
            before = len(stored_notes(again.store, None))
            again.rooms.retention.apply()
            assert len(stored_notes(again.store, None)) < before
            (state / "filling").unlink()
            tick(again)
            assert again.writer.trouble is None
            assert again.writer.status is not None and again.writer.status.gaps.count == 1
            again.start("newer", 9)
            found = again.writer.get(living)
            if boot == "this":
                assert found is not None
                assert (found.note.state == "stopped") is ended_meanwhile
                last = list(again.store.records(living))[-1].content["type"]
                assert (last == "exit") is ended_meanwhile
            assert again.writer.expected_value == again.tpm.read_pcrs([12])[12]


@pytest.mark.parametrize("restarts", [0, 1])
def test_what_was_lost_of_several_that_ended_is_recorded_when_there_is_room(
    state: Path, restarts: int
) -> None:
    """Also by an agent that follows the one that could not write."""
    kernel = Kernel(capacity=1)
    names = {f"box-{pid}": pid for pid in (5, 6, 7)}
    with software_tpm() as tcti:
        with agent(state, tcti, "this", kernel) as first:
            numbers = [first.start(name, pid) for name, pid in names.items()]
            tick(first)
        for number, pid in zip(numbers, names.values(), strict=True):
            kernel.execute(number, b"/filling")
            kernel.execute(number, b"/foreign")
            kernel.exit(pid)
        fill(state)
        for _ in range(restarts):
            with agent(state, tcti, "this", kernel) as refused:
                assert refused.writer.trouble is not None
        with agent(state, tcti, "this", kernel) as again:
            (state / "filling").unlink()
            tick(again)
            assert again.writer.trouble is None
            dropped = 0
            for number in numbers:
                contents = [record.content for record in again.store.records(number)]
                assert contents[-1]["type"] == "exit"
                lost = [one for one in contents if one.get("type") == "lost"]
                assert all(one["count"] is not None for one in lost)
                dropped += sum(one["count"] for one in lost)
            assert dropped == 5, "there was room for one event of six"
    assert kernel.tables() == ({}, {})


def test_room_that_retention_makes_is_enough(state: Path) -> None:
    """Nobody else gives any back: what is said of what goes has to be written first."""
    kernel = Kernel()
    with software_tpm() as tcti:
        with agent(state, tcti, "this", kernel) as first:
            for at in range(4):
                live(first, f"gone-{at}", 100 + at)
            tick(first)
        fill(state)
        with agent(state, tcti, "the next", Kernel(), storage={"quota_mib": 1}) as again:
            again.rooms.retention.apply()
            tick(again)
            again.start("new", 8)
            assert again.writer.trouble is None
            assert again.rooms.retention.removed_unattested > 0
            removed = (state / "removed.jsonl").read_text().splitlines()
            assert len(removed) == again.rooms.retention.removed_unattested

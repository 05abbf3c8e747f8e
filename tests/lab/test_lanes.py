"""Tasks run in order and beside each other, and none is left however the run ends."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from lanes import Ended, Lanes, Task

from tests.support.waiting import wait_for

LAB = Path(__file__).parents[2] / "lab"


@pytest.fixture
def task(tmp_path: Path) -> Callable[..., Task]:
    def make(
        name: str,
        shell: str,
        lane: str = "a",
        seconds: float = 1,
        after: tuple = (),
        **more: bool,
    ) -> Task:
        command = ["sh", "-c", shell]
        return Task(name, command, lane, seconds, tmp_path / f"{name}.log", after, **more)

    return make


def run(tasks: list[Task], **workers: int) -> list[Ended]:
    ended: list[Ended] = []
    Lanes(tasks, workers).run(ended.append, lambda _: None)
    return ended


def test_longest_first_and_after_what_it_waits_for(task: Callable[..., Task]) -> None:
    first = task("first", "exit 3", seconds=1)
    tasks = [
        task("long", "echo long", seconds=9, after=(first,)),
        first,
        task("mid", "true", seconds=5),
    ]
    ended = run(tasks, a=1)
    assert [(each.task.title, each.status) for each in ended] == [
        ("mid", 0),
        ("first", 3),
        ("long", 0),
    ]
    assert tasks[0].log.read_text() == "long\n"


def test_lanes_are_beside_each_other(task: Callable[..., Task], tmp_path: Path) -> None:
    meet = "touch {0}; until [ -e {1} ]; do sleep 0.05; done"
    one, other = tmp_path / "one", tmp_path / "other"
    tasks = [
        task("one", meet.format(one, other), "a"),
        task("other", meet.format(other, one), "b"),
        task("third", "true", "b"),
    ]
    assert [each.status for each in run(tasks, a=1, b=1)] == [0, 0, 0]


def test_what_is_owed_comes_first_with_what_it_waits_for(task: Callable[..., Task]) -> None:
    ready = task("ready", "true", seconds=1, owed=False)
    tasks = [
        task("other", "true", seconds=9, owed=False),
        ready,
        task("owed", "true", seconds=1, after=(ready,)),
    ]
    assert [each.task.title for each in run(tasks, a=1)] == ["ready", "owed", "other"]


def test_what_is_not_owed_takes_no_time_of_what_is(
    task: Callable[..., Task], tmp_path: Path
) -> None:
    done = tmp_path / "done"
    tasks = [
        task("other", f"sleep 0.3; [ -e {done} ]", lane="a", owed=False),
        task("owed", "sleep 2", lane="b", seconds=2),
        task("owed later", f"touch {done}; sleep 1", lane="b"),
        task("last", f"[ -e {done} ]", lane="b", seconds=3, owed=False),
    ]
    ended = run(tasks, a=1, b=1)
    assert [each.status for each in ended] == [0, 0, 0, 0]


def test_when_the_time_is_up_only_what_is_needed_goes_on(task: Callable[..., Task]) -> None:
    ready = task("ready", "sleep 60", lane="b", owed=False)
    tasks = [
        task("runs", "sleep 60", lane="a"),
        task("needed", "sleep 3", lane="c", seconds=2, needed=True),
        task("needed later", "exit 4", lane="c", needed=True),
        task("owed", "true", lane="c", seconds=0),
        ready,
        task("waits", "true", lane="b", after=(ready,), owed=False),
    ]
    ended: list[Ended] = []
    lanes = Lanes(tasks, {"a": 1, "b": 1, "c": 1}, until=time.time() + 1)
    begun = time.monotonic()
    lanes.run(ended.append, lambda _: None, 0.1)
    assert time.monotonic() - begun < 50
    assert [(each.task.title, each.status) for each in ended] == [
        ("needed", 0),
        ("needed later", 4),
    ]
    assert {each.title for each in lanes.left} == {"runs", "owed", "ready", "waits"}


PROGRAM = """
import signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from lanes import Lanes, Task
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
place = Path(sys.argv[2])
loop = "while :; do sleep 0.1; done"
shell = f"trap 'echo told >{place}/told; exit' TERM INT; echo $$ >{place}/pid; {loop}"
task = Task("endless", ["sh", "-c", shell], "a", 1, place / "log")
Lanes([task], {"a": 1}).run(lambda _: None, lambda _: None)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_a_run_that_is_ended_takes_its_tasks_with_it(tmp_path: Path, number: int) -> None:
    runner = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, LAB, tmp_path], stderr=subprocess.DEVNULL
    )
    pid = tmp_path / "pid"
    wait_for(lambda: pid.exists() and pid.read_text())
    runner.send_signal(number)
    runner.wait(30)
    wait_for(lambda: not os.path.exists(f"/proc/{int(pid.read_text())}"))
    assert (tmp_path / "told").exists(), "it could clean up"

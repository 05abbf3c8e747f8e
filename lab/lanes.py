"""A queue of tasks with a few workers in each of its lanes, and none left over however it ends.

Each task is a process; what it prints is in a file of its own.
"""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

ENDINGS = ((signal.SIGINT, 30.0), (signal.SIGTERM, 20.0), (signal.SIGKILL, 10.0))
"""How a task is told to end, and how many seconds it has: a guest stops, files go."""

JOIN_SECONDS = 5.0


@dataclass(frozen=True, eq=False)
class Task:
    """Something to run; it waits for the tasks in `after` to end, however they do.

    Among those that can run, the one with the most `seconds` expected is taken first.
    """

    title: str
    command: list[str]
    lane: str
    seconds: float
    log: Path
    after: tuple["Task", ...] = ()
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Ended:
    """How a task ended, and how long it took (seconds)."""

    task: Task
    status: int
    seconds: float


class Lanes:
    """Runs tasks, as many at once in each lane as `workers` says for it."""

    def __init__(self, tasks: Iterable[Task], workers: dict[str, int]) -> None:
        self._waiting = list(tasks)
        self._running: dict[Task, float] = {}
        self._ended: dict[Task, Ended] = {}
        self._children: dict[Task, subprocess.Popen[bytes]] = {}
        self._workers = workers
        self._changed = threading.Condition()
        self._stopped = False

    def run(self, on_end: Callable[[Ended], None], on_wait: Callable[[list[Task]], None]) -> None:
        """Run all; `on_end` hears of each that ended, `on_wait` now and then of those that run."""
        threads = [
            threading.Thread(target=self._work, args=(lane,), daemon=True)
            for lane, count in self._workers.items()
            for _ in range(count)
        ]
        told: set[Task] = set()
        try:
            for thread in threads:
                thread.start()
            while any(thread.is_alive() for thread in threads):
                with self._changed:
                    self._changed.wait(30)
                    new = [ended for task, ended in self._ended.items() if task not in told]
                    running = list(self._running)
                for ended in new:
                    told.add(ended.task)
                    on_end(ended)
                if not new:
                    on_wait(running)
        finally:
            self._stop()
            for thread in threads:
                thread.join(JOIN_SECONDS)
        for task, ended in self._ended.items():
            if task not in told:
                on_end(ended)

    def _next(self, lane: str) -> Task | None:
        """Wait for a task of the lane that can run; None when there is none left."""
        with self._changed:
            while not self._stopped:
                left = [task for task in self._waiting if task.lane == lane]
                ready = [task for task in left if all(each in self._ended for each in task.after)]
                if ready:
                    task = max(ready, key=lambda task: task.seconds)
                    self._waiting.remove(task)
                    self._running[task] = time.monotonic()
                    return task
                if not left:
                    return None
                self._changed.wait(5)
        return None

    def _work(self, lane: str) -> None:
        while task := self._next(lane):
            begun = time.monotonic()
            status = self._run(task)
            with self._changed:
                del self._running[task]
                self._ended[task] = Ended(task, status, time.monotonic() - begun)
                self._changed.notify_all()

    def _run(self, task: Task) -> int:
        # The child goes with this thread, which waits for it: also when all of this is killed.
        with task.log.open("wb") as log:
            with self._changed:
                if self._stopped:
                    return 128 + signal.SIGTERM
                child = subprocess.Popen(
                    ["setpriv", "--pdeathsig", "TERM", *task.command],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    env={**os.environ, **task.environment},
                )
                self._children[task] = child
            status = child.wait()
            with self._changed:
                del self._children[task]
        return status

    def _stop(self) -> None:
        """Have everything that runs end: as at Ctrl-C, so that it cleans up, and then by force."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        for number, seconds in ENDINGS:
            deadline = time.monotonic() + seconds
            with self._changed:
                for child in self._children.values():
                    with suppress(ProcessLookupError):
                        os.killpg(child.pid, number)
                while self._children and time.monotonic() < deadline:
                    self._changed.wait(0.1)

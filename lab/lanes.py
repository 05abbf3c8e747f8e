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

from held import bound

ENDINGS = ((signal.SIGINT, 30.0), (signal.SIGTERM, 20.0), (signal.SIGKILL, 10.0))
"""How a task is told to end, and how many seconds it has: a guest stops, files go."""

JOIN_SECONDS = 5.0


@dataclass(frozen=True, eq=False)
class Task:
    """Something to run; it waits for the tasks in `after` to end, however they do.

    Among those that can run, the one with the most `seconds` expected is taken first. What is not
    `owed`, and no such one waits for, begins when all that is has begun, so that it takes no time
    from it. Only what is `needed` is not left when the time is up.
    """

    title: str
    command: list[str]
    lane: str
    seconds: float
    log: Path
    after: tuple["Task", ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    owed: bool = True
    needed: bool = False


@dataclass(frozen=True)
class Ended:
    """How a task ended, and how long it took (seconds)."""

    task: Task
    status: int
    seconds: float


class Lanes:
    """Runs tasks, as many at once in each lane as `workers` says for it.

    At `until` (seconds since 1970) what is not needed is ended, or not begun: it is in `left` then.
    """

    def __init__(
        self, tasks: Iterable[Task], workers: dict[str, int], until: float | None = None
    ) -> None:
        self.left: set[Task] = set()
        self._until = until
        self._waiting = list(tasks)
        self._running: dict[Task, float] = {}
        self._ended: dict[Task, Ended] = {}
        self._children: dict[Task, subprocess.Popen[bytes]] = {}
        self._workers = workers
        self._changed = threading.Condition()
        self._stopped = False

    def run(
        self,
        on_end: Callable[[Ended], None],
        on_wait: Callable[[list[Task]], None],
        wait_seconds: float = 30,
    ) -> None:
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
                    self._changed.wait(wait_seconds)
                    if self._until is not None and time.time() >= self._until:
                        self._leave()
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
                over = self._ended.keys() | self.left
                ready = [task for task in left if over.issuperset(task.after)]
                if any(task.owed for task in self._waiting):
                    ready = [task for task in ready if self._is_owed(task)]
                if ready:
                    task = max(ready, key=lambda task: task.seconds)
                    self._waiting.remove(task)
                    self._running[task] = time.monotonic()
                    return task
                if not left:
                    return None
                self._changed.wait(5)
        return None

    def _is_owed(self, task: Task) -> bool:
        return task.owed or any(each.owed and task in each.after for each in self._waiting)

    def _work(self, lane: str) -> None:
        while task := self._next(lane):
            begun = time.monotonic()
            status = self._run(task)
            with self._changed:
                del self._running[task]
                if task not in self.left:
                    self._ended[task] = Ended(task, status, time.monotonic() - begun)
                self._changed.notify_all()

    def _run(self, task: Task) -> int:
        # The child goes with this thread, which waits for it: also when all of this is killed.
        with task.log.open("wb") as log:
            with self._changed:
                if self._stopped:
                    return 128 + signal.SIGTERM
                child = subprocess.Popen(
                    bound(task.command, "TERM"),
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

    def _leave(self) -> None:
        """Have what is not needed end, and begin no more of it."""
        running = {task for task in self._running if not task.needed}
        waiting = {task for task in self._waiting if not task.needed}
        self._waiting = [task for task in self._waiting if task.needed]
        self.left |= running | waiting
        self._changed.notify_all()
        self._end(running)

    def _stop(self) -> None:
        """Have everything that runs end."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
            self._end(set(self._running))

    def _end(self, tasks: set[Task]) -> None:
        """Have tasks that run end: as at Ctrl-C, so that they clean up, and then by force."""
        for number, seconds in ENDINGS:
            deadline = time.monotonic() + seconds
            for task in tasks & self._children.keys():
                with suppress(ProcessLookupError):
                    os.killpg(self._children[task].pid, number)
            while tasks & self._children.keys() and time.monotonic() < deadline:
                self._changed.wait(0.1)

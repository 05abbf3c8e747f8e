#!/usr/bin/python3
"""Runs tests: on this machine and in guests, beside each other."""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import coverage_report as coverage
from changed import changed_files, touched
from guest_report import IN_GUEST, by_file, processor_seconds, tests_in
from held import DIRECTORY, held, remove
from lanes import Ended, Lanes, Task
from passed import Before, Files
from releases import releases
from shards import Durations, Shard, divide, record, recorded
from suites import CHECKOUT, all_tests

LAB = CHECKOUT / "lab"
PYTEST = str(CHECKOUT / ".venv/bin/pytest")
RUNS = CHECKOUT / "build/test"
RUNS_KEPT = 3
NO_TESTS_RAN = 5
SHARD_LIMIT = 7200
"""Seconds after which a guest's tests are ended: on a quiet machine no shard takes a twentieth, and
one that is slow, beside other work, has taken a third."""
GIB_PER_GUEST = 4
FREEZE_FROM_SECONDS = 240.0
"""A release with fewer processor seconds of tests than that is not worth freezing a guest for."""
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def arguments(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Parse the command line of `./dev test`; what it does not know is pytest's."""
    parser = argparse.ArgumentParser(
        prog="./dev test",
        description="""Run all tests: lint and types, tests on this machine and, beside them, tests
        in guests of each Debian release, a part of them in each guest. Options and tests
        (tests/...) that are named are passed on to pytest.""",
        allow_abbrev=False,
    )
    add = parser.add_argument
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--native", action="store_true", help="only the tests on this machine")
    where.add_argument("--guests", action="store_true", help="only the tests that boot guests")
    where.add_argument("--debian", choices=releases(), action="append", help="only in guests of it")
    add("--changed", action="store_true", help="only tests that import what differs from main")
    add("--everything", action="store_true", help="in each release also what another is enough for")
    add("--record", action="store_true", help="keep the durations, for shards of later runs")
    add("--until", type=float, metavar="SECONDS", help="when the time is up (seconds since "
        "1970): what guests have not done by then is left, and named")  # fmt: skip
    add("--missing", action="store_true", help="only what did not pass with these very files yet")
    return parser.parse_known_args(argv)


def say(text: str) -> None:
    """Tell the developer something, at once."""
    print(f"dev: {text}", file=sys.stderr, flush=True)


@dataclass
class Plan:
    """What is to run, with everything that it leaves in `directory`."""

    options: argparse.Namespace
    targets: list[str]
    passed_on: list[str]
    directory: Path
    files: Files | None = None
    keys: dict[Task, str] = field(default_factory=dict)
    """What the tasks are remembered by, in a run of all tests."""
    before: dict[Task, Before] = field(default_factory=dict)
    """Those of them that passed before."""

    @property
    def is_whole(self) -> bool:
        """Whether these are all tests."""
        options = self.options
        limited = options.native or options.guests or options.debian
        return not (limited or self.targets or self.passed_on)

    def tasks(self) -> list[Task]:
        """Return all of it; what passed before with the same files is not owed."""
        options = self.options
        only_guests = options.guests or options.debian
        native = [each for each in self.targets if not each.startswith(("tests/vm", "tests/lab"))]
        lab = [each for each in self.targets if each.startswith("tests/lab")]
        tasks = []
        if not (only_guests or self.targets or options.native):
            lint = self._task("lint, format, types", ["./dev", "check"], "native", 1e6)
            tasks.append(replace(lint, needed=True))
        if not only_guests and (native or not self.targets):
            everything = ["--everything"] if options.everything else []
            passed_on = [*everything, *self.passed_on]
            slowest = ["--durations=30", "--durations-min=5"]
            command = [PYTEST, "-n", "2", "--dist", "loadfile", *slowest, *native, *passed_on]
            environment = {}
            if self.is_whole:
                command = [*coverage.RUN, *command[1:]]
                environment = coverage.environment(self.directory)
            title = "tests on this machine"
            task = self._task(title, command, "native", 1, environment=environment)
            tasks.append(self._remembered(replace(task, needed=True)))
        if not (options.native or options.debian) and (lab or not self.targets):
            command = [PYTEST, *(lab or ["tests/lab"]), *self.passed_on]
            tasks.append(self._remembered(self._task("the lab itself", command, "guests", 100)))
        if not options.native:
            tasks += self._guest_tasks()
        return tasks

    def _guest_tasks(self) -> list[Task]:
        named = [each for each in self.targets if each.startswith("tests/vm")]
        if self.targets and not named:
            return []
        tests = [
            test
            for each in named or all_tests()
            for test in (
                [test for test in all_tests() if test.startswith(f"{each.rstrip('/')}/")] or [each]
            )
        ]
        wanted = self.options.debian or releases()
        prepare()
        shards = divide(tests, wanted, self.options.everything, recorded())
        ready = {release: self._freeze(release, shards) for release in wanted}
        tasks = [task for task in ready.values() if task]
        for number, shard in enumerate(shards):
            before = ready[shard.release]
            after = (before,) if before and not shard.suite.options else ()
            tasks.append(self._shard(number, shard, after))
        return tasks

    def _freeze(self, release: str, shards: list[Shard]) -> Task | None:
        """The task that has the release's guest frozen, if it is worth it."""
        own = [each for each in shards if each.release == release and not each.suite.options]
        if len(own) < 2 and sum(each.seconds for each in own) < FREEZE_FROM_SECONDS:
            return None
        command = [str(LAB / "vm.py"), "--debian", release, "--frozen", "--verbose", "/bin/true"]
        title = f"Debian {release}: a guest to thaw"
        return replace(self._task(title, command, "guests", 1e6), owed=False)

    def _shard(self, number: int, shard: Shard, after: tuple[Task, ...]) -> Task:
        name = self._name(number)
        boot = [str(LAB / "vm.py"), "--debian", shard.release, "--verbose", *shard.suite.options]
        boot += ["--timeout", str(SHARD_LIMIT), "--usage", f"{name}.usage.json"]
        boot += ["--get", f"{IN_GUEST}:{name}.tests.json"]
        boot += ["--get", f"{coverage.IN_GUEST}:{name}.coverage"]
        everything = ["--everything"] if self.options.everything else []
        job = [str(LAB / "guest-pytest"), "-v", *shard.tests, *everything, *self.passed_on]
        command = [*boot, *job]
        task = self._task(shard.title, command, "guests", shard.seconds, after=after, number=number)
        return self._remembered(task, shard.tests)

    def _remembered(self, task: Task, tests: tuple[str, ...] | None = None) -> Task:
        """The task, owed unless it passed before; `tests` are those that a guest has of it."""
        if not self.files or not self.is_whole:
            return task
        title = f"{task.title}{' with everything' if self.options.everything else ''}"
        own = self.files.key_of(title, tests)
        before = self.files.before(own)
        is_new = before is None
        task = replace(task, owed=is_new, needed=task.needed and is_new)
        self.keys[task] = own
        if before:
            self.before[task] = before
        return task

    def parts(self, task: Task) -> list[Path]:
        """Return the directories with what the task counted."""
        here = task.log.with_suffix(".coverage")
        native = self.directory / coverage.NATIVE
        found = [here, *([native] if task.lane == "native" else [])]
        return [each for each in found if each.is_dir()]

    def tell_of(self, left: list[Task]) -> list[Task]:
        """Tell what of the tests was left; return what never passed."""
        not_run = []
        for task in left:
            if before := self.before.get(task):
                at = time.strftime("%Y-%m-%d %H:%M", time.localtime(before.at))
                by = f"commit {before.commit[:12]}, with the same files"
                say(f"not run again: {task.title}: passed {at}, {by}")
            elif task in self.keys:
                say(f"NOT RUN, the time was up, and never passed with these files: {task.title}")
                not_run.append(task)
        return not_run

    def _name(self, number: int) -> Path:
        return self.directory / f"shard-{number:02}"

    def _task(
        self,
        title: str,
        command: list[str],
        lane: str,
        seconds: float,
        *,
        after: tuple[Task, ...] = (),
        number: int | None = None,
        environment: dict[str, str] | None = None,
    ) -> Task:
        plain = "".join(letter if letter.isalnum() else "-" for letter in title)[:40]
        log = self.directory / f"{plain}.log" if number is None else self._name(number)
        return Task(
            title, command, lane, seconds, log.with_suffix(".log"), after, environment or {}
        )


def native_tests() -> list[str]:
    """Return the files with tests that need no guest, and those of the lab."""
    tops = ("unit", "integration", "fuzz", "lab")
    files = [file for top in tops for file in (CHECKOUT / "tests" / top).rglob("test_*.py")]
    return sorted(str(file.relative_to(CHECKOUT)) for file in files)


def prepare() -> None:
    """Build here what suites want built, with the `prepare` of each: guests have no compiler."""
    for program in sorted((CHECKOUT / "tests/vm").glob("*/prepare")):
        subprocess.run([str(program)], check=True)


def new_directory() -> Path:
    """Return a directory for this run; those of the last few runs stay, and of all that still run.

    It is held by a lock until the process ends: several runs in one checkout are nothing unusual.
    """
    RUNS.mkdir(parents=True, exist_ok=True)
    for old in sorted(RUNS.iterdir())[: -RUNS_KEPT + 1]:
        with contextlib.suppress(BlockingIOError, FileNotFoundError):
            remove(old)
    directory = RUNS / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    directory.mkdir()
    with held(directory, DIRECTORY) as lock:
        os.set_inheritable(os.dup(lock), True)  # for as long as it runs; it may become pytest
    return directory


def guests_at_once() -> int:
    """Return how many guests this machine runs beside each other.

    By the memory that it has: what is free says little where a machine's own host takes back what
    is idle, and gives it again.
    """
    lines = Path("/proc/meminfo").read_text().splitlines()
    kib = next(int(line.split()[1]) for line in lines if line.startswith("MemTotal:"))
    return max(1, min(os.cpu_count() or 1, (kib >> 20) // GIB_PER_GUEST - 1))


class Progress:
    """What a developer sees of a run."""

    def __init__(self, tasks: list[Task]) -> None:
        self.failed: list[Ended] = []
        self._number, self._count = 0, len(tasks)
        self._begun = time.monotonic()

    @staticmethod
    def is_good(ended: Ended) -> bool:
        """Whether no test failed."""
        return ended.status in (0, NO_TESTS_RAN)

    def ended(self, ended: Ended) -> None:
        """Tell how a task ended: in a line, or with all that it printed where it failed."""
        self._number += 1
        text = ended.task.log.read_text(errors="replace") if ended.task.log.exists() else ""
        good = self.is_good(ended)
        summary = [line.strip("= ") for line in text.splitlines() if line.startswith("====")]
        last = f": {summary[-1]}" if summary else ""
        say(
            f"[{self._number}/{self._count}, {time.monotonic() - self._begun:.0f} s] "
            f"{'ok' if good else 'FAILED'} {ended.task.title} ({ended.seconds:.0f} s){last}"
        )
        if not good:
            self.failed.append(ended)
            print(text, flush=True)

    def waiting(self, running: list[Task]) -> None:
        """Tell that something is still going on."""
        for task in running:
            lines = task.log.read_text(errors="replace").splitlines() if task.log.exists() else []
            say(f"  running: {task.title}: {lines[-1][:150] if lines else ''}")


def durations_of(directory: Path, shards: list[Task]) -> Durations:
    """Return what the shards took, by release and file."""
    all_of_them: Durations = {}
    for task in shards:
        stem = task.log.with_suffix("")
        used = processor_seconds(tests_in(Path(f"{stem}.tests.json")), Path(f"{stem}.usage.json"))
        release = task.title.split()[1].rstrip(":")
        for files in by_file(release, used).values():
            for file, seconds in files.items():
                of_release = all_of_them.setdefault(release, {})
                of_release[file] = of_release.get(file, 0.0) + seconds
    (directory / "durations.json").write_text(json.dumps(all_of_them, indent=1, sort_keys=True))
    return all_of_them


def end_on_signal(number: int, _frame: object) -> None:
    """End with the status of the signal, and let no further one disturb the cleaning up."""
    for other in SIGNALS:
        signal.signal(other, signal.SIG_IGN)
    sys.exit(128 + number)


def main() -> int:
    """Run `./dev test`."""
    os.chdir(CHECKOUT)
    options, words = arguments(sys.argv[1:])
    targets = [word for word in words if word.startswith("tests/")]
    passed_on = [word for word in words if word not in targets]
    if options.changed:
        files = changed_files()
        targets = touched(files, targets or [*native_tests(), *all_tests()])
        say(f"{len(files)} files changed, {len(targets)} files of tests import them")
        if not targets:
            return 0
    directory = new_directory()
    plan = Plan(options, targets, passed_on, directory, Files.of_checkout())
    tasks = plan.tasks()
    if not tasks:
        say("there is nothing to run")
        return 2
    if plan.before:
        say(f"{len(plan.before)} of {len(plan.keys)} tasks passed before with these very files")
    skipped = [task for task in plan.before if options.missing]
    tasks = [task for task in tasks if task not in skipped]
    for number in SIGNALS:
        signal.signal(number, end_on_signal)
    if len(tasks) == 1 and not plan.is_whole:
        os.execv(tasks[0].command[0], tasks[0].command)  # noqa: S606 - that is what is wanted
    progress = Progress(tasks)

    def on_end(ended: Ended) -> None:
        progress.ended(ended)
        if plan.files and ended.task in plan.keys and Progress.is_good(ended):
            plan.files.passed(plan.keys[ended.task], plan.parts(ended.task))

    lanes = Lanes(tasks, {"native": 1, "guests": guests_at_once()}, options.until)
    lanes.run(on_end, progress.waiting)
    counted = [part for task in tasks for part in plan.parts(task) if task not in lanes.left]
    left = [*(task for task in tasks if task in lanes.left), *skipped]
    counted += [part for task in left if task in plan.before for part in plan.before[task].parts]
    not_run = plan.tell_of(left)
    shards = [task for task in tasks if task.log.name.startswith("shard-")]
    measured = durations_of(directory, shards)
    if options.record:
        record(measured)
    for ended in progress.failed:
        say(f"failed: {ended.task.title}: exit status {ended.status}; {ended.task.log}")
    is_covered = not plan.is_whole or coverage.show(directory, counted)
    if not_run:
        say(f"{len(not_run)} of {len(plan.keys)} tasks were not run, which counts for coverage too")
    elif not is_covered:
        say("failed: fewer lines and branches run in tests than pyproject.toml wants")
        return 1
    if not passed_on and (shards and not any(measured.values())):
        say("failed: no test ran in a guest")
        return 1
    return 1 if progress.failed else 0


if __name__ == "__main__":
    sys.exit(main())

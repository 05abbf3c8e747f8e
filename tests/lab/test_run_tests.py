"""What `./dev test` runs for its arguments."""

from pathlib import Path

import passed
import pytest
import run_tests
from lanes import Ended, Task
from passed import Files
from releases import releases
from run_tests import Plan, Progress
from suites import all_tests, runs_on


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(run_tests, "prepare", lambda: None)
    monkeypatch.setattr(passed, "CACHE", tmp_path / "cache")
    files = Files({"README.md": "100644 0 0"}, "0" * 40)

    def make(*words: str) -> Plan:
        options, others = run_tests.arguments([*words])
        targets = [word for word in others if word.startswith("tests/")]
        return Plan(
            options, targets, [each for each in others if each not in targets], tmp_path, files
        )

    return make


def test_without_arguments_everything(plan) -> None:
    made = plan()
    tasks = made.tasks()
    assert made.is_whole
    titles = [task.title for task in tasks]
    assert titles[:3] == ["lint, format, types", "tests on this machine", "the lab itself"]
    assert titles[3:6] == [f"Debian {each}: a guest to thaw" for each in releases()]
    named = {word for task in tasks[6:] for word in task.command if word.startswith("tests/vm/")}
    default_ones = {
        test for test in all_tests() if any(runs_on(test, each, False) for each in releases())
    }
    assert named == default_ones
    every = plan("--everything").tasks()
    assert set(all_tests()) <= {word for task in every for word in task.command}
    for task in tasks[6:]:
        release = task.command[task.command.index("--debian") + 1]
        default = not {
            "--append",
            "--kernel",
            "--memory",
            "--no-tpm",
            "--packages",
            "--reboots",
        } & set(task.command)
        assert [each.title for each in task.after] == (
            [f"Debian {release}: a guest to thaw"] if default else []
        )
    assert len({task.log for task in tasks}) == len(tasks), "each has a log of its own"


def test_what_passed_before_is_not_owed(plan, tmp_path: Path) -> None:
    first = plan()
    tasks = first.tasks()
    assert [task.title for task in tasks if not task.owed] == [
        f"Debian {each}: a guest to thaw" for each in releases()
    ]
    assert [task.title for task in tasks if task not in first.keys] == [
        "lint, format, types",
        *(f"Debian {each}: a guest to thaw" for each in releases()),
    ]
    assert [task.title for task in tasks if task.needed] == [
        "lint, format, types",
        "tests on this machine",
    ]
    for task in (tasks[1], *tasks[-2:]):
        first.files.passed(first.keys[task], [])
    again = plan().tasks()
    assert [task.title for task in again if task.needed] == ["lint, format, types"]
    left = [task.title for task in again if not task.owed]
    assert left[-2:] == [task.title for task in tasks[-2:]]
    assert len(left) == 3 + len(releases())
    assert not plan("--everything").before, "of which there is more"
    part = plan("--debian", "13")
    assert all(task.owed for task in part.tasks() if task.after)
    assert not part.keys, "only runs of all tests count for coverage"


def test_one_guest_test_is_one_task_that_freezes_nothing(plan) -> None:
    [task] = plan(
        "--debian", "13", "tests/vm/test_agent.py::test_a_second_agent_is_refused"
    ).tasks()
    assert task.command[-1] == "tests/vm/test_agent.py::test_a_second_agent_is_refused"
    assert not task.after


def test_native_tests_that_are_named_need_no_guest(plan) -> None:
    [task] = plan("tests/unit/ml", "-k", "line").tasks()
    assert task.lane == "native"
    assert task.command[-3:] == ["tests/unit/ml", "-k", "line"]


def test_a_directory_of_guest_tests_is_all_of_its_files(plan) -> None:
    tasks = plan("--debian", "12", "tests/vm/soak", "--everything").tasks()
    named = sorted(word for task in tasks for word in task.command if word.startswith("tests/"))
    assert named == ["tests/vm/soak/test_kills.py", "tests/vm/soak/test_soak.py"]
    assert all("--everything" in task.command for task in tasks)


def test_what_failed_is_shown_whole(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    good = Task("good", [], "a", 1, tmp_path / "good.log")
    bad = Task("bad", [], "a", 1, tmp_path / "bad.log")
    good.log.write_text("what went well\n======= 3 passed in 2 s =======\n")
    bad.log.write_text("what went wrong\n")
    progress = Progress([good, bad])
    for task, status in ((good, 0), (bad, 1)):
        progress.ended(Ended(task, status, 2.0))
    shown = capfd.readouterr()
    assert "ok good (2 s): 3 passed in 2 s\n" in shown.err
    assert "FAILED bad (2 s)" in shown.err
    assert shown.out == "what went wrong\n\n"
    assert [each.task for each in progress.failed] == [bad]


def test_the_directory_of_a_run_that_goes_on_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_tests, "RUNS", tmp_path)
    times = iter(f"2026010{day}-000000" for day in range(1, 9))
    monkeypatch.setattr(run_tests.time, "strftime", lambda _: next(times))
    made = run_tests.new_directory()  # its lock is this process's until it ends
    ended = [tmp_path / f"2025010{day}-000000-1" for day in range(1, 9)]
    for directory in ended:
        directory.mkdir()
    run_tests.new_directory()
    run_tests.new_directory()
    assert made.is_dir()
    assert not any(directory.exists() for directory in ended)

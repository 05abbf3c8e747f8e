"""What is remembered of tests that passed, and what makes it void."""

import os
import subprocess
from pathlib import Path

import cache
import changed
import passed
import pytest
from passed import Files

GUEST = ("tests/vm/test_one.py",)
ALL_FILES = {
    "cima_runc/agent.py": "",
    "docs/page.md": "",
    "docs/how-to/page.md": "",
    "lab/lanes.py": "",
    "lab/vm.py": "",
    "README.md": "",
    "tests/support/help.py": "",
    "tests/unit/test_agent.py": "",
    "tests/vm/durations.json": "{}",
    "tests/vm/guest.py": "",
    "tests/vm/test_one.py": "from tests.vm import test_shared",
    "tests/vm/test_other.py": "",
    "tests/vm/test_shared.py": "",
}


def git(*words: str) -> None:
    who = {
        f"GIT_{role}_{what}": "a" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
    }
    subprocess.run(["git", *words], check=True, env={**os.environ, **who}, capture_output=True)


@pytest.fixture(autouse=True)
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    made = tmp_path / "checkout"
    monkeypatch.setattr(passed, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(cache, "CACHE", tmp_path / "cache")
    for module in (passed, changed):
        monkeypatch.setattr(module, "CHECKOUT", made)
    changed.imports.cache_clear()
    changed._text.cache_clear()
    for name, text in ALL_FILES.items():
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_text(text)
    monkeypatch.chdir(made)
    git("init", "--quiet")
    commit()
    return made


def commit() -> None:
    git("add", ".")
    git("commit", "--quiet", "--message", "all", "--allow-empty")


def keys() -> tuple[str, str]:
    files = Files.of_checkout()
    assert files
    return files.key_of("native", None), files.key_of("guest", GUEST)


@pytest.mark.parametrize(
    ("file", "natively", "in_guest"),
    [
        ("cima_runc/agent.py", True, True),
        ("docs/page.md", True, False),
        ("docs/how-to/page.md", True, True),
        ("lab/vm.py", True, True),
        ("lab/lanes.py", True, False),
        ("README.md", True, True),
        ("tests/support/help.py", True, True),
        ("tests/unit/test_agent.py", True, False),
        ("tests/vm/durations.json", False, False),
        ("tests/vm/guest.py", True, True),
        ("tests/vm/test_one.py", True, True),
        ("tests/vm/test_other.py", True, False),
        ("tests/vm/test_shared.py", True, True),
        ("a new one", True, True),
    ],
)
def test_a_changed_file_makes_it_void(
    checkout: Path, file: str, natively: bool, in_guest: bool
) -> None:
    before = keys()
    with (checkout / file).open("a") as changed_one:
        changed_one.write("\n# changed\n")
    commit()
    now = keys()
    assert (now[0] != before[0], now[1] != before[1]) == (natively, in_guest)


def test_a_mode_and_a_name_count_too(checkout: Path) -> None:
    before = keys()
    (checkout / "lab/vm.py").chmod(0o755)
    commit()
    with_mode = keys()
    git("mv", "lab/vm.py", "lab/machine.py")
    commit()
    assert len({before, with_mode, keys()}) == 3


def test_what_is_in_no_commit_is_not_remembered(checkout: Path) -> None:
    assert Files.of_checkout()
    (checkout / "new").touch()
    assert Files.of_checkout() is None
    commit()
    assert Files.of_checkout()
    (checkout / "new").write_text("changed")
    assert Files.of_checkout() is None


def test_what_passed_comes_back_with_what_it_counted(checkout: Path, tmp_path: Path) -> None:
    files = Files.of_checkout()
    assert files
    part = tmp_path / "shard-01.coverage"
    part.mkdir()
    (part / "data.1").write_text("counted")
    own, other = keys()
    assert files.before(own) is None
    files.passed(own, [part])
    files.passed(own, [part])
    found = files.before(own)
    assert found
    assert [(each / "data.1").read_text() for each in found.parts] == ["counted"]
    assert files.before(other) is None

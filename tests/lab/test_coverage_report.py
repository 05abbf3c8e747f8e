"""The floor of coverage only rises."""

import os
import subprocess
from pathlib import Path

import pytest
from coverage_report import lowered


def git(place: Path, *words: str) -> None:
    who = {
        f"GIT_{role}_{what}": "a" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
    }
    env = {**os.environ, **who}
    subprocess.run(["git", *words], cwd=place, check=True, env=env, capture_output=True)


def want(place: Path, per_cent: str) -> None:
    (place / "pyproject.toml").write_text(f"[tool.coverage.report]\n{per_cent}\nprecision = 1\n")


def commit(place: Path, per_cent: str) -> None:
    want(place, per_cent)
    git(place, "add", ".")
    git(place, "commit", "--quiet", "--allow-empty", "--message", "a")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    made = tmp_path / "checkout"
    made.mkdir()
    git(made, "init", "--quiet", "--initial-branch", "main")
    commit(made, "fail_under = 80")
    commit(made, "fail_under = 92.5")
    return made


@pytest.mark.parametrize("lower", ["fail_under = 92", "fail_under = 80", ""])
def test_a_lower_floor_is_refused_also_when_it_is_committed(checkout: Path, lower: str) -> None:
    assert lowered(checkout) is None
    want(checkout, lower)
    assert "and was 92.5" in str(lowered(checkout))
    commit(checkout, lower)
    assert "and was 92.5" in str(lowered(checkout))
    commit(checkout, "fail_under = 93")
    assert lowered(checkout) is None


def test_what_a_merge_leaves_out_was_there(checkout: Path) -> None:
    git(checkout, "switch", "--quiet", "--create", "other")
    commit(checkout, "fail_under = 95")
    git(checkout, "switch", "--quiet", "main")
    commit(checkout, "fail_under = 93")
    assert lowered(checkout) is None, "another branch's is none of its own"
    git(checkout, "merge", "--quiet", "--strategy", "ours", "other")
    assert "is 93, and was 95" in str(lowered(checkout))


def test_a_shallow_clone_says_so_and_compares_with_what_it_has(
    checkout: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    git(tmp_path, "clone", "--quiet", "--depth", "1", f"file://{checkout}", "clone")
    assert lowered(tmp_path / "clone") is None
    assert "shallow" in capfd.readouterr().err
    want(tmp_path / "clone", "fail_under = 92")
    assert "is 92, and was 92.5" in str(lowered(tmp_path / "clone"))


def test_without_git_it_is_compared_with_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    want(tmp_path, "fail_under = 1")
    assert lowered(tmp_path) is None
    assert "no git" in capfd.readouterr().err

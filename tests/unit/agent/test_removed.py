"""The file that names what was removed has an end; how many were removed has none."""

import json
from pathlib import Path

import pytest

from cima_runc.agent.removed import Removed
from cima_runc.base import limits


def test_the_oldest_lines_go_and_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "REMOVED_FILE", 1000)
    path = tmp_path / "removed.jsonl"
    removed = Removed(path)
    assert removed.count == 0
    for number in range(300):
        removed.append({"registration": number, "id": "box"})
        assert path.stat().st_size <= 1000
        assert removed.count == Removed(path).count == number + 1
    first, *lines = map(json.loads, path.read_text().splitlines())
    assert [line["registration"] for line in lines] == list(range(first["earlier"], 300))
    assert first["earlier"] > 200


def test_a_user_costs_nobody_elses_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kind: one room for all, in which the oldest goes, whosever it is."""
    monkeypatch.setattr(limits, "REMOVED_FILE", 8000)
    path = tmp_path / "removed.jsonl"
    removed = Removed(path)
    for number, uid in enumerate([0, 0, 1001, *[1000] * 500]):
        removed.append({"registration": number, "id": "box", "uid": uid})
        assert path.stat().st_size <= 8000
    first, *lines = map(json.loads, path.read_text().splitlines())
    assert [line["registration"] for line in lines if line["uid"] != 1000] == [0, 1, 2]
    assert first["earlier"] + len(lines) == removed.count == 503
    # What he has that is newest is there.
    assert lines[-1]["registration"] == 502


def test_a_line_of_a_container_that_is_called_so_is_none_of_ours(tmp_path: Path) -> None:
    removed = Removed(tmp_path / "removed.jsonl")
    removed.append({"id": "earlier", "registration": 7})
    assert Removed(tmp_path / "removed.jsonl").count == 1

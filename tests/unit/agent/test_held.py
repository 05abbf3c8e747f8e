import os
from pathlib import Path

from cima_runc.agent.held import Held


def test_shows_what_is_held(tmp_path: Path) -> None:
    directory = tmp_path / "held"
    held = Held(directory)
    held.add("early", "/b")
    assert not directory.exists()  # hooks wait until it is known what an earlier agent held
    held.begin()
    held.add("late", "/b")
    assert sorted(os.listdir(directory)) == ["early", "late"]
    held.remove("early", "/b")
    assert os.listdir(directory) == ["late"]
    assert ("late", "/b") in held
    assert ("early", "/b") not in held


def test_an_id_of_two_bundles_is_shown_until_neither_is_held(tmp_path: Path) -> None:
    held = Held(tmp_path / "held")
    held.begin()
    held.add("x", "/a")
    held.add("x", "/b")
    held.remove("x", "/a")
    assert os.listdir(tmp_path / "held") == ["x"]
    held.remove("x", "/b")
    assert os.listdir(tmp_path / "held") == []


def test_what_an_agent_before_showed_is_gone(tmp_path: Path) -> None:
    (tmp_path / "held").mkdir()
    (tmp_path / "held" / "x").touch()
    held = Held(tmp_path / "held")
    held.begin()
    assert os.listdir(tmp_path / "held") == []


def test_ids_that_are_no_names_are_not_shown(tmp_path: Path) -> None:
    held = Held(tmp_path / "held")
    held.begin()
    for container_id in ("1000/x", "y" * 256):
        held.add(container_id, "/b")
        assert (container_id, "/b") in held
        held.remove(container_id, "/b")
    assert os.listdir(tmp_path / "held") == []


def test_where_it_cannot_be_shown_nothing_is(tmp_path: Path) -> None:
    held = Held(tmp_path / "held")
    held.begin()
    held.add("x", "/b")
    (tmp_path / "held" / "y").symlink_to(tmp_path / "no/such")  # touch fails
    held.add("y", "/b")
    assert not (tmp_path / "held").exists()
    assert ("y", "/b") in held


def test_without_a_directory(tmp_path: Path) -> None:
    held = Held(None)
    held.begin()
    held.add("x", "/b")
    assert ("x", "/b") in held
    held.remove("x", "/b")
    assert ("x", "/b") not in held

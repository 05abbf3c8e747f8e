"""How guest tests are divided, and what each is charged with."""

import json
import re
from pathlib import Path

import guest_report
import pytest
import shards
import suites
from hypothesis import given
from hypothesis import strategies as st
from releases import releases

LENGTHS = st.dictionaries(st.text("abcdef", min_size=1), st.floats(0, 500), max_size=40)


@given(LENGTHS, st.floats(1, 300))
def test_each_item_is_in_one_group_and_groups_are_not_too_long(
    seconds: dict[str, float], most: float
) -> None:
    groups = shards.balance(seconds, most)
    assert sorted(item for group in groups for item in group) == sorted(seconds)
    for group in groups:
        assert len(group) == 1 or sum(seconds[item] for item in group) <= most


@given(LENGTHS, st.floats(1, 300))
def test_groups_are_few(seconds: dict[str, float], most: float) -> None:
    lengths = [sum(seconds[item] for item in group) for group in shards.balance(seconds, most)]
    assert sum(length <= most / 2 for length in lengths) <= 1, "these two would be one"


def test_every_test_is_in_a_shard_of_each_release_that_wants_it() -> None:
    divided = shards.divide(suites.all_tests(), releases(), True, {})
    for release in releases():
        of_release = [shard for shard in divided if shard.release == release]
        found = [test for shard in of_release for test in shard.tests]
        wanted = [test for test in suites.all_tests() if suites.suite_of(test).is_for(release)]
        assert sorted(found) == wanted
    assert [shard.seconds for shard in divided] == sorted(
        (shard.seconds for shard in divided), reverse=True
    )


def test_a_shard_has_tests_of_one_suite() -> None:
    for shard in shards.divide(suites.all_tests(), releases(), False, shards.recorded()):
        assert {suites.suite_of(test) for test in shard.tests} == {shard.suite}


def test_a_suite_is_a_directory_with_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suites, "CHECKOUT", tmp_path)
    new = tmp_path / "tests/vm/new/deep"
    new.mkdir(parents=True)
    (new.parent / "guest-options").write_text("--debian 13 --no-tpm  # why\n")
    (new / "test_it.py").write_text("")
    assert suites.all_tests() == ["tests/vm/new/deep/test_it.py"]
    suite = suites.suite_of("tests/vm/new/deep/test_it.py::test_one[a/b]")
    assert suite.options == ["--debian", "13", "--no-tpm"]
    assert [suite.is_for(release) for release in ("12", "13")] == [False, True]
    assert suites.suite_of("tests/vm/test_other.py").options == []


@pytest.mark.parametrize(
    ("text", "here"),
    [
        ("", True),
        ('pytestmark = pytest.mark.debian("12")', False),
        ('pytestmark = pytest.mark.debian("12", "13")', True),
        ("pytestmark = pytest.mark.debian()", False),
        ('@pytest.mark.debian("12")\ndef test_x(): ...', True),
    ],
)
def test_a_module_for_other_releases_has_no_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, here: bool
) -> None:
    monkeypatch.setattr(suites, "CHECKOUT", tmp_path)
    (tmp_path / "tests/vm").mkdir(parents=True)
    (tmp_path / "tests/vm/test_it.py").write_text(f"import pytest\n\n{text}\n")
    assert suites.runs_on("tests/vm/test_it.py", "13", False) == here
    assert suites.runs_on("tests/vm/test_it.py", "13", True)


def test_durations_that_were_not_measured_now_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "RECORDED", tmp_path / "durations.json")
    one, other = suites.all_tests()[:2]
    shards.record({"12": {one: 10.04, "tests/vm/test_gone.py": 5}, "13": {one: 1}})
    shards.record({"12": {other: 7}})
    assert shards.recorded() == {"12": {one: 10.0, other: 7.0}, "13": {one: 1.0}}


def test_a_test_is_charged_with_all_since_the_one_before(tmp_path: Path) -> None:
    usage = tmp_path / "usage.json"
    usage.write_text(json.dumps([[100, 0], [110, 8], [120, 10], [130, 20]]))
    ran = [guest_report.Ran("a.py::x", 105, 110), guest_report.Ran("a.py::y", 110, 125)]
    used = guest_report.processor_seconds(ran, usage)
    assert used == {"a.py::x": 8.0, "a.py::y": 7.0}
    assert guest_report.by_file("12", used) == {"12": {"a.py": 15.0}}
    assert guest_report.processor_seconds(ran, tmp_path / "none") == {}


def test_releases_are_one_line_each() -> None:
    lines = Path(suites.CHECKOUT / "lab/releases").read_text().splitlines()
    assert releases() == [line.split()[0] for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9]+", release) for release in releases())

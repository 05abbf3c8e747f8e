"""What a project that others pick up has, and that it is in step with the rest."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

import cima_runc

TOP = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]
pytestmark = pytest.mark.skipif(not (TOP / ".git").exists(), reason="takes a checkout")


def name_of(requirement: str) -> str:
    return re.split(r"[\[<>=~!; ]", requirement)[0].lower()


def test_the_version_stands_in_one_place() -> None:
    assert "version" in PROJECT["dynamic"]
    listed = subprocess.run(
        ["git", "grep", "-lF", f'"{cima_runc.__version__}"', "--", "*.toml", "*.py", "*.sh", "dev"],
        cwd=TOP,
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    assert listed.split() == ["cima_runc/__init__.py"]
    assert f"## {cima_runc.__version__}" in (TOP / "CHANGELOG.md").read_text()


def test_what_is_installed_is_locked_with_hashes() -> None:
    extras = PROJECT["optional-dependencies"]
    wanted = {name_of(one) for part in (PROJECT["dependencies"], *extras.values()) for one in part}
    locked = (TOP / "requirements/dev.txt").read_text()
    pins = re.findall(r"^([a-z0-9.-]+)(?:\[[a-z,]+\])?==\S+(.*)$", locked, re.M)
    assert wanted - {"cima-runc"} <= {name for name, _ in pins}, "./dev lock"
    assert all(rest.endswith("\\") for _, rest in pins)
    assert "http" not in re.sub(r"http(x|core|tools)\b", "", locked)


def test_documents_link_to_what_is_there() -> None:
    pages = [*TOP.glob("*.md"), *(TOP / "docs").rglob("*.md")]
    for page in pages:
        text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
            if "://" not in target and "reference/" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_decision_is_in_the_index() -> None:
    decisions = TOP / "docs/adr"
    index = (decisions / "index.md").read_text()
    assert {path.name for path in decisions.glob("[0-9]*.md")} == set(
        re.findall(r"\]\(([0-9][^)]+\.md)\)", index)
    )


def test_every_room_is_on_the_page_of_the_architecture() -> None:
    page = (TOP / "docs/architecture.md").read_text()
    rooms = {path.parent.name for path in (TOP / "cima_runc").glob("*/__init__.py")}
    assert {room for room in rooms if f"`{room}/`" not in page} == set()


def test_the_sensor_names_its_licences() -> None:
    for path in (TOP / "cima_runc/sensor").glob("*.[ch]"):
        first = path.read_text().splitlines()[0]
        assert "SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0" in first, path.name

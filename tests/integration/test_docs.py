"""The site is built strictly: a link to nowhere fails; pages made from the code are whole."""

import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from cima_runc import config
from cima_runc.cli import shapes

TOP = Path(__file__).resolve().parents[2]


def test_the_site_is_built(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", tmp_path]
    done = subprocess.run(command, cwd=TOP, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    commands = (tmp_path / "reference/commands/index.html").read_text()
    for name in ("cima verify", "cima reference image", "cima enroll accept"):
        assert f">{name}<" in commands
    settings = (tmp_path / "reference/settings/index.html").read_text()
    assert "hook_timeout_seconds" in settings and "How long evidence of an ended" in settings
    page = (tmp_path / "reference/json/index.html").read_text()
    for output in shapes.OUTPUTS:
        assert f"cima {output.command} --json" in page
        name = output.command.replace(" ", "-")
        schema = json.loads((tmp_path / f"reference/json/{name}.schema.json").read_text())
        assert schema["$id"] == f"urn:cima-runc:json:{shapes.VERSION}:{name}"
    metrics = (tmp_path / "reference/metrics/index.html").read_text()
    for section in config.Settings.model_fields.keys() - {"shim"}:
        assert f">[{section}]<" in settings, section
    source = (TOP / "cima_runc/agent/metrics.py").read_text()
    of_a_host = [f"cima_agent_{name}" for name in re.findall(r'gauge\("(\w+)"', source)]
    assert len(of_a_host) > 5
    for name in (*of_a_host, "cima_reports_total", "cima_containers", "cima_backlog_age_seconds"):
        assert f"<code>{name}</code>" in metrics
    assert "overdue" in settings and "How many intervals a report proves something" in settings
    assert "removed_unattested" in page and "NoSettings" not in page


def test_pictures_of_a_terminal_show_what_was_printed(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", tmp_path]
    subprocess.run(command, cwd=TOP, capture_output=True, check=True)
    page = (TOP / "examples/demo/README.md").read_text()
    printed = [line.strip() for line in page.splitlines() if line.startswith("    ")]
    head, *events = (tmp_path / "reference/demo.cast").read_text().splitlines()
    assert json.loads(head)["version"] == 2
    played = [json.loads(event) for event in events]
    assert [text.strip() for _, _, text in played if text.strip()][1:] == printed
    assert [at for at, _, _ in played] == sorted(at for at, _, _ in played)
    tree = ElementTree.parse(tmp_path / "reference/demo.svg")
    drawn = "".join("".join(tree.getroot().itertext()).split()).replace("\xa0", "")
    for line in printed:
        assert "".join(line.split()) in drawn, line
    assert "demo.svg" in (tmp_path / "start/curious/index.html").read_text()


def test_readme_shows_a_part_of_what_the_demo_prints() -> None:
    """tests/vm/test_demo.py compares the whole with a run."""
    whole = (TOP / "examples/demo/README.md").read_text().splitlines()
    readme = (TOP / "README.md").read_text()
    part = readme.partition("    $ ./dev demo\n")[2].partition("\n## A fleet")[0].splitlines()
    assert len(part) > 25
    assert [line for line in part if line not in whole] == []


def test_every_decision_has_a_number_of_its_own_and_is_in_the_index() -> None:
    names = sorted(path.name for path in (TOP / "docs/adr").glob("[0-9]*.md"))
    index = (TOP / "docs/adr/index.md").read_text()
    assert len({name[:4] for name in names}) == len(names)
    assert re.findall(r"\[(?:\d{4})\]\((\S+\.md)\)", index) == names
    for name in names:
        first = (TOP / "docs/adr" / name).read_text().partition("\n")[0]
        assert first.startswith(f"# {int(name[:4])}. "), name

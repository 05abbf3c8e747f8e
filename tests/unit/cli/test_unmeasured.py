"""``cima ps``, ``show`` and ``log`` on a host where the agent has never run."""

import json
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cima_runc.base.errors import CimaError
from cima_runc.cli import context, shapes
from cima_runc.cli.main import app
from cima_runc.runtime.shim_settings import SETTINGS_FILE


def run(root: Path, *words: str) -> tuple[int, str, BaseException | None]:
    settings = root / "config.toml"
    settings.write_text(f'state_dir = "{root}/state"\nsocket = "{root}/no.sock"\n')
    try:
        ran = CliRunner().invoke(app, ["--config", str(settings), *words])
    finally:
        context.choose(SETTINGS_FILE)
    return ran.exit_code, ran.stdout, ran.exception


@pytest.fixture(name="root", params=["no directory", "empty", "one", "unreadable"])
def _root(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    directory = tmp_path / "state/unmeasured"
    if request.param != "no directory":
        directory.mkdir(parents=True)
    state = {"ociVersion": "1.0.2", "id": "abc123", "pid": 7, "bundle": "/b", "status": "creating"}
    if request.param in {"one", "unreadable"}:
        text = json.dumps(state) if request.param == "one" else "?"
        (directory / f"{time.time_ns()}-x").write_text(text)
    return tmp_path


@pytest.mark.parametrize("words", [("ps",), ("ps", "--all"), ("ps", "--dependencies")])
def test_a_table(root: Path, words: tuple[str, ...]) -> None:
    code, out, error = run(root, *words)
    assert (code, error) == (0, None)
    assert out.startswith("CONTAINER")
    has_one = any((root / "state").glob("unmeasured/*"))
    assert ("not measured" in out) is (has_one and "--dependencies" not in words)


def test_as_json(root: Path) -> None:
    code, out, _ = run(root, "ps", "--json")
    assert code == 0
    shapes.check(("ps", "--json"), out)
    assert len(json.loads(out)) == len(list((root / "state").glob("unmeasured/*")))


@pytest.mark.parametrize("words", [("log", "abc"), ("show", "abc"), ("show", "abc123", "--env")])
def test_no_records_is_an_error_with_a_name(root: Path, words: tuple[str, ...]) -> None:
    _, _, error = run(root, *words)
    assert isinstance(error, CimaError)
    files = list((root / "state").glob("unmeasured/*"))
    if files and "abc123" in files[0].read_text():
        assert error.what == "container abc123 started without the agent and was not measured"
    else:
        assert "no container abc" in error.what

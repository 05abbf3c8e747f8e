"""``cima configure`` of an engine, as it is typed."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from cima_runc.cli import configure
from cima_runc.cli.main import app
from cima_runc.engines.change import Changes


@pytest.mark.parametrize(
    ("engine", "said"), [("docker", "BuildKit's RUN steps"), ("containerd", "ctr and nerdctl")]
)
def test_what_is_not_covered_is_said(
    engine: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kind: "every container from now on" that leaves some out without a word."""
    changes = Changes(tmp_path / "root", tmp_path / "state")
    monkeypatch.setattr(configure, "Changes", lambda root, state: changes)
    command = ["configure", engine, "--runtime", "/bin/true"]
    for more in (["--dry-run"], ["--dry-run", "--json"], [], [], ["--json"]):
        done = CliRunner().invoke(app, [*command, "--set-as-default", *more])
        assert done.exit_code == 0, done.output
        assert said in done.stderr and said not in done.stdout
    assert "not measured" not in CliRunner().invoke(app, [*command, "--dry-run"]).stderr

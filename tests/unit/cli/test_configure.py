"""``cima configure`` of an engine, as it is typed."""

import errno
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cima_runc.cli import configure
from cima_runc.cli.main import app
from cima_runc.engines.change import Changes
from cima_runc.engines.engine import EngineError, Wish
from cima_runc.engines.podman import PODMAN


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


@pytest.mark.parametrize(
    ("number", "uid", "hint"),
    [
        (errno.EROFS, 0, "set it where the system makes that file from"),
        (errno.EROFS, 1000, "set it where the system makes that file from"),
        (errno.EACCES, 1000, "run it as root"),
        (errno.EPERM, 0, ""),  # root already: the file may be immutable
        (errno.ENOSPC, 0, ""),
    ],
)
def test_what_helps_where_a_file_cannot_be_written(
    number: int, uid: int, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    changes = Changes(tmp_path / "root", tmp_path / "records")
    monkeypatch.setattr(changes, "make", fail)
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    change = changes.adding(PODMAN, Wish("/opt/cima-runc", default=False))
    with pytest.raises(EngineError) as caught:
        configure._make(changes, PODMAN, change)
    assert caught.value.hint.startswith(hint) and bool(caught.value.hint) == bool(hint)

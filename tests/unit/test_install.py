"""install.sh: whether it may be taken away."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

INSTALL = Path(__file__).resolve().parents[2] / "examples/install.sh"

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="takes root")


def row(state: str, name: str, **more: Any) -> dict[str, Any]:
    return {"id": f"{name}-0123456789", "name": name, "state": state, "pid": 1, **more}


def removable(prefix: Path, printed: str, status: int = 0, **env: str) -> tuple[int, str]:
    """Ask install.sh, with a cima that prints this."""
    (prefix / "bin").mkdir(exist_ok=True)
    (prefix / "printed").write_text(printed)
    (prefix / "bin/cima").write_text(f"#!/bin/sh\ncat {prefix}/printed\nexit {status}\n")
    (prefix / "bin/cima").chmod(0o755)
    command = [INSTALL, "--removable", prefix]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **env}
    )
    return done.returncode, done.stderr


def test_not_from_under_what_runs(tmp_path: Path) -> None:
    rows = [row("stopped", "old"), row("running", "web"), row("created", "job\x1b[31m")]
    status, told = removable(tmp_path, json.dumps(rows))
    assert status == 2
    assert "web-01234567 web" in told and "old" not in told
    assert "\x1b" not in told and "job\\x1b[31m" in told
    assert removable(tmp_path, json.dumps(rows), CIMA_REMOVE="anyway")[0] == 0


def test_what_was_not_measured_counts_while_it_lives(tmp_path: Path) -> None:
    own = Path("/proc/self/cgroup").read_text().strip().rpartition("/")[2] or "/"
    lives = row("unmeasured", "here", pid=os.getpid()) | {"id": own}
    assert removable(tmp_path, json.dumps([lives]))[0] == 2
    for gone in (lives | {"id": "another"}, lives | {"pid": 2**22 + 1}, lives | {"pid": None}):
        assert removable(tmp_path, json.dumps([gone]))[0] == 0


@pytest.mark.parametrize("printed", ["", "[]", "{}", "no JSON", '[{"state": "running"}]'])
def test_where_nothing_can_be_known_nothing_stands_in_the_way(tmp_path: Path, printed: str) -> None:
    assert removable(tmp_path, printed, status=2)[0] == 0

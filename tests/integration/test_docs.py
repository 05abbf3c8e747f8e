"""The site is built strictly: a link to nowhere fails; pages made from the code are whole."""

import subprocess
import sys
from pathlib import Path

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

"""Every parser's fuzz target: over its kept corpus, and a short run from there.

The corpus holds, for each target, good inputs to start from and whatever was found and mended.
"""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz import targets

RUNS = 2000


@pytest.mark.parametrize("name", targets.TARGETS)
def test_the_corpus_is_read_or_refused(name: str) -> None:
    inputs = sorted((targets.CORPUS / name).iterdir())
    assert inputs, "a target without a corpus finds nothing"
    for each in inputs:
        targets.check(name, each.read_bytes())


def test_every_corpus_has_a_target() -> None:
    assert {each.name for each in targets.CORPUS.iterdir()} == targets.TARGETS.keys()


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="takes atheris")
def test_a_short_run_of_every_target_finds_nothing(tmp_path: Path) -> None:
    run = [sys.executable, Path(targets.HERE, "run.py"), "--found", tmp_path]
    done = subprocess.run(
        [*run, "--runs", str(RUNS), "--seconds", "20"], capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-20_000:]

"""Which layers are kept, and which may go."""

import os
import subprocess
from pathlib import Path

import cache
import pytest

OLD = 1_000_000_000


def layer(directory: Path, name: str) -> Path:
    made = directory / name
    made.mkdir()
    (made / "file").touch()
    os.utime(made, (OLD, OLD))
    return made


@pytest.mark.parametrize("name", ["tree-12-a", "tree-12-a.new"])
def test_what_is_being_made_or_used_is_not_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """What is unpacked into a new layer brings times of its own."""
    monkeypatch.setattr(cache, "CACHE", tmp_path)
    made = layer(tmp_path, name)
    with cache.locked(tmp_path / "tree-12-a"):
        cache.prune("tree-12", newest=0, minutes=30)
        assert made.is_dir()
        shell = f"{prune_of_the_shell()}; release=12 CIMA_CACHE={tmp_path}; prune tree 0"
        subprocess.run(["bash", "-euc", shell], check=True)
        assert made.is_dir()
    cache.prune("tree-12", newest=0, minutes=30)
    assert not made.exists()


def test_the_shell_removes_what_nobody_uses(tmp_path: Path) -> None:
    old, newest = layer(tmp_path, "tree-12-a"), layer(tmp_path, "tree-12-b")
    os.utime(newest)
    left = layer(tmp_path, "tree-12-c.new")
    shell = f"{prune_of_the_shell()}; release=12 CIMA_CACHE={tmp_path}; prune tree 1"
    subprocess.run(["bash", "-euc", shell], check=True)
    assert [each.exists() for each in (old, newest, left)] == [False, True, False]


def prune_of_the_shell() -> str:
    text = (Path(cache.__file__).parent / "image.sh").read_text()
    start = text.index("prune() {")
    return text[start : text.index("\n}\n", start) + 2]

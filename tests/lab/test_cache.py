"""Which layers are kept, and which may go with all that is beside them."""

import fcntl
import os
import subprocess
import threading
from pathlib import Path

import cache
import pytest

LAB = Path(cache.__file__).parent
OLD = 1_000_000_000


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(cache, "CACHE", tmp_path)
    return tmp_path


def layer(directory: Path, name: str) -> Path:
    made = directory / name
    made.mkdir()
    (made / "file").touch()
    os.utime(made, (OLD, OLD))
    return made


def shell(directory: Path, command: str) -> list[str]:
    """The command with what the shell has for layers, of Debian 12."""
    text = f"lab={LAB} release=12 pip_files= CIMA_CACHE={directory}; . $lab/layers.sh; {command}"
    return ["bash", "-euc", text]


@pytest.mark.parametrize("name", ["tree-12-a", "tree-12-a.new"])
def test_what_is_being_made_or_used_is_not_removed(directory: Path, name: str) -> None:
    """What is unpacked into a new layer brings times of its own."""
    made = layer(directory, name)
    with cache.locked(directory / "tree-12-a"):
        cache.prune("tree-12", newest=0, minutes=30)
        assert made.is_dir()
        subprocess.run(shell(directory, "prune tree 0"), check=True)
        assert made.is_dir()
    cache.prune("tree-12", newest=0, minutes=30)
    assert not list(directory.iterdir())


def test_the_shell_removes_what_nobody_uses(directory: Path) -> None:
    old, newest = layer(directory, "tree-12-a"), layer(directory, "tree-12-b")
    os.utime(newest)
    left = layer(directory, "tree-12-c.new")
    others = [layer(directory, name) for name in ("tree-13-a", "tree-13-b", "image-12-a")]
    subprocess.run(shell(directory, "prune tree 1 deps 1"), check=True)
    assert [each.exists() for each in (old, newest, left)] == [False, True, False]
    assert all(each.exists() for each in others)


def test_what_is_beside_no_layer_goes(directory: Path) -> None:
    kept = layer(directory, "tree-12-kept")
    for name in ("kept.lock", "gone.lock", "failed.lock", "failed.log", "told.lock", "told.log"):
        (directory / f"tree-12-{name}").touch()
    os.utime(directory / "tree-12-failed.log", (OLD, OLD))
    layer(directory, "tree-12-killed.new")
    cache.prune("tree-12", newest=1, minutes=30)
    # Of what failed just now, somebody may still want to read why.
    assert sorted(each.name for each in directory.iterdir()) == [
        "tree-12-kept",
        "tree-12-kept.lock",
        "tree-12-told.log",
    ]
    assert (kept / "file").exists()


@pytest.mark.parametrize("waits_in", ["python", "shell"])
def test_who_waited_for_a_lock_that_is_gone_takes_the_new_one(
    directory: Path, waits_in: str
) -> None:
    """Otherwise two would make the same layer."""
    wanted, lock = directory / "tree-12-a", directory / "tree-12-a.lock"

    def wait() -> None:
        if waits_in == "python":
            with cache.locked(wanted), cache.making(wanted):
                pass
        else:
            subprocess.run(shell(directory, "layer tree-12-a making true"), check=True)

    waiting = threading.Thread(target=wait)
    with lock.open("w") as removed:
        fcntl.flock(removed, fcntl.LOCK_EX)
        waiting.start()
        wait_for_waiters(lock.stat().st_ino)
        lock.unlink()
        with cache.locked(wanted):
            fcntl.flock(removed, fcntl.LOCK_UN)
            wait_for_waiters(lock.stat().st_ino)
            assert not wanted.exists()
    waiting.join(60)
    assert wanted.is_dir()


def wait_for_waiters(inode: int) -> None:
    """Return when somebody waits for the lock of the file."""
    for _ in range(600):
        locks = Path("/proc/locks").read_text().splitlines()
        if any("->" in each and f":{inode} " in each for each in locks):
            return
        threading.Event().wait(0.1)
    raise AssertionError("nobody waits")

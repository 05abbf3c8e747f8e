"""What is a process's own goes with it, also when it is killed."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from held import bound, scratch

from tests.support.waiting import wait_for

LAB = Path(__file__).parents[2] / "lab"
GUEST = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv.pop(1))
import vm
vm.image = lambda machine: Path("/none")  # it takes minutes to make, and nothing here reads it
sys.exit(vm.main())
"""
PROBE = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from acceleration import _reaches_init
_reaches_init(Path(sys.argv[2]))
"""
HANGS = "#!/bin/sh\nwhile :; do sleep 0.2; done\n"
ENDS = "#!/bin/sh\nexit 1\n"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "scratch").mkdir()
    return tmp_path / "scratch"


@pytest.fixture
def start(place: Path) -> Callable[..., subprocess.Popen[bytes]]:
    def start(program: str, qemu: str, *words: object) -> subprocess.Popen[bytes]:
        """Start a program of the lab with another one in QEMU's place; all else is what it is."""
        path = place.parent / "bin"
        path.mkdir(exist_ok=True)
        (path / "qemu-system-x86_64").write_text(qemu)
        (path / "qemu-system-x86_64").chmod(0o755)
        settings = {
            "PATH": f"{path}:{os.environ['PATH']}",
            "TMPDIR": str(place),
            "CIMA_CACHE": str(place.parent / "cache"),
            "CIMA_VM_ACCEL": "tcg",
        }
        return subprocess.Popen(
            [sys.executable, "-c", program, LAB, *words], env={**os.environ, **settings}
        )

    return start


def running(place: Path) -> set[str]:
    """The programs whose arguments name the place."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if os.fsencode(place) in (process / "cmdline").read_bytes():
                found.add((process / "comm").read_text().strip())
        except OSError:  # it has ended since
            continue
    return found


def test_of_a_killed_guest_nothing_runs_and_the_next_one_removes_its_files(
    place: Path,
    start: Callable[..., subprocess.Popen[bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    with scratch("cima-guest-") as another:
        with start(GUEST, HANGS, "--no-agent", "--fresh", "/bin/true") as guest:
            wait_for(lambda: running(place) == {"qemu-system-x86", "swtpm"}, 240)
            guest.kill()
        wait_for(lambda: not running(place), 240)
        assert len(list(place.iterdir())) == 2
        with start(GUEST, ENDS, "--no-agent", "--fresh", "--no-tpm", "/bin/true") as guest:
            assert guest.wait(240) == 125
        assert [*place.iterdir()] == [another]


def test_of_a_killed_probe_nothing_runs(
    place: Path, start: Callable[..., subprocess.Popen[bytes]]
) -> None:
    with start(PROBE, HANGS, place) as probe:
        wait_for(lambda: "qemu-system-x86" in running(place), 240)
        probe.kill()
    wait_for(lambda: not running(place), 240)


def test_what_is_held_is_not_taken_for_what_was_left(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    (place / "a-left").mkdir()
    (place / "other").mkdir()
    with scratch("a-") as first, scratch("a-") as second:
        assert {*place.iterdir()} == {first, second, place / "other"}
    assert [*place.iterdir()] == [place / "other"]
    with pytest.raises(FileNotFoundError), scratch("a-"):
        (place / "none").read_bytes()


def test_a_child_whose_parent_was_gone_before_does_nothing(tmp_path: Path) -> None:
    command = bound(["touch", str(tmp_path / "began")], "KILL")
    # The shell between is not the one that the child is bound to.
    subprocess.run(["sh", "-c", '"$@"; true', "sh", *command], check=True)
    assert not (tmp_path / "began").exists()
    subprocess.run(command, check=True)
    assert (tmp_path / "began").exists()

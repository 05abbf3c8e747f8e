"""A frozen guest comes back as it was, or is thrown away and another is booted."""

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import vm
from frozen import Frozen, NotThawedError, freeze
from guest import Guest
from job import Conversation, Job
from machine import Machine, image

MACHINE = Machine("13")


@pytest.fixture(scope="module")
def disk() -> Path:
    return image(MACHINE)


@pytest.fixture
def copy(disk: Path, tmp_path: Path) -> Frozen:
    """A frozen guest that may be damaged."""
    (tmp_path / "scratch").mkdir()
    made = freeze(MACHINE, disk, tmp_path / "scratch")
    target = tmp_path / "copy"
    subprocess.run(["cp", "-r", "--sparse=always", made.directory, target], check=True)
    return Frozen(target)


def script(tmp_path: Path) -> Path:
    file = tmp_path / "script"
    file.write_text("cat /proc/uptime; date +%s; cima status --json\n")
    return file


def test_a_thawed_guest_goes_on_with_the_time_of_now(
    disk: Path, copy: Frozen, tmp_path: Path
) -> None:
    guest, out = Guest(tmp_path), io.BytesIO()
    sinks = {"out": out, "err": io.BytesIO(), "files": io.BytesIO()}
    talk = Conversation(guest, sinks, 300)
    Job(script(tmp_path)).write(tmp_path / "job.tar")
    try:
        copy.thaw(guest, talk, MACHINE, disk, tmp_path / "job.tar")
        assert talk.run()["status"] == 0
    finally:
        guest.stop()
    uptime, now, status = out.getvalue().decode().split("\n", 2)
    assert float(uptime.split()[0]) > 5
    assert abs(int(now) - (copy.directory / "guest.json").stat().st_atime) < 600
    shown = json.loads(status)
    assert (
        shown["pcr_value"] == json.loads((copy.directory / "guest.json").read_text())["pcr"].lower()
    )


def cut_state(frozen: Frozen) -> None:
    state = frozen.directory / "state"
    state.write_bytes(state.read_bytes()[:5000])


def lose_memory(frozen: Frozen) -> None:
    (frozen.directory / "memory").unlink()


def other_pcr(frozen: Frozen) -> None:
    (frozen.directory / "guest.json").write_text(json.dumps({"pcr": "0" * 63 + "1"}))


@pytest.mark.parametrize("damage", [cut_state, lose_memory, other_pcr])
def test_what_does_not_come_back_as_it_was_is_said(
    disk: Path, copy: Frozen, tmp_path: Path, damage: Callable[[Frozen], None]
) -> None:
    damage(copy)
    guest = Guest(tmp_path)
    talk = Conversation(guest, {name: io.BytesIO() for name in ("out", "err", "files")}, 300)
    Job(script(tmp_path)).write(tmp_path / "job.tar")
    try:
        with pytest.raises(NotThawedError):
            copy.thaw(guest, talk, MACHINE, disk, tmp_path / "job.tar")
    finally:
        guest.stop()


def test_then_another_is_booted(
    copy: Frozen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    cut_state(copy)
    monkeypatch.setattr(vm.Run, "_frozen", lambda self: copy)
    monkeypatch.setattr(sys, "argv", ["vm", "--debian", "13", str(script(tmp_path))])
    assert vm.main() == 0
    shown = capfd.readouterr()
    assert "booting another guest" in shown.err
    assert '"pcr_value"' in shown.out
    assert not copy.directory.exists()

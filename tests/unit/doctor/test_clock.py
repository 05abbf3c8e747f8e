import time
from pathlib import Path

import pytest

from cima_runc.doctor import clock
from cima_runc.doctor.finding import UnfitError


@pytest.mark.parametrize("kept", [True, False])
def test_whether_anything_keeps_it_right(kept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "synchronised", lambda: kept)
    if kept:
        assert clock.look(0.0).endswith("kept right")
        return
    with pytest.raises(UnfitError, match="nothing keeps the clock right") as raised:
        clock.look(0.0)
    assert "chrony" in raised.value.hint


def test_a_clock_that_went_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "synchronised", lambda: True)
    with pytest.raises(UnfitError, match="before cima-runc was installed"):
        clock.look(time.time() + 3600)


def test_the_kernel_is_asked() -> None:
    """As timedated sees it: both ask adjtimex."""
    assert clock.synchronised() in {True, False}


def test_when_a_file_came(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert abs(clock.installed_at(tmp_path / "file") - time.time()) < 60

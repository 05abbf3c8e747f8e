import errno
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from cima_runc.sensor import loader
from cima_runc.sensor.loader import (
    LockdownError,
    NoBpfLsmError,
    NoBtfError,
    NotBuiltError,
    Sensor,
    SensorError,
    SwitchedOffError,
)
from cima_runc.sensor.options import Options
from cima_runc.sensor.tables import Row, Watched


@pytest.mark.parametrize("size", [0, 1, 2048, 4097, 3 * 4096, -4096])
def test_a_ring_of_an_impossible_size_is_refused(size: int) -> None:
    with pytest.raises(SensorError, match=f"{size} bytes is not possible; use a power of two"):
        Sensor.load(Options(ring_bytes=size))


def test_a_package_without_the_compiled_sensor(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(loader, "OBJECT", tmp_path / "sensor.bpf.o")
    with pytest.raises(NotBuiltError, match=r"sensor\.bpf\.o: No such file.*libbpf-dev"):
        Sensor.load()


@pytest.fixture
def privileged(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A kernel that has everything, as far as its files say."""
    monkeypatch.setattr(loader, "_privileged", lambda: True)
    monkeypatch.setattr(loader, "_BTF", tmp_path / "vmlinux")
    monkeypatch.setattr(loader, "_LSMS", tmp_path / "lsm")
    monkeypatch.setattr(loader, "_LOCKDOWN", tmp_path / "lockdown")
    monkeypatch.setattr(loader, "_FTRACE", tmp_path / "ftrace_enabled")
    (tmp_path / "vmlinux").touch()
    (tmp_path / "lsm").write_text("lockdown,capability,bpf")
    return tmp_path


def test_a_kernel_with_everything_passes(privileged: Path) -> None:
    loader.check_kernel()


def test_a_kernel_that_calls_no_programs(privileged: Path) -> None:
    (privileged / "ftrace_enabled").write_text("1\n")
    loader.check_kernel()
    (privileged / "ftrace_enabled").write_text("0\n")
    with pytest.raises(SwitchedOffError, match=r"sysctl kernel\.ftrace_enabled=1"):
        loader.check_kernel()


def test_a_kernel_without_type_information(privileged: Path) -> None:
    (privileged / "vmlinux").unlink()
    with pytest.raises(NoBtfError, match="CONFIG_DEBUG_INFO_BTF"):
        loader.check_kernel()


def test_a_kernel_started_without_the_bpf_lsm(privileged: Path) -> None:
    (privileged / "lsm").write_text("lockdown,capability,nobpf")
    with pytest.raises(NoBpfLsmError, match="lsm=lockdown,nobpf,integrity,bpf to the kernel"):
        loader.check_kernel()


def test_a_kernel_that_is_locked_down(privileged: Path) -> None:
    (privileged / "lockdown").write_text("none [integrity] confidentiality\n")
    loader.check_kernel()
    (privileged / "lockdown").write_text("none integrity [confidentiality]\n")
    with pytest.raises(LockdownError, match="lockdown=integrity"):
        loader.check_kernel()


def test_securityfs_that_is_not_mounted(privileged: Path) -> None:
    (privileged / "lsm").unlink()
    with pytest.raises(NoBpfLsmError, match="mount -t securityfs"):
        loader.check_kernel()


LOG = """\
libbpf: prog 'cima_bprm_check': -- BEGIN PROG LOAD LOG --
; if (bpf_ringbuf_output(&events, e, sizeof(*e) + bytes, 0))
949: (85) call bpf_ringbuf_output#130
R2 unbounded memory access, make sure to bounds check any such access
processed 19385 insns (limit 1000000) max_states_per_insn 4 total_states 1 peak_states 1
-- END PROG LOAD LOG --
libbpf: prog 'cima_bprm_check': failed to load: -13
"""


def test_a_rejection_repeats_the_verifier_s_last_word() -> None:
    messages = ["libbpf: prog 'cima_bprm_check': BPF program load failed: EACCES\n", LOG]
    error = loader._rejected(OSError(errno.EACCES, ""), messages)
    assert str(error) == (
        "the kernel refused the sensor: Permission denied: "
        "R2 unbounded memory access, make sure to bounds check any such access"
    )


def test_a_rejection_without_a_log_repeats_libbpf() -> None:
    messages = ["libbpf: prog 'cima_bprm_check': failed\n", "libbpf: failed to load object\n"]
    error = loader._rejected(OSError(errno.EPERM, ""), messages)
    assert "libbpf: prog 'cima_bprm_check': failed; " in str(error)
    assert "lockdown" in error.hint


class _Rows:
    """The rows of a sensor; of those of ``going`` one use less waits each time one looks."""

    def __init__(self, waiting: dict[int, int], going: tuple[int, ...] = ()) -> None:
        self.found = {number: Row(1, 0, 0, 0, 0, waiting=some) for number, some in waiting.items()}
        self.going = going

    def rows(self) -> list[tuple[int, Row]]:
        return list(self.found.items())

    def row(self, number: int) -> Row | None:
        row = self.found.get(number)
        if row is not None and number in self.going:
            row = self.found[number] = row._replace(waiting=max(row.waiting - 1, 0))
        return row

    def put_row(self, number: int, row: Row, *, new: bool) -> None:
        assert not new
        self.found[number] = row


@pytest.mark.parametrize("in_time", [True, False])
def test_what_an_older_sensor_does_not_send_in_time_is_lost(
    monkeypatch: pytest.MonkeyPatch, in_time: bool
) -> None:
    """1 has nothing that waits, 2 has; 3 has ended here, and 4 there."""
    monkeypatch.setattr(loader, "_FINISH_SECONDS", 300.0 if in_time else 0.0)
    older = _Rows({1: 0, 2: 3, 3: 1}, going=(2, 3))
    newer = _Rows({1: 0, 2: 0, 4: 0})
    sensor = Sensor.__new__(Sensor)
    sensor._tables = newer  # type: ignore[assignment]
    sensor._let_finish(SimpleNamespace(tables=older))  # type: ignore[arg-type]
    assert {number: row.dropped for number, row in newer.rows()} == {
        1: 0,
        2: 0 if in_time else 3,
        4: 0,
    }


class _Tables(_Rows):
    """A sensor's tables, and how often each row was written."""

    def unattributed_in(self, number: int) -> dict[str, int]:
        return {"crowded": number, "crowded_below": 7}

    def __init__(self, rows: dict[int, Row], namespaces: dict[int, Watched]) -> None:
        super().__init__({})
        self.found = dict(rows)
        self.inside = dict(namespaces)
        self.written: Counter[int] = Counter()

    def missed(self) -> int:
        return 0

    def ended_rows(self) -> list[tuple[int, Row]]:
        return []

    def put_row(self, number: int, row: Row, *, new: bool) -> None:
        assert new == (number not in self.found)
        self.written[number] += 1
        self.found[number] = row

    def open_allowlist(self, number: int) -> None:
        del number

    def namespaces(self) -> list[tuple[int, Watched]]:
        return list(self.inside.items())

    def namespace(self, mntns: int) -> Watched | None:
        return self.inside.get(mntns)

    def put_namespace(self, mntns: int, entry: Watched, *, new: bool) -> None:
        assert new
        self.inside[mntns] = entry


def test_a_row_that_is_taken_over_is_written_once() -> None:
    """Programs count in it from then on, and what they counted would be lost: a use that waits no
    more would be lost for good."""
    rows = {1: Row(1, 0, 2, 0, 11, waiting=1), 2: Row(2, 3, 0, 0, 12)}
    inside = {
        11: Watched(1, 7, 0),
        12: Watched(2, 8, 0),
        13: Watched(1, 9, 1),
        14: Watched(1, 10, 1),
    }
    older, newer = _Tables(rows, inside), _Tables({}, {})
    sensor = Sensor.__new__(Sensor)
    sensor._tables = newer  # type: ignore[assignment]
    sensor._containers = {}
    sensor._take_over(SimpleNamespace(tables=older, lost=lambda _, row: row.dropped))  # type: ignore[arg-type]
    assert newer.written == {1: 1, 2: 1}
    assert newer.inside == inside
    found = {number: (row.nested, row.waiting, row.missed_before) for number, row in newer.rows()}
    assert found == {1: (2, 0, 0), 2: (0, 0, -3)}

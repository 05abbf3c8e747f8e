"""Interpreters that ask whether they may run a script, which kernels from 6.14 on answer."""

import ctypes
import os
from pathlib import Path

from cima_runc.sensor.events import Func
from cima_runc.sensor.loader import Sensor
from tests.vm import guest
from tests.vm.test_sensor import Watched, install, program
from tests.vm.test_sensor_options import Enforced, execute, is_denied

_EXECVEAT = 322
"""Its number on x86-64 (arch/x86/entry/syscalls/syscall_64.tbl)."""
_AT_FDCWD = -100
_AT_EXECVE_CHECK = 0x10000


def ask(path: Path) -> None:
    """Ask the kernel whether this file may be run."""
    libc = ctypes.CDLL(None, use_errno=True)
    nothing = (ctypes.c_char_p * 1)(None)
    name = os.fsencode(path)
    if libc.syscall(_EXECVEAT, _AT_FDCWD, name, nothing, nothing, _AT_EXECVE_CHECK):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def test_a_script_that_is_asked_for_is_reported_as_executed(sensor: Sensor, tmp_path: Path) -> None:
    script = install(tmp_path / "app.py", b"print('hello')\n")
    container = Watched(sensor)
    container.call(lambda: ask(tmp_path / "app.py"))
    assert [(e.path, e.digest, e.func) for e in container.events()] == [
        (bytes(tmp_path / "app.py"), script, Func.BPRM_CHECK)
    ]
    container.close()


def test_a_program_that_is_asked_for_and_run_is_one_event(sensor: Sensor, tmp_path: Path) -> None:
    install(tmp_path / "tool", program(b"tool"))
    container = Watched(sensor)
    container.call(lambda: ask(tmp_path / "tool"))
    container.run(tmp_path / "tool")
    assert {(e.path, e.func) for e in container.events()} == {
        (bytes(tmp_path / "tool"), Func.BPRM_CHECK)
    }
    container.close()


def test_where_the_list_is_enforced_the_answer_is_no(sensor: Sensor, tmp_path: Path) -> None:
    known = install(tmp_path / "known.py", b"print('known')\n")
    install(tmp_path / "unknown.py", b"print('unknown')\n")
    container = Enforced(sensor, known)
    container.call(lambda: ask(tmp_path / "known.py"))
    container.call(lambda: is_denied(lambda: ask(tmp_path / "unknown.py")))
    container.call(lambda: is_denied(lambda: execute(tmp_path / "unknown.py")))
    assert [(e.path, e.denied) for e in container.events()] == [
        (bytes(tmp_path / "known.py"), False),
        (bytes(tmp_path / "unknown.py"), True),
    ]
    container.close()


def test_what_runs_in_a_container_is_recorded_and_bound(image: str) -> None:
    row = guest.with_docker_once()
    found = guest.records(row["id"])
    assert {file.path: file.digest for file in guest.files(found)} == guest.files_of_command()
    status = guest.status()
    assert status["pcr_value"] == status["expected_value"]
    assert status["kernel_log"]["pcr10"]["matches_tpm"]
    assert not status["missing"]

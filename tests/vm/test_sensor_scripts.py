"""For how long a script is in use, and of which file that is counted.

Needs root and the BPF LSM.
"""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from cima_runc.sensor.events import Event, Why
from cima_runc.sensor.libbpf import Libbpf
from cima_runc.sensor.loader import Rights, Sensor
from tests.vm.test_sensor import (
    Watched,
    changed,
    container,
    drain,
    install,
    overlay,
    program,
    wait,
    wait_for,
)

__all__ = ["container"]

IN_USE = Why.OPENED_WHILE_MAPPED


def entries(sensor: Sensor) -> int:
    """How many inodes the sensor counts the writes of."""
    writes = sensor._handles.maps["writes"]
    return len(Libbpf().keys(writes, 8, 1 << 20))


def fails(path: Path) -> None:
    try:
        os.execve(path, [b"x"], {})
    except OSError:
        return
    raise AssertionError(path)


def test_what_failed_to_run_and_is_gone_is_not_counted(container: Watched, tmp_path: Path) -> None:
    """An entry without an inode would stay until another has its address."""
    files = [tmp_path / f"script{number}" for number in range(64)]
    for file in files:  # all at once: each has an address of its own
        install(file, b"#!/nonexistent\n")
    install(tmp_path / "prog", program())

    def attack() -> None:
        for file in files:
            fails(file)
            file.unlink()

    before = entries(container.sensor)
    container.call(attack)
    container.run(tmp_path / "prog")
    container.events()
    assert entries(container.sensor) - before < len(files) / 2


def test_the_end_of_a_script_that_is_gone_says_nothing_of_the_next_at_its_address(
    container: Watched, tmp_path: Path
) -> None:
    copies, started = 8, tmp_path / "started"
    started.mkdir()
    reads_and_waits = f"""#!/usr/bin/env python3
import os, signal
open({str(started)!r} + "/" + str(os.getpid()), "w").close()
signal.pause()
"""
    names = [tmp_path / f"script{number}" for number in range(copies)]

    def start(count: int) -> list[int]:
        for name in names:
            install(name, reads_and_waits.encode())
        running = [container.start(partial(os.execve, name, [b"x"], os.environ)) for name in names]
        wait_for(lambda: len(list(started.iterdir())) == count)
        return running

    old = start(copies)
    for name in names:
        name.unlink()
    new = start(2 * copies)
    for pid in old:
        os.kill(pid, signal.SIGKILL)
        wait(pid)
    container.events()
    for name in names:
        name.open("ab").close()
        assert changed(container.events()) == {(os.fsencode(name.name), IN_USE)}
    for pid in new:
        os.kill(pid, signal.SIGKILL)
        wait(pid)
    for name in names:
        name.open("ab").close()
    assert changed(container.events()) == set()


def test_an_earlier_program_that_was_told_to_open_it_is_not_its_interpreter(
    container: Watched, tmp_path: Path
) -> None:
    """env's loader takes it for a library, and lets it be; the shell's waits for the pipe."""
    pipe, script = tmp_path / "pipe", tmp_path / "script"
    os.mkfifo(pipe)
    install(script, b"#!/usr/bin/env sh\n:\n")
    preload = {"LD_PRELOAD": f"{script}:{pipe}", "PATH": "/usr/bin:/bin"}
    runs = container.start(lambda: os.execve(script, [b"x"], preload))
    os.close(os.open(pipe, os.O_WRONLY))
    wait_for(lambda: Path(f"/proc/{runs}/comm").read_text() == "sh\n")
    script.open("ab").close()
    assert changed(container.events()) == {(b"script", IN_USE)}
    os.close(os.open(pipe, os.O_WRONLY))
    assert wait(runs) == 0


def test_a_program_that_a_script_becomes(container: Watched, tmp_path: Path) -> None:
    """It may have been what the script's interpreter is: that is not known."""
    pipe, script = tmp_path / "pipe", tmp_path / "script"
    os.mkfifo(pipe)
    install(script, f"#!/bin/sh\nexec cat {pipe}\n".encode())
    runs = container.start(lambda: os.execve(script, [b"x"], {"PATH": "/usr/bin:/bin"}))
    with pipe.open("wb"):
        script.open("ab").close()
        assert changed(container.events()) == {(b"script", IN_USE)}
    assert wait(runs) == 0
    script.open("ab").close()
    assert changed(container.events()) == set()


def opened(name: bytes, beside: int) -> None:
    os.close(os.open(name, os.O_WRONLY, dir_fd=beside))


def copied_up_and_opened(name: bytes, beside: int) -> None:
    os.chmod(name, 0o700, dir_fd=beside)
    opened(name, beside)


def kernels(device: int) -> int:
    return os.major(device) << 20 | os.minor(device)


@pytest.fixture
def two(sensor: Sensor, tmp_path: Path) -> Iterator[list[Watched]]:
    """A container whose root is an overlay, and another one."""
    (tmp_path / "lower").mkdir()
    install(tmp_path / "lower/script", b"#!/bin/sh\nread word\n")
    with ExitStack() as stack:
        root = stack.enter_context(overlay(tmp_path))
        rights = Rights(root_device=kernels(root.stat().st_dev))
        both = [Watched(sensor, rights=rights), Watched(sensor)]
        for one in both:
            stack.callback(one.close)
        yield both


@pytest.mark.parametrize("how", [opened, copied_up_and_opened])
@pytest.mark.parametrize("runs_in", [0, 1])
@pytest.mark.parametrize("changed_in", [0, 1])
def test_whose_script_is_changed_is_told_whoever_changes_it(
    two: list[Watched],
    tmp_path: Path,
    how: Callable[[bytes, int], None],
    runs_in: int,
    changed_in: int,
) -> None:
    """One hands the other its root, by a descriptor; that runs what is in there, or changes it."""
    beside = os.open(tmp_path / "merged", os.O_PATH | os.O_DIRECTORY)
    words, word = os.pipe()

    def runs() -> None:
        os.set_inheritable(beside, True)
        os.dup2(words, 0)
        os.execve(f"/proc/self/fd/{beside}/script", [b"x"], {})

    running = two[runs_in].start(runs)
    wait_for(lambda: Path(f"/proc/{running}/comm").read_text() == "script\n")
    drain(two[0].sensor)
    two[changed_in].call(lambda: how(b"script", beside))
    found = drain(two[0].sensor)
    assert changed(found) == {(b"script", IN_USE)}
    told = {two.index(one) for one in two for event in found if is_of(event, one)}
    assert told == {0, runs_in, changed_in}
    os.write(word, b"x\n")
    assert wait(running) == 0
    for descriptor in (beside, words, word):
        os.close(descriptor)


def is_of(event: Event, container: Watched) -> bool:
    return event.registration == container.registration

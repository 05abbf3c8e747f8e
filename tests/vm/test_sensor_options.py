"""What the sensor does besides reporting what runs: files that are read, lists of what may run, and
a limit for each container. Needs root and the BPF LSM; digests need IMA."""

import errno
import mmap
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from cima_runc.sensor.events import Func, Why
from cima_runc.sensor.loader import Sensor
from cima_runc.sensor.options import Options
from tests.vm.test_sensor import (
    Watched,
    drain,
    fork,
    install,
    map_executable,
    program,
    uses,
    wait,
)

NEW_KERNEL = tuple(map(int, platform.release().split(".")[:2])) >= (6, 12)


def is_denied(function: Callable[[], object]) -> None:
    with pytest.raises(PermissionError) as refused:
        function()
    assert refused.value.errno == errno.EPERM


def execute(path: Path) -> None:
    os.execve(path, [b"x"], {})


class Enforced(Watched):
    """A namespace in which nothing but what has these digests may run."""

    def __init__(self, sensor: Sensor, *digests: bytes) -> None:
        handle = sensor.allowlist(digests)
        super().__init__(sensor, handle)
        os.close(handle)


def test_what_is_not_in_the_list_cannot_run(sensor: Sensor, tmp_path: Path) -> None:
    known = install(tmp_path / "known", program(b"known"))
    unknown = install(tmp_path / "unknown", program(b"unknown"))
    container, free = Enforced(sensor, known), Watched(sensor)
    container.run(tmp_path / "known")
    for _ in range(2):
        container.call(lambda: is_denied(lambda: execute(tmp_path / "unknown")))
    assert [(e.path, e.digest, e.denied) for e in container.events()] == [
        (bytes(tmp_path / "known"), known, False),
        (bytes(tmp_path / "unknown"), unknown, True),
    ]
    free.run(tmp_path / "unknown")
    assert [(e.path, e.denied) for e in free.events()] == [(bytes(tmp_path / "unknown"), False)]
    free.close()
    container.close()


def test_a_known_file_may_be_anywhere(sensor: Sensor, tmp_path: Path) -> None:
    digest = install(tmp_path / "known", program(b"known"))
    install(tmp_path / "copy", program(b"known"))
    container = Enforced(sensor, digest)
    container.run(tmp_path / "copy")
    assert [e.denied for e in container.events()] == [False]
    container.close()


def test_an_unknown_library_cannot_be_mapped(sensor: Sensor, tmp_path: Path) -> None:
    known = install(tmp_path / "known", b"known library")
    install(tmp_path / "unknown", b"another library")
    container = Enforced(sensor, known)
    container.call(lambda: map_executable(tmp_path / "known"))
    container.call(lambda: is_denied(lambda: map_executable(tmp_path / "unknown")))

    def read_only() -> None:
        with (tmp_path / "unknown").open("rb") as file:
            mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ).close()

    container.call(read_only)
    assert [(e.func, e.denied) for e in container.events()] == [
        (Func.MMAP_CHECK, False),
        (Func.MMAP_CHECK, True),
    ]
    container.close()


def test_an_unknown_script_or_interpreter_cannot_run(sensor: Sensor, tmp_path: Path) -> None:
    interpreter = install(tmp_path / "interp", program(b"i"))
    other = install(tmp_path / "other", program(b"o"))
    script = install(tmp_path / "script", f"#!{tmp_path}/interp\n".encode())
    install(tmp_path / "script2", f"#!{tmp_path}/interp\n#\n".encode())
    script3 = install(tmp_path / "script3", f"#!{tmp_path}/other\n".encode())
    assert other not in {interpreter, script, script3}
    container = Enforced(sensor, interpreter, script, script3)
    container.run(tmp_path / "script")
    container.call(lambda: is_denied(lambda: execute(tmp_path / "script2")))
    container.call(lambda: is_denied(lambda: execute(tmp_path / "script3")))
    denied = [e.path for e in container.events() if e.denied]
    assert denied == [bytes(tmp_path / "script2"), bytes(tmp_path / "other")]
    container.close()


def test_what_has_no_file_or_no_digest_cannot_run(sensor: Sensor, tmp_path: Path) -> None:
    known = install(tmp_path / "known", program(b"known"))
    container = Enforced(sensor, known)

    def in_memory() -> None:
        fd = os.memfd_create("hidden")
        os.write(fd, program(b"memory"))
        os.execve(fd, [b"x"], {})

    container.call(lambda: is_denied(in_memory))
    with (tmp_path / "known").open("r+b"):
        container.call(lambda: is_denied(lambda: map_executable(tmp_path / "known")))
    assert [e.denied for e in container.events()] == [True, True]
    container.run(tmp_path / "known")
    container.close()


def test_a_namespace_made_in_the_container_has_its_list(sensor: Sensor, tmp_path: Path) -> None:
    from tests.vm.test_sensor import unshare

    install(tmp_path / "unknown", program(b"unknown"))
    container = Enforced(sensor)

    def nest() -> None:
        unshare()
        is_denied(lambda: execute(tmp_path / "unknown"))

    container.call(nest)
    assert [e.denied for e in container.events()] == [True]
    container.close()


def test_a_list_outlives_the_agent_and_the_sensor(tmp_path: Path) -> None:
    known = install(tmp_path / "known", program(b"known"))
    install(tmp_path / "unknown", program(b"unknown"))
    pins = Path(f"/sys/fs/bpf/cima-test-{os.getpid()}")
    try:
        with Sensor.open(pins) as first:
            container = Enforced(first, known)
        for options in (Options(), Options(ring_bytes=1 << 20)):
            container.call(lambda: is_denied(lambda: execute(tmp_path / "unknown")))
            with Sensor.open(pins, options) as sensor:
                container.sensor = sensor
                container.call(lambda: is_denied(lambda: execute(tmp_path / "unknown")))
                container.run(tmp_path / "known")
                assert True in {event.denied for event in drain(sensor)}
        with Sensor.open(pins, options) as last:
            last.unwatch(container.registration)
        container.run(tmp_path / "unknown")
        os.close(container.fd)
    finally:
        shutil.rmtree(pins)


def test_one_container_cannot_fill_the_buffer_of_all(tmp_path: Path) -> None:
    # The first event of a container always arrives, so this is all that does.
    with Sensor.load(Options(bytes_per_second=1)) as sensor:
        loud, quiet = Watched(sensor), Watched(sensor)
        names = [tmp_path / f"prog{number}" for number in range(20)]
        for name in names:
            install(name, program(name.name.encode()))
        loud.call(lambda: [wait(fork(lambda name=name: execute(name))) for name in names])
        quiet.run(names[0])
        found = drain(sensor)
        first = bytes(names[0])
        assert [(e.registration, e.path) for e in found] == [
            (loud.registration, first),
            (quiet.registration, first),
        ]
        lost = sensor.lost()
        assert lost.keys() == {loud.registration}
        # A program is checked and then mapped: two events, where the first was not sent.
        assert lost[loud.registration] == 2 * (len(names) - 1)
        sensor.unwatch(loud.registration)
        sensor.unwatch(quiet.registration)


# -- loading --------------------------------------------------------------------------------------


def verified_instructions() -> list[int]:
    """How many the kernel's verifier looked at in each BPF program that this process holds."""
    found: list[int] = []
    for handle in Path("/proc/self/fdinfo").iterdir():
        with suppress(FileNotFoundError):  # the listing's own
            found += map(int, re.findall(r"^verified_insns:\s+(\d+)$", handle.read_text(), re.M))
    return found


def test_the_kernels_verifier_has_little_to_do() -> None:
    """It gives up at a million, and each kernel counts otherwise."""
    with Sensor.load(Options(reads=("*.py",)) if NEW_KERNEL else Options()):
        found = verified_instructions()
    assert len(found) >= 5
    assert max(found) < 200_000


# -- reading --------------------------------------------------------------------------------------


@pytest.mark.skipif(NEW_KERNEL, reason="this kernel takes a digest when a file is opened")
def test_an_old_kernel_names_what_is_read(tmp_path: Path) -> None:
    ran = install(tmp_path / "ran.py", program(b"ran"))
    install(tmp_path / "new.py", b"new")
    with Sensor.load(Options(reads=("*.py",))) as sensor:
        container = Watched(sensor)
        container.run(tmp_path / "ran.py")
        container.call(lambda: [(tmp_path / name).read_bytes() for name in ("ran.py", "new.py")])
        assert [(e.path, e.digest, e.func, e.why) for e in container.events()] == [
            (bytes(tmp_path / "ran.py"), ran, Func.BPRM_CHECK, ""),
            (bytes(tmp_path / "new.py"), None, Func.FILE_CHECK, Why.NO_DIGEST_KEPT),
        ]
        container.close()


@pytest.fixture(scope="module")
def reading() -> Iterator[Sensor]:
    if not NEW_KERNEL:
        pytest.skip("takes Linux 6.12")
    with Sensor.load(Options(reads=("*.py", "run-*", "Makefile"))) as loaded:
        yield loaded


def test_files_of_these_names_are_reported_when_read(reading: Sensor, tmp_path: Path) -> None:
    container = Watched(reading)
    names = ["a.py", "b.pyc", ".py", "py", "run-", "run-x", "a-run-x", "Makefile", "Makefile2"]
    digests = {name: install(tmp_path / name, name.encode()) for name in names}
    (tmp_path / "directory.py").mkdir()

    def read() -> None:
        for name in names:
            (tmp_path / name).read_bytes()
        os.listdir(tmp_path / "directory.py")
        with (tmp_path / "a.py").open("r+b"):
            pass
        with (tmp_path / "new.py").open("wb"):
            pass

    container.call(read)
    container.call(read)
    wanted = ["a.py", ".py", "run-", "run-x", "Makefile"]
    found = uses(container.events())
    assert [(e.path, e.digest, e.func) for e in found if not e.why] == [
        (bytes(tmp_path / name), digests[name], Func.FILE_CHECK) for name in wanted
    ]
    # Who opens it for writing too has read it all the same.
    assert [(e.path, e.why) for e in found if e.why] == [(bytes(tmp_path / "a.py"), Why.WRITER)]
    (tmp_path / "a.py").read_bytes()
    assert drain(reading) == []
    container.close()


def test_a_script_given_to_its_interpreter_is_reported(reading: Sensor, tmp_path: Path) -> None:
    container = Watched(reading)
    main = install(tmp_path / "main.py", b"import helper\n")
    helper = install(tmp_path / "helper.py", b"print('it ran')\n")
    command = ["/usr/bin/python3", "-B", str(tmp_path / "main.py")]
    container.call(lambda: subprocess.run(command, check=True))
    found = {(e.path, e.digest) for e in container.events() if e.func is Func.FILE_CHECK}
    assert {(bytes(tmp_path / "main.py"), main), (bytes(tmp_path / "helper.py"), helper)} <= found
    container.close()


def test_what_was_read_is_reported_again_when_it_runs(reading: Sensor, tmp_path: Path) -> None:
    container = Watched(reading)
    digest = install(tmp_path / "a.py", program(b"both"))
    container.call((tmp_path / "a.py").read_bytes)
    container.run(tmp_path / "a.py")
    container.call((tmp_path / "a.py").read_bytes)
    assert [(e.digest, e.func) for e in container.events()] == [
        (digest, Func.FILE_CHECK),
        (digest, Func.BPRM_CHECK),
    ]
    container.close()


def test_a_file_that_may_change_while_it_is_read_is_unstable(
    reading: Sensor, tmp_path: Path
) -> None:
    container = Watched(reading)
    install(tmp_path / "a.py", b"first")
    with (tmp_path / "a.py").open("r+b"):
        container.call((tmp_path / "a.py").read_bytes)
    assert [e.why for e in uses(container.events())] == [Why.WRITER]
    container.close()


def test_an_unknown_script_cannot_be_read(reading: Sensor, tmp_path: Path) -> None:
    known = install(tmp_path / "known.py", b"known")
    install(tmp_path / "unknown.py", b"unknown")
    container = Enforced(reading, known)
    container.call((tmp_path / "known.py").read_bytes)
    container.call(lambda: is_denied((tmp_path / "unknown.py").read_bytes))
    assert [(e.func, e.denied) for e in container.events()] == [
        (Func.FILE_CHECK, False),
        (Func.FILE_CHECK, True),
    ]
    container.close()

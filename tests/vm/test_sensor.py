"""The sensor on a real kernel: what runs in a watched mount namespace is reported, all of it, and
nothing else is. Needs root and the BPF LSM; digests need IMA."""

import ctypes
import errno
import hashlib
import json
import mmap
import os
import select
import shutil
import signal
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from cima_runc.sensor.events import SHA256, Event, Func, Kind, Why
from cima_runc.sensor.loader import Rights, Sensor, SensorError
from cima_runc.sensor.options import Options
from cima_runc.sensor.pins import PinsError

CLONE_NEWNS = 0x20000
MS_REC_PRIVATE = 0x4000 | 1 << 18
libc = ctypes.CDLL(None, use_errno=True)
registrations = iter(range(1, 1 << 20))
NO_RIGHTS = Rights()


def program(payload: bytes = b"") -> bytes:
    """A static x86-64 ELF program that ends with status 0; ``payload`` makes its digest its own."""
    code = bytes.fromhex("31ff b83c000000 0f05")  # xor edi, edi; mov eax, 60; syscall
    size = 64 + 56 + len(code) + len(payload)
    header = b"\x7fELF\x02\x01\x01" + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, 0x400078, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    load = struct.pack("<IIQQQQQQ", 1, 5, 0, 0x400000, 0x400000, size, size, 4096)
    return header + load + code + payload


def install(path: bytes | Path, content: bytes) -> bytes:
    """Write an executable file; returns its digest."""
    file = Path(os.fsdecode(path))
    file.write_bytes(content)
    file.chmod(0o755)
    return hashlib.sha256(content).digest()


def fork(function: Callable[[], object]) -> int:
    """Run ``function`` in a child; returns its pid. Its status is 0 unless the function raised."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            function()
            status = 0
        finally:
            os._exit(status)
    return pid


def run(path: bytes | Path | int) -> None:
    """Execute a file in a child of this process, which must end with status 0."""
    name = path if isinstance(path, int) else os.fsencode(path)
    assert wait(fork(lambda: os.execve(name, [b"x"], {}))) == 0


def wait(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def wait_for(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def unshare() -> None:
    """Move this process to a mount namespace of its own, from which no mount gets out."""
    assert libc.unshare(CLONE_NEWNS) == 0, os.strerror(ctypes.get_errno())
    assert libc.mount(b"none", b"/", None, MS_REC_PRIVATE, None) == 0


def map_executable(path: Path) -> None:
    with path.open("rb") as file:
        mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC).close()


class Namespace:
    """A mount namespace, held open, in which functions can be run: a small container."""

    def __init__(self) -> None:
        ready, tell = os.pipe()
        leave, hold = os.pipe()

        def live() -> None:
            unshare()
            os.write(tell, b"!")
            os.read(leave, 1)

        pid = fork(live)
        assert os.read(ready, 1) == b"!"
        self.fd = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY)
        self.number = os.fstat(self.fd).st_ino
        os.write(hold, b"!")
        assert wait(pid) == 0
        for end in (ready, tell, leave, hold):
            os.close(end)

    def enter(self) -> None:
        assert libc.setns(self.fd, CLONE_NEWNS) == 0, os.strerror(ctypes.get_errno())

    def start(self, function: Callable[[], object]) -> int:
        def inside() -> None:
            self.enter()
            function()

        return fork(inside)

    def call(self, function: Callable[[], object]) -> int:
        """Run ``function`` in the namespace, as ``docker exec`` does; returns the child's pid."""
        pid = self.start(function)
        assert wait(pid) == 0
        return pid

    def run(self, path: bytes | Path | int) -> None:
        self.call(lambda: run(path))

    def close(self) -> None:
        os.close(self.fd)


def drain(sensor: Sensor) -> list[Event]:
    """Take all events out of the ring."""
    found = [event for events in sensor.events(1000) for event in events]
    sensor.release()
    return found


def uses(found: list[Event]) -> list[Event]:
    """Without what is said of files that change while they may be in use."""
    return [event for event in found if event.kind is Kind.USE]


class Watched(Namespace):
    """A namespace that a sensor watches."""

    def __init__(
        self, sensor: Sensor, allowlist: int | None = None, rights: Rights = NO_RIGHTS
    ) -> None:
        super().__init__()
        self.sensor = sensor
        self.registration = next(registrations)
        drain(sensor)
        sensor.watch(self.number, self.registration, 1, allowlist, rights)

    def events(self) -> list[Event]:
        found = drain(self.sensor)
        assert {event.registration for event in found} <= {self.registration}
        return found

    def close(self) -> None:
        lost = self.sensor.unwatch(self.registration)
        assert lost.registration == self.registration
        super().close()


@pytest.fixture
def container(sensor: Sensor) -> Iterator[Watched]:
    watched = Watched(sensor)
    yield watched
    watched.close()
    assert sensor.lost().get(watched.registration) is None


def test_a_program_is_reported_with_what_identifies_it(container: Watched, tmp_path: Path) -> None:
    digest = install(tmp_path / "prog", program())
    group = Path("/proc/self/cgroup").read_text().split("0::", 1)[1].strip()
    before = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    container.run(tmp_path / "prog")
    [event] = container.events()
    found = (tmp_path / "prog").stat()
    assert event.path == bytes(tmp_path / "prog")
    assert (event.digest, event.hash_algo, event.error) == (digest, SHA256, 0)
    assert event.func is Func.BPRM_CHECK
    assert event.registration == container.registration
    assert event.mntns == container.number
    assert (event.ino, event.uid, event.path_error) == (found.st_ino, 0, 0)
    assert event.dev == (os.major(found.st_dev), os.minor(found.st_dev))
    assert event.cgroup_id == Path(f"/sys/fs/cgroup{group}").stat().st_ino
    assert before < event.time_ns < time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def test_the_pid_is_the_initial_pid_namespace_s(container: Watched, tmp_path: Path) -> None:
    install(tmp_path / "prog", program())
    pid = container.call(lambda: os.execve(tmp_path / "prog", [b"x"], {}))
    [event] = container.events()
    assert event.pid == pid


def test_a_script_and_its_interpreter_are_reported(container: Watched, tmp_path: Path) -> None:
    interpreter = install(tmp_path / "interp", program(b"i"))
    script = install(tmp_path / "script", f"#!{tmp_path}/interp\nhello\n".encode())
    container.run(tmp_path / "script")
    assert [(e.path, e.digest, e.func) for e in container.events()] == [
        (bytes(tmp_path / "script"), script, Func.BPRM_CHECK),
        (bytes(tmp_path / "interp"), interpreter, Func.BPRM_CHECK),
    ]


def test_a_dynamic_program_comes_with_its_loader_and_libraries(container: Watched) -> None:
    container.run(b"/bin/true")
    events = container.events()
    assert (events[0].path, events[0].func) == (b"/usr/bin/true", Func.BPRM_CHECK)
    libraries = {e.path for e in events if e.func is Func.MMAP_CHECK}
    listed = subprocess.run(["ldd", "/bin/true"], capture_output=True, check=True).stdout
    wanted = {os.path.realpath(w) for w in listed.split() if w.startswith(b"/")}
    assert wanted
    assert libraries == wanted
    for event in events:
        assert event.path is not None
        # The host's own, which were hashed before this sensor was loaded.
        assert event.why in {Why.STABLE, Why.OLDER_THAN_SENSOR}
        assert event.digest == hashlib.sha256(Path(os.fsdecode(event.path)).read_bytes()).digest()


def test_two_names_of_one_file_are_two_events(container: Watched, tmp_path: Path) -> None:
    digest = install(tmp_path / "a", program())
    os.link(tmp_path / "a", tmp_path / "b")
    container.run(tmp_path / "a")
    container.run(tmp_path / "b")
    first, second = container.events()
    assert first.ino == second.ino
    assert [first.path, second.path] == [bytes(tmp_path / "a"), bytes(tmp_path / "b")]
    assert first.digest == second.digest == digest


def test_the_same_file_again_is_one_event_whatever_it_is_used_for(
    container: Watched, tmp_path: Path
) -> None:
    install(tmp_path / "prog", program())
    for _ in range(3):
        container.run(tmp_path / "prog")
    container.call(lambda: map_executable(tmp_path / "prog"))
    assert len(container.events()) == 1


def test_the_same_file_in_two_containers_is_an_event_in_each(
    sensor: Sensor, container: Watched, tmp_path: Path
) -> None:
    install(tmp_path / "prog", program())
    other = Watched(sensor)
    container.run(tmp_path / "prog")
    other.run(tmp_path / "prog")
    found = drain(sensor)
    assert [e.registration for e in found] == [container.registration, other.registration]
    other.close()


@pytest.mark.parametrize("how", ["rewritten", "mapped"])
def test_a_changed_file_is_another_event(container: Watched, tmp_path: Path, how: str) -> None:
    first = install(tmp_path / "prog", program(b"1111"))
    container.run(tmp_path / "prog")
    if how == "rewritten":
        second = install(tmp_path / "prog", program(b"2222"))
    else:
        with (tmp_path / "prog").open("r+b") as file, mmap.mmap(file.fileno(), 0) as content:
            content[-4:] = b"2222"
        second = hashlib.sha256(program(b"2222")).digest()
    container.run(tmp_path / "prog")
    found = container.events()
    # Nobody was running it any more when it was changed.
    assert [(e.digest, e.why, e.kind) for e in found] == [
        (first, Why.STABLE, Kind.USE),
        (second, Why.STABLE, Kind.USE),
    ]


def changed(found: list[Event]) -> set[tuple[bytes | None, Why]]:
    """What is said of files that change while they may be in use."""
    return {(event.path, event.why) for event in found if event.kind is Kind.CHANGED}


@pytest.mark.parametrize("how", ["opened", "truncated"])
def test_a_script_is_in_use_until_its_interpreter_opens_it(
    container: Watched, tmp_path: Path, how: str
) -> None:
    """However long that takes: this one never does."""
    install(tmp_path / "interp", program(b"i"))
    install(tmp_path / "script", f"#!{tmp_path}/interp\n".encode())
    container.run(tmp_path / "script")
    time.sleep(3)
    if how == "opened":
        (tmp_path / "script").open("ab").close()
    else:
        os.truncate(tmp_path / "script", 3)
    why = Why.OPENED_WHILE_MAPPED if how == "opened" else Why.TRUNCATED_WHILE_MAPPED
    assert changed(container.events()) == {(b"script", why)}


def test_a_script_that_was_read_to_its_end_is_not_in_use(
    container: Watched, tmp_path: Path
) -> None:
    install(tmp_path / "script", b"#!/usr/bin/env sh\n:\n")
    container.run(tmp_path / "script")
    (tmp_path / "script").open("ab").close()
    assert changed(container.events()) == set()


def test_a_script_is_in_use_for_as_long_as_its_interpreter_runs(
    container: Watched, tmp_path: Path
) -> None:
    """Python has opened it more than once, and closed it again, before it runs what it read."""
    started, go_on = tmp_path / "started", tmp_path / "go-on"
    wait_until = f"""
import os, time
open({str(started)!r}, "w").close()
while not os.path.exists({str(go_on)!r}):
    time.sleep(0.1)
"""
    install(tmp_path / "script", f"#!/usr/bin/env python3\n{wait_until}".encode())
    runs = container.start(lambda: run(tmp_path / "script"))
    wait_for(started.exists)
    (tmp_path / "script").open("ab").close()
    assert changed(container.events()) == {(b"script", Why.OPENED_WHILE_MAPPED)}
    go_on.touch()
    assert wait(runs) == 0
    (tmp_path / "script").open("ab").close()
    os.truncate(tmp_path / "script", 3)
    assert changed(container.events()) == set()


@contextmanager
def overlay(under: Path, prefix: str = "") -> Iterator[Path]:
    """An overlay over `lower` with an upper layer of its own, mounted."""
    lower, upper, work, merged = (
        under / name for name in ("lower", f"{prefix}upper", f"{prefix}work", f"{prefix}merged")
    )
    for directory in (upper, work, merged):
        directory.mkdir()
    options = f"lowerdir={lower},upperdir={upper},workdir={work}"
    subprocess.run(["mount", "-t", "overlay", "-o", options, "o", merged], check=True)
    try:
        yield merged
    finally:
        subprocess.run(["umount", "-l", merged], check=True)


def test_a_script_of_a_lower_layer_is_in_use_too(container: Watched, tmp_path: Path) -> None:
    """Its interpreter will open the copy that writing makes."""
    (tmp_path / "lower").mkdir()
    install(tmp_path / "interp", program(b"i"))
    for name in ("script", "again", "mode"):
        install(tmp_path / "lower" / name, f"#!{tmp_path}/interp\n".encode())
    with ExitStack() as stack:
        merged = stack.enter_context(overlay(tmp_path))
        other = stack.enter_context(overlay(tmp_path, "other-"))
        inside = Namespace()  # made after the mounts: it has them
        stack.callback(inside.close)
        beside = os.open(other, os.O_PATH | os.O_DIRECTORY)
        stack.callback(os.close, beside)
        container.sensor.watch(inside.number, registration := next(registrations), 1)
        inside.run(merged / "script")
        # Of nobody: another overlay of the same layer.
        (other / "script").open("ab").close()
        assert changed(drain(container.sensor)) == set()
        inside.call(lambda: (merged / "script").open("ab").close())
        assert changed(drain(container.sensor)) == {(b"script", Why.OPENED_WHILE_MAPPED)}
        # Another container that has the layer writes what this one awaits: a copy of its own.
        inside.run(merged / "again")
        container.call(lambda: os.close(os.open("again", os.O_WRONLY, dir_fd=beside)))
        assert changed(drain(container.sensor)) == set()
        # It is a copy already when it is opened for writing.
        inside.run(merged / "mode")
        inside.call(lambda: (merged / "mode").chmod(0o700))
        inside.call(lambda: os.truncate(merged / "mode", 3))
        assert changed(drain(container.sensor)) == {(b"mode", Why.TRUNCATED_WHILE_MAPPED)}
        # Who writes to the layer itself changes it for all that have it.
        inside.run(merged / "again")
        (tmp_path / "lower/again").open("ab").close()
        assert changed(drain(container.sensor)) == {(b"again", Why.OPENED_WHILE_MAPPED)}
        container.sensor.unwatch(registration)


@pytest.mark.parametrize("copied_before", [False, True])
def test_who_reads_a_file_of_a_lower_layer_reads_on_in_its_copy(
    sensor: Sensor, tmp_path: Path, copied_before: bool
) -> None:
    (tmp_path / "lower").mkdir()
    install(tmp_path / "lower/script", b"#!/bin/sh\n")
    install(tmp_path / "lower/data", b"no code")
    with overlay(tmp_path) as merged:
        inside = Watched(sensor)

        def attack() -> None:
            run(merged / "script")
            for name in ("script", "data"):
                reader = os.open(merged / name, os.O_RDONLY)
                if copied_before:
                    (merged / name).chmod(0o700)
                with (merged / name).open("ab") as writer:
                    writer.write(b"evil\n")
                assert b"evil" in os.read(reader, 99)
                os.close(reader)

        inside.call(attack)
        # What was never run is only data.
        assert changed(inside.events()) == {(b"script", Why.OPENED_WHILE_MAPPED)}
        inside.close()


def test_what_an_overlay_maps_need_not_be_what_it_hashes(sensor: Sensor, tmp_path: Path) -> None:
    """A file that was open before it was copied up: the lower one is mapped, the upper one read."""
    (tmp_path / "lower").mkdir()
    install(tmp_path / "lower/lib", program(b"lower"))
    with overlay(tmp_path) as merged:
        file = merged / "lib"
        inside = Watched(sensor)

        def attack() -> None:
            before = os.open(file, os.O_RDONLY)
            with file.open("r+b") as writer:
                writer.write(program(b"upper"))
            for descriptor in (before, os.open(file, os.O_RDONLY)):
                mapped = mmap.mmap(descriptor, 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC)
                assert (b"lower" in mapped[:]) == (descriptor == before)

        inside.call(attack)
        found = [(event.path, event.why) for event in uses(inside.events())]
        assert found == [(bytes(file), Why.MOVED), (bytes(file), Why.STABLE)]
        inside.close()


def test_a_file_that_is_open_for_writing_is_unstable(container: Watched, tmp_path: Path) -> None:
    content = program(b"1111")
    digest = install(tmp_path / "lib", content)
    container.call(lambda: map_executable(tmp_path / "lib"))
    with (tmp_path / "lib").open("r+b") as writer:
        writer.write(program(b"2222"))
        writer.flush()
        container.call(lambda: map_executable(tmp_path / "lib"))
    container.call(lambda: map_executable(tmp_path / "lib"))
    found = [(e.digest, e.why) for e in uses(container.events())]
    changed = hashlib.sha256(program(b"2222")).digest()
    assert [found[0], found[-1]] == [(digest, Why.STABLE), (changed, Why.STABLE)]
    assert [why for _, why in found] == [Why.STABLE, Why.WRITER, Why.STABLE]


def test_an_executable_mapping_is_reported_and_others_are_not(
    container: Watched, tmp_path: Path
) -> None:
    digest = install(tmp_path / "lib", b"library")
    (tmp_path / "data").write_bytes(b"data")

    def read_only() -> None:
        with (tmp_path / "data").open("rb") as file:
            mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ).close()

    container.call(read_only)
    container.call(lambda: map_executable(tmp_path / "lib"))
    [event] = container.events()
    assert (event.path, event.digest) == (bytes(tmp_path / "lib"), digest)
    assert event.func is Func.MMAP_CHECK


def test_a_namespace_made_in_the_container_is_the_container_s(
    sensor: Sensor, container: Watched, tmp_path: Path
) -> None:
    install(tmp_path / "outer", program(b"outer"))
    install(tmp_path / "inner", program(b"inner"))

    def nest() -> None:
        unshare()
        run(tmp_path / "outer")
        unshare()
        run(tmp_path / "inner")

    container.call(nest)
    found = container.events()
    assert [e.path for e in found] == [bytes(tmp_path / "outer"), bytes(tmp_path / "inner")]
    assert len({container.number, *(e.mntns for e in found)}) == 3
    wait_for(lambda: sensor.status().nested == 0)


def test_unwatching_forgets_the_nested_namespaces(sensor: Sensor, tmp_path: Path) -> None:
    install(tmp_path / "prog", program())
    container = Watched(sensor)
    go, tell = os.pipe()
    ready, say = os.pipe()

    def nest() -> None:
        unshare()
        os.write(say, b"!")
        os.read(go, 1)
        run(tmp_path / "prog")

    pid = container.start(nest)
    os.read(ready, 1)
    assert sensor.status().nested == 1
    container.close()
    os.write(tell, b"!")
    assert wait(pid) == 0
    assert drain(sensor) == []
    assert sensor.status().nested == 0


def test_the_number_of_a_dead_nested_namespace_says_nothing(
    container: Watched, tmp_path: Path
) -> None:
    install(tmp_path / "mine", program(b"mine"))
    install(tmp_path / "other", program(b"other"))

    def nest() -> None:
        unshare()
        run(tmp_path / "mine")

    container.call(nest)
    [event] = container.events()
    wait_for(lambda: container.sensor.status().nested == 0)
    others = [Namespace() for _ in range(20)]
    assert event.mntns in {other.number for other in others}
    for other in others:
        other.run(tmp_path / "other")
        other.close()
    assert container.events() == []


def test_as_many_namespaces_as_it_likes(container: Watched, tmp_path: Path) -> None:
    install(tmp_path / "prog", program())

    def nest() -> None:
        held = []
        for _ in range(1100):
            assert libc.unshare(CLONE_NEWNS) == 0
            held.append(os.open("/proc/self/ns/mnt", os.O_RDONLY))
        run(tmp_path / "prog")

    container.call(nest)
    [event] = container.events()
    assert event.path == bytes(tmp_path / "prog")
    assert event.mntns != container.number


def test_a_task_stays_the_container_s_in_a_namespace_that_is_not(
    container: Watched, tmp_path: Path
) -> None:
    install(tmp_path / "prog", program())
    other = Namespace()

    def leave() -> None:
        os.waitpid(fork(lambda: None), 0)  # from here on it has done something in the container
        other.enter()
        run(tmp_path / "prog")

    container.call(leave)
    [event] = container.events()
    assert (event.path, event.mntns) == (bytes(tmp_path / "prog"), other.number)
    other.close()


@pytest.mark.parametrize(
    "name", [b"new\nline", b"\xff\xfe not \x80 utf-8", b"\x1b[31mred", b" ", b"a" * 255]
)
def test_any_name_survives(container: Watched, tmp_path: Path, name: bytes) -> None:
    path = bytes(tmp_path) + b"/" + name
    digest = install(path, program())
    container.run(path)
    [event] = container.events()
    assert (event.path, event.digest) == (path, digest)


@pytest.mark.parametrize(("length", "fits"), [(4095, True), (4096, False), (5000, False)])
def test_paths_as_long_as_the_kernel_can_name(
    container: Watched, tmp_path: Path, length: int, fits: bool
) -> None:
    full = bytes(tmp_path)
    here = os.open(full, os.O_RDONLY)
    while length - len(full) > 257:
        os.mkdir(b"d" * 250, dir_fd=here)
        full += b"/" + b"d" * 250
        here = os.open(b"d" * 250, os.O_RDONLY, dir_fd=here)
    name = b"p" * (length - len(full) - 1)
    full += b"/" + name
    file = os.open(name, os.O_WRONLY | os.O_CREAT, 0o755, dir_fd=here)
    os.write(file, program())
    os.close(file)

    def execute() -> None:
        os.chdir(tmp_path)
        for part in full[len(bytes(tmp_path)) + 1 :].split(b"/")[:-1]:
            os.chdir(part)
        os.execve(name, [b"x"], {})

    container.call(execute)
    [event] = container.events()
    assert event.digest == hashlib.sha256(program()).digest()
    if fits:
        assert event.path == full
    else:
        assert (event.path, event.path_error) == (None, errno.ENAMETOOLONG)


def test_a_deleted_program(container: Watched, tmp_path: Path) -> None:
    digest = install(tmp_path / "prog", program())
    fd = os.open(tmp_path / "prog", os.O_RDONLY)
    (tmp_path / "prog").unlink()
    container.run(fd)
    os.close(fd)
    [event] = container.events()
    assert (event.path, event.digest) == (bytes(tmp_path / "prog") + b" (deleted)", digest)


def test_a_program_in_memory(container: Watched) -> None:
    fd = os.memfd_create("hidden")
    os.write(fd, program(b"memory"))
    container.run(fd)
    os.close(fd)
    [event] = container.events()
    assert (event.path, event.why) == (b"/memfd:hidden (deleted)", Why.MEMORY_FILE)
    assert event.digest == hashlib.sha256(program(b"memory")).digest()


def test_a_file_system_of_layers(container: Watched, tmp_path: Path) -> None:
    for name in ("lower", "upper", "work", "merged"):
        (tmp_path / name).mkdir()
    old = install(tmp_path / "lower" / "prog", program(b"old"))
    new = hashlib.sha256(program(b"new")).digest()
    options = f"lowerdir={tmp_path}/lower,upperdir={tmp_path}/upper,workdir={tmp_path}/work"
    merged = tmp_path / "merged"

    def inside() -> None:
        assert libc.mount(b"overlay", os.fsencode(merged), b"overlay", 0, options.encode()) == 0, (
            os.strerror(ctypes.get_errno())
        )
        run(merged / "prog")
        install(merged / "prog", program(b"new"))
        run(merged / "prog")

    container.call(inside)
    assert [(e.path, e.digest, e.why) for e in uses(container.events())] == [
        (bytes(merged / "prog"), old, Why.CONTAINER_MOUNTED_OVERLAY),
        (bytes(merged / "prog"), new, Why.CONTAINER_MOUNTED_OVERLAY),
    ]


def test_nobody_else_is_reported(sensor: Sensor, container: Watched, tmp_path: Path) -> None:
    install(tmp_path / "prog", program())
    run(tmp_path / "prog")
    other = Namespace()
    other.run(tmp_path / "prog")
    other.close()
    gone = Watched(sensor)
    sensor.unwatch(gone.registration)
    gone.run(tmp_path / "prog")
    os.close(gone.fd)
    assert drain(sensor) == []


def test_a_process_that_joins_from_another_cgroup_is_reported(
    container: Watched, tmp_path: Path
) -> None:
    install(tmp_path / "prog", program())
    group = Path("/sys/fs/cgroup/cima-test")
    group.mkdir()

    def elsewhere() -> None:
        (group / "cgroup.procs").write_text(str(os.getpid()))
        container.enter()
        os.execve(tmp_path / "prog", [b"x"], {})

    try:
        assert wait(fork(elsewhere)) == 0
        [event] = container.events()
        assert event.cgroup_id == group.stat().st_ino
    finally:
        wait_for(lambda: (group / "cgroup.procs").read_text() == "")
        group.rmdir()


def test_the_descriptor_says_when_there_are_events(container: Watched, tmp_path: Path) -> None:
    install(tmp_path / "prog", program())
    poll = select.epoll()
    poll.register(container.sensor.fileno(), select.EPOLLIN)
    assert poll.poll(0) == []
    container.run(tmp_path / "prog")
    assert len(poll.poll(5)) == 1
    assert len(container.events()) == 1
    assert poll.poll(0) == []


def test_wrong_requests_are_refused(sensor: Sensor, container: Watched) -> None:
    with pytest.raises(SensorError, match="0 is not"):
        sensor.watch(1, 0, 1)
    with pytest.raises(SensorError, match=f"{container.number} is watched already"):
        sensor.watch(container.number, next(registrations), 1)
    with pytest.raises(SensorError, match=f"{container.registration} is in use"):
        sensor.watch(1, container.registration, 1)
    with pytest.raises(SensorError, match=f"no container is watched as {99 << 32}"):
        sensor.unwatch(99 << 32)


def test_a_full_ring_loses_nothing_silently(tmp_path: Path) -> None:
    with Sensor.load(Options(ring_bytes=4096)) as sensor:
        container = Watched(sensor)
        bystander = Watched(sensor)
        names = [tmp_path / f"prog{i}" for i in range(60)]
        for name in names:
            install(name, program(name.name.encode()))
            container.run(name)
        got = [e.path for e in container.events()]
        assert 0 < len(got) < len(names)
        # A program is checked and then mapped: two events for which there is no room.
        dropped = 2 * (len(names) - len(got))
        assert got == [bytes(name) for name in names[: len(got)]]
        assert sensor.lost() == {container.registration: dropped}
        assert sensor.status().dropped == dropped
        for name in names[len(got) : len(got) + 5]:
            container.run(name)
        again = [e.path for e in container.events()]
        assert again == [bytes(name) for name in names[len(got) : len(got) + 5]]
        assert sensor.lost() == {container.registration: dropped}
        assert sensor.unwatch(bystander.registration).total == 0
        assert sensor.unwatch(container.registration).dropped == dropped
        assert sensor.lost() == {}


def test_many_cold_programs_at_once_are_all_reported(
    sensor: Sensor, container: Watched, tmp_path: Path
) -> None:
    names = [tmp_path / f"prog{i}" for i in range(300)]
    wanted = {bytes(n): install(n, program(os.urandom(128 * 1024))) for n in names}
    missed = sensor.status().missed
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")

    def worker(share: list[Path]) -> None:
        for name in share:
            run(name)

    children = [container.start(lambda i=i: worker(names[i::12])) for i in range(12)]
    assert [wait(child) for child in children] == [0] * 12
    assert {e.path: e.digest for e in container.events()} == wanted
    assert sensor.lost() == {}
    assert sensor.status().missed == missed


def test_a_real_container(sensor: Sensor, tmp_path: Path) -> None:
    (tmp_path / "rootfs" / "bin").mkdir(parents=True)
    digest = install(tmp_path / "rootfs" / "bin" / "prog", program(b"in a container"))
    subprocess.run(["runc", "spec"], cwd=tmp_path, check=True)
    config = json.loads((tmp_path / "config.json").read_bytes())
    config["process"] |= {"args": ["/bin/prog"], "terminal": False}
    (tmp_path / "config.json").write_text(json.dumps(config))
    name = f"cima-{tmp_path.name}"
    subprocess.run(
        ["runc", "create", name],
        cwd=tmp_path,
        check=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        state = json.loads(subprocess.check_output(["runc", "state", name]))
        number = Path(f"/proc/{state['pid']}/ns/mnt").stat().st_ino
        registration = next(registrations)
        drain(sensor)
        sensor.watch(number, registration, 1)
        subprocess.run(["runc", "start", name], check=True)
        wait_for(
            lambda: (
                json.loads(subprocess.check_output(["runc", "state", name]))["status"] == "stopped"
            )
        )
        assert [(e.path, e.digest, e.mntns) for e in drain(sensor)] == [
            (b"/bin/prog", digest, number)
        ]
        sensor.unwatch(registration)
    finally:
        subprocess.run(["runc", "delete", "-f", name], check=True)


def test_a_namespace_that_ends_while_watched_leaves_no_entry_for_the_next(
    sensor: Sensor, tmp_path: Path
) -> None:
    install(tmp_path / "prog", program())
    container = Watched(sensor)
    os.close(container.fd)
    others: list[Namespace] = []
    wait_for(lambda: others.append(Namespace()) or others[-1].number == container.number)
    others[-1].run(tmp_path / "prog")
    assert drain(sensor) == []
    assert sensor.unwatch(container.registration).total == 0
    for other in others:
        other.close()


def test_closing_detaches(tmp_path: Path) -> None:
    install(tmp_path / "prog", program())
    with Sensor.load() as first:
        assert len(first.status().programs) > 20
    first.close()
    with Sensor.load() as second:
        container = Watched(second)
        container.run(tmp_path / "prog")
        assert len(container.events()) == 1


def test_a_killed_worker_leaves_the_sensor_working(
    sensor: Sensor, container: Watched, tmp_path: Path
) -> None:
    """Processes killed in the middle of an execution give back what the sensor lent them."""
    names = [tmp_path / f"prog{i}" for i in range(64)]
    for name in names:
        install(name, program(os.urandom(64 * 1024)))

    def storm() -> None:
        for name in names * 50:
            run(name)

    for _ in range(8):
        child = container.start(storm)
        time.sleep(0.1)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    drain(sensor)
    shutil.copy(names[0], tmp_path / "last")
    container.run(tmp_path / "last")
    assert [e.path for e in container.events()][-1] == bytes(tmp_path / "last")


# -- pinned ---------------------------------------------------------------------------------------


@pytest.fixture
def pins() -> Iterator[Path]:
    directory = Path(f"/sys/fs/bpf/cima-test-{next(registrations)}")
    yield directory
    for path in directory.glob("*/*"):
        path.unlink()
    for path in directory.glob("*"):
        path.rmdir()
    directory.rmdir()


def test_a_pinned_sensor_works_on_while_nobody_has_it_open(pins: Path, tmp_path: Path) -> None:
    digests = {name: install(tmp_path / name, program(name.encode())) for name in ("a", "b", "c")}
    with Sensor.open(pins) as first:
        container = Watched(first)
        container.run(tmp_path / "a")
        [[event]] = first.events(10)
        assert event.path == bytes(tmp_path / "a")
    container.run(tmp_path / "b")
    container.call(lambda: (unshare(), run(tmp_path / "c")))
    with Sensor.open(pins) as second:
        assert second.registrations() == {container.registration}
        found = drain(second)
        # What was read and not released comes again.
        assert [e.path for e in found] == [bytes(tmp_path / name) for name in "abc"]
        assert [e.digest for e in found] == [digests[name] for name in "abc"]
        assert {e.registration for e in found} == {container.registration}
    with Sensor.open(pins) as third:
        assert drain(third) == []
        assert third.unwatch(container.registration).total == 0
    os.close(container.fd)


def test_two_processes_cannot_have_a_pinned_sensor(pins: Path) -> None:
    with Sensor.open(pins), pytest.raises(PinsError, match="another agent uses the sensor"):
        Sensor.open(pins)


def test_a_directory_that_others_may_change_is_refused(pins: Path) -> None:
    pins.mkdir(mode=0o755)
    with pytest.raises(PinsError, match="not root's alone"):
        Sensor.open(pins)


def test_another_version_takes_over_without_a_gap(pins: Path, tmp_path: Path) -> None:
    """Two rings of different sizes are two versions. Programs run all the while."""
    names = [tmp_path / f"prog{i}" for i in range(1000)]
    for name in names:
        install(name, program(name.name.encode()))
    ready, say = os.pipe()
    (go, tell), (go_nested, tell_nested) = os.pipe(), os.pipe()

    def load() -> None:
        os.read(go, 1)
        for name in names:
            run(name)

    def nest() -> None:
        os.read(go, 1)
        unshare()
        os.write(say, b"!")
        os.read(go_nested, 1)
        run(tmp_path / "prog0")

    # Started first: a child would hold the lock of a sensor that is open.
    container = Namespace()
    children = [container.start(nest), container.start(load)]
    registration = next(registrations)
    found: list[Event] = []
    with Sensor.open(pins, Options(ring_bytes=1 << 20)) as first:
        first.watch(container.number, registration, 1)
        os.write(tell, b"!!")
        os.read(ready, 1)
        found += drain(first)
    sizes = [1 << 21, 1 << 20, 1 << 22]
    for size in sizes:
        with Sensor.open(pins, Options(ring_bytes=size)) as sensor:
            assert sensor.registrations() == {registration}
            assert sensor.status().nested == 1
            # The kernel detaches the older one in its own time.
            wait_for(lambda: found.extend(drain(sensor)) or len(list(pins.iterdir())) == 1)
    os.write(tell_nested, b"!")
    assert [wait(child) for child in children] == [0, 0]
    with Sensor.open(pins, Options(ring_bytes=sizes[-1])) as last:
        found += drain(last)
        assert last.lost() == {}
        assert last.unwatch(registration).total == 0
        assert drain(last) == []
    assert {e.path for e in found} == {bytes(name) for name in names}
    assert len({e.mntns for e in found}) == 2
    container.close()


def test_what_an_older_version_lost_is_not_forgotten(pins: Path, tmp_path: Path) -> None:
    names = [tmp_path / f"prog{i}" for i in range(60)]
    for name in names:
        install(name, program(name.name.encode()))
    with Sensor.open(pins, Options(ring_bytes=4096)) as first:
        container = Watched(first)
        for name in names:
            container.run(name)
        lost = first.lost()
        assert lost[container.registration] > 0
    with Sensor.open(pins) as second:
        assert second.unwatch(container.registration).total == lost[container.registration]
    with Sensor.open(pins, Options(ring_bytes=1 << 20)) as third:
        assert third.registrations() == set()
        kept = third.unwatched()
        assert kept[container.registration].total == lost[container.registration]
        third.forget(container.registration)
        assert third.unwatched() == {}
    os.close(container.fd)


def test_an_agent_that_died_half_way_leaves_nothing_in_the_way(pins: Path, tmp_path: Path) -> None:
    install(tmp_path / "prog", program())
    with Sensor.open(pins, Options(ring_bytes=1 << 20)) as first:
        container = Watched(first)
        container.run(tmp_path / "prog")
    (whole,) = pins.iterdir()
    whole.rename(pins / f"{whole.name}-new")
    (pins / "1-of-a-broken-one").mkdir()
    (pins / "99-of-another-layout").mkdir()
    with Sensor.open(pins) as second:
        assert len(list(pins.iterdir())) == 1
        assert second.registrations() == set()
    os.close(container.fd)


def test_a_namespace_that_ends_while_nobody_watches_gives_its_number_away(
    pins: Path, tmp_path: Path
) -> None:
    install(tmp_path / "prog", program())
    with Sensor.open(pins) as first:
        container = Watched(first)
    os.close(container.fd)
    others: list[Namespace] = []
    wait_for(lambda: others.append(Namespace()) or others[-1].number == container.number)
    others[-1].run(tmp_path / "prog")
    with Sensor.open(pins) as second:
        assert drain(second) == []
        assert second.registrations() == {container.registration}
        second.unwatch(container.registration)
        fresh = next(registrations)
        second.watch(others[-1].number, fresh, 1)
        others[-1].run(tmp_path / "prog")
        assert [e.registration for e in drain(second)] == [fresh]
        second.unwatch(fresh)
    for other in others:
        other.close()

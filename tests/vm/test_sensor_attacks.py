"""Files that change under their digests, and executable memory: each is named by the sensor. Needs
root and the BPF LSM; digests need IMA."""

import ctypes
import fcntl
import hashlib
import mmap
import os
import signal
import stat
import struct
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from cima_runc.sensor.events import Event, Kind, Why
from cima_runc.sensor.loader import Sensor, SwitchedOffError
from tests.vm.test_sensor import (
    Watched,
    container,
    drain,
    fork,
    install,
    libc,
    map_executable,
    program,
    uses,
    wait,
    wait_for,
)

__all__ = ["container"]

PROT_READ, PROT_WRITE, PROT_EXEC, MAP_PRIVATE = 1, 2, 4, 2
BPF_MAP_GET_FD_BY_ID = 14
SYS_BPF, SYS_INIT_MODULE, SYS_FINIT_MODULE, SYS_KEXEC_LOAD = 321, 175, 313, 246
SYS_PERF_EVENT_OPEN = 298
SYS_PTRACE, SYS_PIDFD_GETFD = 101, 438
PTRACE_SEIZE = 0x4206
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def about(events: list[Event]) -> set[tuple[Kind, Why]]:
    return {(event.kind, event.why) for event in events}


def map_private(path: Path, protection: int) -> int:
    descriptor = os.open(path, os.O_RDONLY)
    return int(libc.mmap(None, path.stat().st_size, protection, MAP_PRIVATE, descriptor, 0))


def test_a_dirty_page_that_changes_after_its_file_was_hashed(
    container: Watched, tmp_path: Path
) -> None:
    file = tmp_path / "lib"
    install(file, program(b"A" * 4096))

    def attack() -> None:
        descriptor = os.open(file, os.O_RDWR)
        with mmap.mmap(descriptor, 0, mmap.MAP_SHARED) as content:
            os.close(descriptor)
            content[-4:] = b"AAAA"
            map_executable(file)
            content[-4:] = b"EVIL"
        map_executable(file)

    container.call(attack)
    evil = hashlib.sha256(file.read_bytes()).digest()
    found = uses(container.events())
    assert found
    assert all(event.why or event.digest == evil for event in found)


def test_a_file_that_is_written_while_it_is_mapped(container: Watched, tmp_path: Path) -> None:
    file = tmp_path / "lib"
    install(file, program(b"B" * 4096))

    def attack() -> None:
        held = map_private(file, PROT_READ | PROT_EXEC)
        assert held
        descriptor = os.open(file, os.O_RDWR)
        os.pwrite(descriptor, b"EVIL", 4000)
        os.close(descriptor)

    container.call(attack)
    assert about(container.events()) == {
        (Kind.USE, Why.STABLE),
        (Kind.CHANGED, Why.OPENED_WHILE_MAPPED),
    }


def made_executable(file: Path) -> None:
    size = file.stat().st_size
    libc.mprotect(map_private(file, PROT_READ), size, PROT_READ | PROT_EXEC)


def written_and_executable_again(file: Path) -> None:
    size = file.stat().st_size
    held = map_private(file, PROT_READ | PROT_EXEC)
    libc.mprotect(held, size, PROT_READ | PROT_WRITE)
    ctypes.memset(held, 0x90, 16)
    libc.mprotect(held, size, PROT_READ | PROT_EXEC)


def anonymous(file: Path) -> None:
    mmap.mmap(-1, 4096, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)


def device_of_zeros(file: Path) -> None:
    with Path("/dev/zero").open("rb") as zero:
        mmap.mmap(zero.fileno(), 4096, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC)


def own_memory(file: Path) -> None:
    os.close(os.open("/proc/self/mem", os.O_RDWR))


def sensor_by_number(file: Path) -> None:
    number = ctypes.c_uint32(1)
    assert libc.syscall(SYS_BPF, BPF_MAP_GET_FD_BY_ID, ctypes.byref(number), 4) == -1


def disk_below_its_files(file: Path) -> None:
    disk = next(each for each in Path("/sys/block").iterdir() if each.name.startswith("vd"))
    os.close(os.open(Path("/dev") / disk.name, os.O_RDWR))


def physical_memory(file: Path) -> None:
    os.close(os.open("/dev/mem", os.O_RDWR))


def registers(file: Path) -> None:
    """Where the kernel begins is one of them. Without their module there is nobody who opens it."""
    node = Path("/dev/cima-test-msr")
    os.mknod(node, stat.S_IFCHR | 0o600, os.makedev(202, 0))
    try:
        with suppress(OSError):
            os.close(os.open(node, os.O_RDWR))
    finally:
        node.unlink()


def memory_of_another_kernel(file: Path) -> None:
    """Also where the kernel has no such device."""
    node = Path("/dev/cima-test-snapshot")
    os.mknod(node, stat.S_IFCHR | 0o600, os.makedev(10, 231))
    try:
        with suppress(OSError):
            os.close(os.open(node, os.O_WRONLY))
    finally:
        node.unlink()


def disk_to_go_on_from(file: Path) -> None:
    os.close(os.open("/sys/power/resume", os.O_WRONLY))


def written_behind_its_end(file: Path) -> None:
    os.truncate(file, 5000)
    with file.open("r+b") as opened, mmap.mmap(opened.fileno(), 0) as content:
        ctypes.memset(ctypes.addressof(ctypes.c_char.from_buffer(content)) + 6000, 0x90, 16)
    map_executable(file)


def opened_for_direct_writes(file: Path) -> None:
    """Which the file system may not have: who asks is remembered all the same."""
    with suppress(OSError):
        os.close(os.open(file, os.O_WRONLY | os.O_DIRECT))
    map_executable(file)


def set_to_direct_writes(file: Path) -> None:
    with file.open("r+b") as opened, suppress(OSError):
        fcntl.fcntl(opened, fcntl.F_SETFL, os.O_DIRECT)
    map_executable(file)


def probe(file: Path) -> None:
    """As perf_event_open(2) makes one, in no mapping (type, size and config1 of its attributes)."""
    attributes = bytearray(112)
    kind = int(Path("/sys/bus/event_source/devices/uprobe/type").read_text())
    path = ctypes.create_string_buffer(os.fsencode(file))
    struct.pack_into("=II", attributes, 0, kind, len(attributes))
    struct.pack_into("=Q", attributes, 56, ctypes.addressof(path))
    libc.syscall(SYS_PERF_EVENT_OPEN, bytes(attributes), 0, -1, -1, 0)


def module(file: Path) -> None:
    assert libc.syscall(SYS_INIT_MODULE, bytes(4096), 4096, b"") == -1


def module_in_a_file(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    assert libc.syscall(SYS_FINIT_MODULE, descriptor, b"", 0) == -1


def another_kernel(file: Path) -> None:
    libc.syscall(SYS_KEXEC_LOAD, 0, 0, 0, 0)


@pytest.mark.parametrize(
    ("attack", "kind", "why"),
    [
        (made_executable, Kind.USE, Why.MPROTECT),
        (written_and_executable_again, Kind.MEMORY, Why.EXECMOD),
        (anonymous, Kind.MEMORY, Why.EXECMEM),
        (device_of_zeros, Kind.MEMORY, Why.EXECMEM),
        (own_memory, Kind.CHANGED, Why.PROCESS_MEMORY),
        (sensor_by_number, Kind.GUARD, Why.BPF),
        (disk_below_its_files, Kind.GUARD, Why.RAW_DEVICE),
        (physical_memory, Kind.GUARD, Why.RAW_DEVICE),
        (registers, Kind.GUARD, Why.RAW_DEVICE),
        (memory_of_another_kernel, Kind.GUARD, Why.RAW_DEVICE),
        (disk_to_go_on_from, Kind.GUARD, Why.KERNEL_CODE),
        (written_behind_its_end, Kind.USE, Why.WAS_MAPPED),
        (opened_for_direct_writes, Kind.USE, Why.WAS_MAPPED),
        (set_to_direct_writes, Kind.USE, Why.WAS_MAPPED),
        (probe, Kind.GUARD, Why.TRACING),
        (module, Kind.GUARD, Why.KERNEL_CODE),
        (module_in_a_file, Kind.GUARD, Why.KERNEL_CODE),
        (another_kernel, Kind.GUARD, Why.KERNEL_CODE),
    ],
)
def test_each_has_a_name(
    container: Watched, tmp_path: Path, attack: Callable[[Path], None], kind: Kind, why: Why
) -> None:
    install(tmp_path / "lib", program(b"C" * 8192))
    container.call(lambda: attack(tmp_path / "lib"))
    assert (kind, why) in about(container.events())


FTRACE = Path("/proc/sys/kernel/ftrace_enabled")


def test_no_container_detaches_the_sensor(container: Watched) -> None:
    """The kernel would call no program any more, for no container, and say nothing of it."""

    def switch_off() -> None:
        with pytest.raises(PermissionError):
            FTRACE.write_text("0\n")

    container.call(switch_off)
    (event,) = container.events()
    assert (event.kind, event.why, event.denied) == (Kind.GUARD, Why.TRACING, True)
    assert FTRACE.read_text() == "1\n"
    assert container.sensor.lost() == {}


def test_what_runs_while_the_host_has_it_switched_off_is_lost(
    container: Watched, tmp_path: Path
) -> None:
    install(tmp_path / "prog", program())
    try:
        FTRACE.write_text("0\n")
        container.run(tmp_path / "prog")
        with pytest.raises(SwitchedOffError):
            container.sensor.watch(1, 2, 3)
    finally:
        FTRACE.write_text("1\n")
    assert container.events() == []
    assert container.sensor.lost()[container.registration] > 0


def test_no_container_takes_a_sensors_pins_away(tmp_path: Path) -> None:
    """Who gives a pin another one's name has removed that."""
    pins = Path("/sys/fs/bpf/cima-test-names")
    with Sensor.open(pins) as sensor:
        container = Watched(sensor)
        (of_sensor,) = (each for each in pins.iterdir() if each.is_dir())
        one, other, *_ = sorted(of_sensor.glob("map-*"))

        def taken_away() -> None:
            for attempt in (lambda: one.rename(other), one.unlink):
                with pytest.raises(PermissionError):
                    attempt()

        container.call(taken_away)
        assert about(drain(sensor)) == {(Kind.GUARD, Why.BPF)}
        container.close()
    for path in pins.glob("*/*"):
        path.unlink()
    for path in pins.glob("*"):
        path.rmdir()
    pins.rmdir()


def test_a_disk_that_is_only_read_and_a_harmless_device_have_none(container: Watched) -> None:
    def opened() -> None:
        for device in Path("/dev").glob("vd*"):
            os.close(os.open(device, os.O_RDONLY))
        os.close(os.open("/dev/null", os.O_RDWR))

    container.call(opened)
    assert container.events() == []


@pytest.mark.parametrize(("flags", "kinds"), [(6, set()), (7, {(Kind.MEMORY, Why.EXECSTACK)})])
def test_a_program_with_an_executable_stack(
    container: Watched, tmp_path: Path, flags: int, kinds: set[tuple[Kind, Why]]
) -> None:
    """PT_GNU_STACK says so, and the kernel makes it before the program's first instruction."""
    whole = bytearray(program())
    headers = struct.unpack_from("<H", whole, 56)[0]
    at = 64 + 56 * headers
    stack = struct.pack("<IIQQQQQQ", 0x6474E551, flags, 0, 0, 0, 0, 0, 16)
    whole[at:at] = stack
    struct.pack_into("<H", whole, 56, headers + 1)
    entry = struct.unpack_from("<Q", whole, 24)[0]
    struct.pack_into("<Q", whole, 24, entry + len(stack))
    for offset in (64 + 32, 64 + 40):  # what is loaded is as much longer
        struct.pack_into("<Q", whole, offset, struct.unpack_from("<Q", whole, offset)[0] + 56)
    install(tmp_path / "prog", bytes(whole))
    container.run(tmp_path / "prog")
    assert about(container.events()) == {(Kind.USE, Why.STABLE)} | kinds


def stack_in_the_kernel(pid: int) -> None:
    Path(f"/proc/{pid}/stack").read_bytes()


def its_system_call(pid: int) -> None:
    Path(f"/proc/{pid}/syscall").read_bytes()


def _to_and_from(call: Callable[..., int], pid: int) -> None:
    """Its own word is read there, or written."""
    word = ctypes.create_string_buffer(8)
    maps = Path(f"/proc/{pid}/maps").read_text().splitlines()
    stack = next(int(line.split("-")[0], 16) for line in maps if line.endswith("[stack]"))
    here = struct.pack("=QQ", ctypes.addressof(word), 8)
    one, none = ctypes.c_ulong(1), ctypes.c_ulong(0)
    assert call(pid, here, one, struct.pack("=QQ", stack, 8), one, none) == 8


def memory_read(pid: int) -> None:
    _to_and_from(libc.process_vm_readv, pid)


def descriptor_taken(pid: int) -> None:
    descriptor = os.pidfd_open(pid)
    os.close(libc.syscall(SYS_PIDFD_GETFD, descriptor, 0, 0))
    os.close(descriptor)


def memory_written(pid: int) -> None:
    _to_and_from(libc.process_vm_writev, pid)


def traced(pid: int) -> None:
    assert libc.syscall(SYS_PTRACE, PTRACE_SEIZE, pid, 0, 0) == 0


def memory_opened(pid: int) -> None:
    os.close(os.open(f"/proc/{pid}/mem", os.O_RDWR))


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize(
    ("look", "is_change"),
    [
        *((look, False) for look in (stack_in_the_kernel, its_system_call, memory_read)),
        (descriptor_taken, False),
        *((change, True) for change in (memory_written, traced, memory_opened)),
    ],
)
def test_who_only_looks_at_a_process_changes_nothing(
    container: Watched, look: Callable[[int], None], is_change: bool, inside: bool
) -> None:
    """As debuggers and monitors do, on the host and in the container."""
    sleeps = container.start(partial(os.execve, "/bin/sleep", ["sleep", "600"], {}))
    wait_for(lambda: Path(f"/proc/{sleeps}/comm").read_text() == "sleep\n")
    at = fork(partial(look, sleeps)) if not inside else container.start(partial(look, sleeps))
    assert wait(at) == 0
    os.kill(sleeps, signal.SIGKILL)
    wait(sleeps)
    found = [event for event in container.events() if event.kind is not Kind.USE]
    assert {event.kind for event in found} == ({Kind.CHANGED} if is_change else set())

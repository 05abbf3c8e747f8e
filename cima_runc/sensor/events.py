"""What the sensor says of one file that was executed, mapped executable or read as a script.

Pure: bytes of the ring in, :class:`Event` out. The layout is ``struct event`` of sensor.h.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Final

from cima_runc.base import limits
from cima_runc.base.errors import CimaError

HEADER: Final = struct.Struct("=QQQQIIIIiiIIII64s")
"""``struct event``: host byte order, 136 bytes; the path follows."""

DIGEST_SIZES: Final = (
    *(16, 16, 20, 20, 32, 48, 64, 28, 16, 32, 40, 32, 48, 64, 16, 20, 24),
    *(32, 32, 64, 32, 48, 64),
)
"""Bytes of a digest, by ``enum hash_algo`` of the kernel's include/uapi/linux/hash_info.h."""

SHA256: Final = 4
"""``HASH_ALGO_SHA256``."""


class EventError(CimaError):
    """Bytes that are not an event of this sensor: program and loader are not of one version."""


class Func(IntEnum):
    """The check that the kernel was making, by the names that an IMA policy uses; NONE: none of
    IMA's."""

    NONE = 0
    BPRM_CHECK = 1
    MMAP_CHECK = 2
    FILE_CHECK = 3


class Kind(IntEnum):
    """What an event is about; ``enum kind`` of sensor.h."""

    USE = 0
    """A file was executed, mapped executable or read."""
    CHANGED = 1
    """What may be running was changed, or could be."""
    GUARD = 2
    """A task of the container reached for the sensor."""
    ENTRY = 3
    """A process from outside entered with more rights than the container has."""
    HELPER = 4
    """The kernel ran, or was told to run, a program of the container's elsewhere."""
    MEMORY = 5
    """Memory that is no measured file became executable."""


class Why(StrEnum):
    """Why a digest may not be of what ran, or what was done; ``enum why`` of sensor.h, in order."""

    STABLE = ""
    """Nothing could have changed the file since its digest was taken."""
    WRITER = "writer"
    """It is open for writing."""
    SHARED_MAPPING = "shared-mapping"
    """It is mapped writable and shared."""
    WRITTEN_WHILE_HASHED = "written-while-hashed"
    WRITTEN_SINCE = "written-since"
    MOVED = "moved"
    """The overlay has another file behind this name than the one that was hashed."""
    OLDER_THAN_SENSOR = "older-than-sensor"
    MAP_FULL = "map-full"
    """The sensor had no room to keep what it knows of the digest."""
    SERVER_CAN_ANSWER_TWICE = "server-can-answer-twice"
    """A FUSE or network file system: what was hashed need not be what is read next."""
    CONTAINER_MOUNTED_OVERLAY = "container-mounted-overlay"
    CONTAINER_MOUNTED = "container-mounted"
    """A file system that the container mounted from a device or an image."""
    MEMORY_FILE = "memory-file"
    """A file in memory that is not sealed against writing: nothing counts its writers."""
    MPROTECT = "mprotect"
    """A file's mapping became executable after it was made."""
    TOO_LARGE = "too-large"
    """Above ``sensor.largest_file_mib``: refused, and not hashed."""
    NO_DIGEST_KEPT = "no-digest-kept"
    """The kernel could not take a digest at that moment, and had none."""
    HOOK_MISSING = "hook-missing"
    """This kernel has no hook at which changes of files could be seen."""
    OPENED_WHILE_MAPPED = "opened-while-mapped"
    """A file in use was opened for writing."""
    TRUNCATED_WHILE_MAPPED = "truncated-while-mapped"
    PROCESS_MEMORY = "process-memory"
    """/proc/PID/mem was opened for writing."""
    PTRACE = "ptrace"
    USERFAULTFD = "userfaultfd"
    BPF = "bpf"
    TRACING = "tracing"
    """Kernel tracing was opened for writing."""
    HELPER_SET = "helper-set"
    """A setting by which the kernel runs programs was opened for writing."""
    HELPER_RAN = "helper-ran"
    """A program of the container's files ran outside of it."""
    CAPABILITIES = "capabilities"
    """The process has capabilities that the container's first one could not have."""
    NO_SECCOMP = "no-seccomp"
    """The container's first process has a seccomp filter, this one has none."""
    EXECMEM = "execmem"
    """Anonymous memory, or a private mapping that is writable at the same time."""
    EXECMOD = "execmod"
    """A private mapping of a file that was written to."""
    EXECSTACK = "execstack"
    EXECHEAP = "execheap"
    PINNED_MEMORY = "pinned-memory"
    """io_uring or AF_XDP keeps pages of it, and can write to them when no mapping is left."""
    RAW_DEVICE = "raw-device"
    """A block device, or one that gives memory or a disk past all files, was opened for writing; a
    file was swapped to, or was to have its blocks exchanged."""
    WAS_MAPPED = "was-mapped"
    """A container mapped it shared and writable: bytes behind its end, and what was being read into
    the mapping, are of no digest. Or what is cached of it may differ from the disk: it was opened
    for direct writes, given another file's blocks, or could not be written back."""
    KERNEL_CODE = "kernel-code"
    """A module, or another kernel, was loaded."""


@dataclass(frozen=True, slots=True)
class Event:
    """One file, as a process of a watched container used it, or tried to."""

    registration: int
    """The number under which the container was watched; unsigned, 64 bits."""
    time_ns: int
    """Nanoseconds of ``CLOCK_BOOTTIME``."""
    cgroup_id: int
    """Of the process, in the cgroup v2 hierarchy: the inode number of its directory."""
    mntns: int
    """Inode number of the process's mount namespace: the container's own, or one nested in it."""
    pid: int
    """Thread group id in the initial pid namespace."""
    uid: int
    """Real user id in the initial user namespace."""
    ino: int
    dev: tuple[int, int]
    """Major and minor number of the file system."""
    func: Func
    digest: bytes | None
    """IMA's digest of the file, as long as ``hash_algo`` says; None: see ``error``. Whether it is
    of what was used: see ``why``. Of memory: of the program that has it."""
    hash_algo: int
    """``enum hash_algo`` of linux/hash_info.h, 4 for SHA-256; -1 where there is no digest."""
    error: int
    """0, or the positive errno for which there is no digest."""
    path: bytes | None
    """Absolute path in the container's root as the kernel has it, any bytes but NUL; a file
    without a name ends in " (deleted)". None: see ``path_error``."""
    path_error: int
    """0, or the positive errno for which there is no path: ENAMETOOLONG above 4,095 bytes."""
    denied: bool = False
    """Whether the kernel was told to refuse it."""
    kind: Kind = Kind.USE
    why: Why = Why.STABLE
    """Of a use: why the digest is not believed; of all else what was done."""


def parse(record: bytes | memoryview) -> Event:
    """Return the event in one record of the ring.

    Raises :class:`EventError` for anything that sensor.bpf.c does not send.
    """
    if len(record) < HEADER.size:
        raise EventError(f"an event of {len(record)} bytes, shorter than its {HEADER.size}")
    (
        registration,
        time_ns,
        cgroup_id,
        ino,
        mntns,
        pid,
        uid,
        dev,
        algo,
        path_len,
        func,
        denied,
        kind,
        why,
        digest,
    ) = HEADER.unpack_from(record)
    if denied > 1:
        raise EventError(f"an event that is denied {denied} times")
    if func not in _FUNCS:
        raise EventError(f"an event of the unknown check {func}")
    if kind not in _KINDS or why >= len(_WHYS):
        raise EventError(f"an event of the unknown kind {kind}, {why}")
    if algo >= len(DIGEST_SIZES):
        raise EventError(f"an event with a digest of the unknown algorithm {algo}")
    path = None
    if path_len > 0:
        if path_len > limits.PATH or len(record) != HEADER.size + path_len:
            raise EventError(f"a path of {path_len} bytes in an event of {len(record)}")
        path = bytes(record[HEADER.size : -1])
        if record[-1] or 0 in path:
            raise EventError("a path that does not end at its one NUL")
    elif path_len == 0 or len(record) != HEADER.size:
        raise EventError(f"a path of {path_len} bytes in an event of {len(record)}")
    return Event(
        registration,
        time_ns,
        cgroup_id,
        mntns,
        pid,
        uid,
        ino,
        (dev >> 20, dev & 0xFFFFF),
        _FUNCS[func],
        digest[: DIGEST_SIZES[algo]] if algo >= 0 else None,
        max(algo, -1),
        -algo if algo < 0 else 0,
        path,
        0 if path is not None else -path_len,
        bool(denied),
        _KINDS[kind],
        _WHYS[why],
    )


_FUNCS: Final = {int(func): func for func in Func}
_KINDS: Final = {int(kind): kind for kind in Kind}
_WHYS: Final = tuple(Why)

"""What the sensor saw and is no file measurement: the content of its record. Pure."""

import os
from typing import Final

from cima_runc.ml import contents
from cima_runc.ml.contents import Content, ViolationKind
from cima_runc.sensor.events import SHA256, Event, Func, Kind, Why

_REASONS: Final = {
    Why.WRITER: "it is open for writing",
    Why.SHARED_MAPPING: "it is mapped writable and shared",
    Why.WRITTEN_WHILE_HASHED: "it could be written while it was hashed",
    Why.WRITTEN_SINCE: "it was written since it was hashed",
    Why.MOVED: "the overlay has another file at this name than the one that was hashed",
    Why.OLDER_THAN_SENSOR: "it was hashed before the sensor was loaded",
    Why.MAP_FULL: "the sensor had no room to watch over it",
    Why.SERVER_CAN_ANSWER_TWICE: "its file system can give other content at each read",
    Why.CONTAINER_MOUNTED_OVERLAY: "it is in an overlay that the container mounted",
    Why.CONTAINER_MOUNTED: "it is in a file system that the container mounted",
    Why.MEMORY_FILE: "it is in memory, and not sealed against writing",
    Why.MPROTECT: "its mapping became executable by mprotect",
    Why.TOO_LARGE: "it is larger than sensor.largest_file_mib",
    Why.NO_DIGEST_KEPT: "the kernel could take no digest of it when it was opened",
    Why.HOOK_MISSING: "this kernel does not say whether it was written",
    Why.OPENED_WHILE_MAPPED: "a file in use was opened for writing",
    Why.TRUNCATED_WHILE_MAPPED: "a file in use was truncated",
    Why.PROCESS_MEMORY: "the memory of a process was opened for writing",
    Why.PTRACE: "a process was attached to",
    Why.USERFAULTFD: "a process can fill in pages that others map",
    Why.BPF: "bpf(2) was called for what is not the container's",
    Why.TRACING: "kernel tracing was opened for writing",
    Why.RAW_DEVICE: "what is below files was reached for: a device that holds file systems, or"
    " memory, opened for writing, a file swapped to, or blocks exchanged",
    Why.WAS_MAPPED: "it was mapped shared and writable, or written past the page cache, and may"
    " change without a writer",
    Why.KERNEL_CODE: "a module, or another kernel, was loaded",
    Why.HELPER_SET: "a setting was opened for writing by which the kernel runs programs",
    Why.HELPER_RAN: "a program of the container's files ran outside of it",
    Why.CAPABILITIES: "a process entered with more capabilities than the container has",
    Why.PINNED_MEMORY: "the kernel keeps pages of it, and can write to them (io_uring, AF_XDP)",
    Why.NO_SECCOMP: "a process entered without the container's seccomp filter",
}
_KINDS: Final[dict[Kind, ViolationKind]] = {
    Kind.CHANGED: "changed",
    Kind.GUARD: "guard",
    Kind.ENTRY: "entry",
    Kind.HELPER: "helper",
}
_MEMORY: Final = {
    Why.EXECMEM: "execmem",
    Why.EXECMOD: "execmod",
    Why.EXECSTACK: "execstack",
    Why.EXECHEAP: "execheap",
}


def is_measured(event: Event) -> bool:
    """Whether it is the use of a file whose content and name are known: a file measurement."""
    return (
        event.kind is Kind.USE
        and not event.denied
        and not event.why
        and event.hash_algo == SHA256
        and bool(event.digest and event.path)
    )


def content_of(event: Event) -> Content:
    """Return the content of an event that is no file measurement."""
    if event.kind is Kind.MEMORY:
        return contents.Memory.model_validate(
            {
                "kind": _MEMORY[event.why],
                "program_path_hex": event.path,
                "program_digest": event.digest,
                "mntns": event.mntns,
                "denied": event.denied,
            }
        )
    kind, reason = _kind_of(event), _reason_of(event)
    return contents.Violation(
        kind=kind,
        denied=event.denied,
        reason=reason,
        why=event.why.value or None,
        func=event.func.name if event.func is not Func.NONE else None,
        digest=event.digest or None,
        path_hex=event.path or None,
        mntns=event.mntns,
        inode=str(event.ino),
        device=f"{event.dev[0]}:{event.dev[1]}",
    )


def _kind_of(event: Event) -> ViolationKind:
    if event.kind in _KINDS:
        return _KINDS[event.kind]
    if event.denied:
        return "denied"
    # Where IMA was to take a digest and did not, it is no question of whether one is believed.
    failed = event.why is Why.NO_DIGEST_KEPT and event.func is not Func.FILE_CHECK
    return "unstable" if event.why and not failed else "unnamed"


def _reason_of(event: Event) -> str:
    if event.denied and not event.why:
        return "denied, it is not in the container's image"
    if event.why and _kind_of(event) != "unnamed":
        reason = _REASONS[event.why]
        return f"denied, {reason}" if event.denied else reason
    if event.digest is None:
        return f"the kernel gave no digest: {os.strerror(event.error)}"
    if event.hash_algo != SHA256:
        return "the kernel's digest is not SHA-256: boot with ima_hash=sha256"
    return f"the kernel gave no path: {os.strerror(event.path_error)}"

"""Which processes are outside of containers."""

import os


def in_our_pid_namespace(pid: int) -> bool:
    """Return whether a process is outside of containers, which have pid namespaces of their own."""
    own = os.stat("/proc/self/ns/pid").st_ino
    try:
        return os.stat(f"/proc/{pid}/ns/pid").st_ino == own
    except FileNotFoundError:  # it has ended
        return False


def has_our_root(pid: int) -> bool:
    """Return whether a process's root directory is ours, as no container's is, whatever namespaces
    it shares with the host.

    Raises:
        OSError: it has ended, or may not be looked at.
    """
    return os.path.samestat(os.stat(f"/proc/{pid}/root"), os.stat("/"))


def in_mount_namespace_of(pid: int, other: int) -> bool:
    """Return whether two processes are in one mount namespace; not where one has ended."""
    try:
        return os.path.samestat(os.stat(f"/proc/{pid}/ns/mnt"), os.stat(f"/proc/{other}/ns/mnt"))
    except OSError:
        return False

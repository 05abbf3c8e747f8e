"""The disk that records are on: a record is durable before a container goes on."""

import os
from pathlib import Path

from cima_runc.base import limits
from cima_runc.doctor.finding import UnfitError

_LEAST = 64 * limits.MIB
"""Bytes below which a busy host's records may find no room within minutes."""
_LEAST_FILES = 1024


def look(state: Path, quota: int) -> str:
    """Check that what may be kept (``quota`` bytes of records) finds room in ``state``.

    Raises:
        UnfitError: there is little room, or less than the settings allow to be used.
        OSError: the directory cannot be looked at.
    """
    place = next(path for path in (state, *state.parents) if path.exists())
    found = os.statvfs(place)
    free = found.f_bavail * found.f_frsize
    shown = f"{free // limits.MIB} MiB are free for {state}"
    if found.f_flag & os.ST_RDONLY:
        raise UnfitError(f"{place} is read-only", hint="mount it for writing: nothing starts else")
    if free < _LEAST:
        raise UnfitError(f"only {shown}", hint="make room, or no container starts")
    if found.f_files and found.f_favail < _LEAST_FILES:
        raise UnfitError(
            f"only {found.f_favail} more files can be made in {state}", hint="make room"
        )
    left = quota - _used(state)
    if free < left:
        raise UnfitError(
            f"only {shown}, and storage.quota_mib allows {max(left, 0) // limits.MIB} MiB more",
            hint="make room, or lower storage.quota_mib: where the disk is full nothing starts",
        )
    return shown


def _used(state: Path) -> int:
    used = 0
    for directory, _, names in os.walk(state):
        for name in names:
            try:
                used += os.lstat(os.path.join(directory, name)).st_size
            except FileNotFoundError:
                continue  # the agent goes on meanwhile
    return used

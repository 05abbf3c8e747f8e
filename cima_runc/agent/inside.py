"""Looks at a user's container with that user's own authority, in a process of its own.

A user has the say over every path of his: what is there may be a link to a file of root's, or on a
file system that a program of his serves (FUSE) and that never answers. So nobody looks as root.
This process enters the user's namespaces, where the kernel lets it read what the user may read and
nothing else; and where it hangs it is left behind, and the agent goes on.

The user's tracer cannot reach into it: it is not dumpable, and imports nothing once it is inside.

Arguments: descriptors of the user namespace and of the mount namespace. Standard input and output
carry one JSON object each: :class:`Task`, and an :class:`Answer`.
"""

import base64
import ctypes
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from cima_runc.base import limits
from cima_runc.base.bounded import read_bounded
from cima_runc.base.errors import CimaError
from cima_runc.evidence.owner import WHOSE, names_us
from cima_runc.measure.bundle import parse_config, read_config, root_of
from cima_runc.measure.idmap import IDENTITY, parse_id_maps
from cima_runc.measure.overlay import FuseCommand, fuse_overlayfs_commands, read_rootfs
from cima_runc.measure.podman_image import image_pairs
from cima_runc.measure.rootfs import Mode, deadline, measure

_PR_SET_DUMPABLE = 4
_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNS = 0x00020000
_libc = ctypes.CDLL(None, use_errno=True)


class Task(BaseModel):
    """What to look at."""

    model_config = ConfigDict(frozen=True)

    pid: int
    """The container's first process."""
    uid: int
    """The user."""
    bundle: str
    config: str
    """Path of the configuration."""
    mode: Mode
    seconds: float
    """How long measuring may take."""
    stores: tuple[str, ...] = ()
    """Where Podman has images, beside the container's own store."""


class Answer(BaseModel):
    """What was seen, or why it cannot be measured."""

    model_config = ConfigDict(frozen=True)

    config: str = ""
    """The bundle's config.json, base64."""
    rootfs: dict[str, Any] = {}
    """Content of the ``rootfs`` record."""
    of_image: tuple[tuple[str, str], ...] | None = None
    """What the manifests of its image have of names that decide whose it is; None: not known."""
    refused: str = ""


def look(task: Task, user_namespace: int, mount_namespace: int) -> Answer:
    """Enter the namespaces and look; this process cannot leave them again.

    Raises:
        CimaError, OSError: the container cannot be measured.
    """
    process = Path("/proc", str(task.pid))
    mountinfo = read_bounded(process / "mountinfo", limits.MOUNTINFO)
    is_nested = (process / "ns/user").stat().st_ino != os.fstat(user_namespace).st_ino
    served = list(_served(task.uid))
    _enter(user_namespace, _CLONE_NEWUSER)
    # Read from in here, so that owners are as stat(2) will show them.
    ids = IDENTITY
    if is_nested:
        uids, gids = (read_bounded(process / f"{kind}_map", limits.MIB) for kind in ("uid", "gid"))
        ids = parse_id_maps(uids, gids)
    _enter(mount_namespace, _CLONE_NEWNS)
    raw = read_config(task.config)
    parsed = parse_config(raw)
    rootfs = read_rootfs(root_of(parsed, task.bundle), mountinfo, lambda: served)
    measured = measure(rootfs, ids=ids, mode=task.mode, check=deadline(task.seconds))
    pairs = image_pairs(task.bundle, task.stores) if names_us(parsed) else frozenset()
    ours = None if pairs is None else tuple(one for one in sorted(pairs) if one[0] in WHOSE)
    config = base64.b64encode(raw).decode("ascii")
    return Answer(config=config, rootfs=measured.content(), of_image=ours)


def _served(uid: int) -> Iterator[FuseCommand]:
    """Yield the user's fuse-overlayfs processes, which are in his user namespace as we shall be."""
    for command in fuse_overlayfs_commands(uid):
        yield FuseCommand(command.argv, command.cwd, IDENTITY)


def _enter(namespace: int, kind: int) -> None:
    _check(_libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0))
    if kind == _CLONE_NEWUSER and os.getgroups():
        # A service has none, and no capability to change them.
        os.setgroups([])
    _check(_libc.setns(namespace, kind))
    if kind == _CLONE_NEWUSER:
        # As root of the host this process would own what root owns.
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
        _check(_libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0))
    else:
        # What would be imported now would be the user's.
        sys.meta_path.clear()


def _check(status: int) -> None:
    if status != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def main() -> int:
    """Answer one task."""
    user_namespace, mount_namespace = map(int, sys.argv[1:3])
    task = Task.model_validate_json(sys.stdin.buffer.read())
    try:
        answer = look(task, user_namespace, mount_namespace)
    except CimaError as error:
        answer = Answer(refused=str(error))
    except OSError as error:
        answer = Answer(refused=f"the root filesystem cannot be measured: {error.strerror}")
    sys.stdout.buffer.write(answer.model_dump_json().encode("ascii"))
    sys.stdout.buffer.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""A container of a user other than root that wants to start (rootless Podman).

The user's uid is what the kernel says of the socket's other end. The container's process must be
that user's: the outermost user namespaces around it and around its mount namespace are owned by
that very uid. Who owns a user namespace has all power in it already, so nobody gains any here.
"""

import asyncio
import base64
import os
import sys
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

from pydantic import ValidationError

from cima_runc.agent import userns
from cima_runc.agent.candidate import (
    Candidate,
    configuration_of,
    handed_on,
    look_seconds,
    unmeasured_memory,
)
from cima_runc.agent.current import CurrentSettings
from cima_runc.agent.host_services import Look
from cima_runc.agent.inside import Answer, Task
from cima_runc.agent.process import PROC, ContainerProcess, examine, has_ended
from cima_runc.agent.rights import device_of_root
from cima_runc.base import limits
from cima_runc.base.errors import CimaError
from cima_runc.measure.bundle import cgroups_path
from cima_runc.measure.engine import EngineFinder
from cima_runc.measure.rootfs import Mode
from cima_runc.runtime.hook_state import HookState, parse_hook_state, qualified

_NO_HOST_SERVICES = "a user's engine is the user's own"


class RootlessError(CimaError):
    """The container is not this user's, or cannot be looked at."""


class Looks:
    """Looks at users' containers, a few of each user at a time, each for a limited time."""

    def __init__(self, settings: CurrentSettings) -> None:
        self._settings = settings
        self._engines = EngineFinder()
        self._places: dict[int, asyncio.Semaphore] = {}

    async def look_at(self, hook_state: bytes, uid: int) -> Candidate:
        """Check that the container is the user's and measure its root filesystem.

        Raises:
            CimaError: it is not, or cannot be measured in time; it must not start.
        """
        state = parse_hook_state(hook_state)
        place = self._places.setdefault(uid, asyncio.Semaphore(limits.USER_LOOKS))
        deadline = asyncio.get_running_loop().time() + look_seconds(self._settings.value)
        try:
            async with asyncio.timeout_at(deadline):
                await place.acquire()
        except TimeoutError as error:
            raise RootlessError(f"too many containers of user {uid} start at once") from error
        return await self._look(state, uid, place, deadline)

    async def _look(
        self, state: HookState, uid: int, place: asyncio.Semaphore, deadline: float
    ) -> Candidate:
        loop = asyncio.get_running_loop()
        with ExitStack() as held:
            helper = None
            try:
                pidfd, user_namespace, mount_namespace = _open_namespaces(state.pid, uid, held)
                helper = await _start_helper(user_namespace, mount_namespace)
                task = Task(
                    pid=state.pid,
                    uid=uid,
                    bundle=state.bundle,
                    config=state.config,
                    mode=_mode(self._settings.value.rootfs.mode),
                    seconds=deadline - loop.time(),
                    stores=await loop.run_in_executor(None, self._engines.image_stores, state.pid),
                )
                async with asyncio.timeout_at(deadline + limits.USER_LOOK_GRACE):
                    out, _ = await helper.communicate(task.model_dump_json().encode("ascii"))
            except TimeoutError as error:
                raise RootlessError("looking at the root filesystem takes too long") from error
            except OSError as error:
                raise RootlessError(f"process {state.pid} cannot be examined: {error}") from error
            finally:
                _give_back(place, helper)
            answer = _parse(out)
            config = configuration_of(state, base64.b64decode(answer.config))
            process = examine(state.pid, state.id, cgroups_path(config), needs_cgroup=False)
            if not _is_same(process, pidfd, mount_namespace):
                process.close()
                raise RootlessError(f"process {state.pid} is another one now")
        find = self._engines.find
        try:
            engine = await loop.run_in_executor(None, find, process.pid, state.bundle, config, uid)
            # What reads of the user's processes is not done in the loop: that serves everybody.
            missing = await loop.run_in_executor(None, unmeasured_memory, process.pid)
            device = partial(device_of_root, config, state.bundle, process.pid, uid=uid)
            root_device = await loop.run_in_executor(None, device)
        except BaseException:
            process.close()
            raise
        state = replace(state, id=qualified(state.id, uid))
        look = Look(error=_NO_HOST_SERVICES)
        seen = None if answer.of_image is None else frozenset(answer.of_image)
        of_image = handed_on(config, engine, state.bundle, lambda: seen)
        return Candidate(
            *(state, config, process, answer.rootfs, look, engine, uid, missing, of_image),
            root_device=root_device,
        )


def _mode(mode: Mode) -> Mode:
    """Layers' manifests are kept for root's containers only: a user must not fill the store."""
    return "layers-digest-only" if mode == "full" else mode


def _open_namespaces(pid: int, uid: int, held: ExitStack) -> tuple[int, int, int]:
    """Return descriptors of the process, the user's own user namespace, and its mount namespace.

    Raises:
        RootlessError: they are not this user's.
        OSError: there is no such process.
    """
    pidfd = os.pidfd_open(pid)
    held.callback(os.close, pidfd)
    directory = PROC / str(pid) / "ns"
    handles = []
    for name in ("user", "mnt"):
        handle = os.open(directory / name, os.O_RDONLY | os.O_CLOEXEC)
        held.callback(os.close, handle)
        handles.append(handle)
    user, mount = handles
    around_mount = userns.around(mount)
    held.callback(os.close, around_mount)
    outermost = []
    for namespace in (user, around_mount):
        try:
            outer = userns.outermost(namespace)
        except userns.UserNamespaceError as error:
            raise RootlessError(f"process {pid} is not user {uid}'s: {error.what}") from error
        held.callback(os.close, outer)
        if userns.owner(outer) != uid:
            raise RootlessError(f"process {pid} is not user {uid}'s")
        outermost.append(outer)
    return pidfd, outermost[0], mount


async def _start_helper(user_namespace: int, mount_namespace: int) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-X", "utf8", "-m", "cima_runc.agent.inside"),
        *(str(user_namespace), str(mount_namespace)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        pass_fds=(user_namespace, mount_namespace),
        env={},
        cwd="/",
    )


def _give_back(place: asyncio.Semaphore, helper: asyncio.subprocess.Process | None) -> None:
    """Free the user's place; where the helper hangs, when it has ended, which may be never."""
    if helper is None or helper.returncode is not None:
        place.release()
        return
    helper.kill()
    ended = asyncio.get_running_loop().create_task(helper.wait())
    _ENDING.add(ended)

    def free(task: "asyncio.Task[int]") -> None:
        _ENDING.discard(task)
        place.release()

    ended.add_done_callback(free)


_ENDING: set["asyncio.Task[int]"] = set()
"""Helpers that were killed; a task that nobody holds may vanish."""


def _parse(out: bytes) -> Answer:
    try:
        answer = Answer.model_validate_json(out)
    except ValidationError as error:
        raise RootlessError("the root filesystem cannot be measured: the helper failed") from error
    if answer.refused:
        raise RootlessError(answer.refused)
    return answer


def _is_same(process: ContainerProcess, pidfd: int, mount_namespace: int) -> bool:
    """Whether ``process`` is the one that was checked, which has lived all the time."""
    return process.mntns == os.fstat(mount_namespace).st_ino and not has_ended(pidfd)

"""The agent's socket for users other than root, who have their own containers measured.

Off unless a group is named that may use it. Who asks is known from the kernel, and reaches what is
that uid's own: its containers' ids begin with ``UID/``. docs/adr/0060-users-containers.md says why.
"""

import asyncio
import grp
import json
import logging
import os
import socket
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from cima_runc.agent.request import peer_uid, read_request, refusal
from cima_runc.agent.rooms import Rooms, Submit
from cima_runc.agent.rootless import Looks
from cima_runc.base import limits
from cima_runc.base.errors import CimaError
from cima_runc.config import Settings
from cima_runc.runtime.agent_socket import HEADER, USERS_SUFFIX, frame
from cima_runc.runtime.shim_settings import SettingsError

_log = logging.getLogger("cima-agent")


class UserServer:
    """Answers users."""

    def __init__(self, settings: Settings, look_seconds: float, submit: Submit) -> None:
        """``look_seconds``: how long a container may be looked at before it is registered.

        ``submit`` has work done by the agent's one writer.
        """
        self._group = settings.users.group
        self._path = Path(settings.shim.socket + USERS_SUFFIX)
        self._submit = submit
        self._looks = Looks(settings.rootfs.mode, look_seconds)
        self._connected: Counter[int] = Counter()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen, if the settings name a group.

        Raises:
            SettingsError: there is no such group.
            OSError: the socket cannot be made.
        """
        self._path.unlink(missing_ok=True)
        if self._group is None:
            return
        self._server = await asyncio.start_unix_server(
            self._serve,
            sock=_listen(self._path, _number_of(self._group)),
            limit=HEADER,
            backlog=limits.WAITING_REQUESTS,
        )
        _log.info("ready for the group %s on %s", self._group, self._path)

    def stop(self) -> None:
        """Listen no more."""
        if self._server is not None:
            self._server.close()
            self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        uid = peer_uid(writer.get_extra_info("socket"))
        self._connected[uid] += 1
        try:
            word, body = await self._answer(reader, uid)
            writer.write(frame(word, body))
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError) as error:
            _log.debug("user %d went away: %s", uid, error)
        finally:
            self._connected[uid] -= 1
            if not self._connected[uid]:
                del self._connected[uid]
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, uid: int) -> tuple[str, bytes]:
        what = f"request of user {uid}"
        try:
            if self._connected[uid] > limits.USER_REQUESTS:
                raise CimaError(f"user {uid} has {limits.USER_REQUESTS} requests under way")
            verb, body = await read_request(reader)
            what = f"{verb} of user {uid}"
            return "ok", await self._do(verb, body, uid)
        except (CimaError, OSError, asyncio.LimitOverrunError) as error:
            return refusal(what, error)

    async def _do(self, verb: str, body: bytes, uid: int) -> bytes:
        if verb == "prestart":
            candidate = await self._looks.look_at(body, uid)
            await self._submit(lambda rooms: rooms.registration.register(candidate))
            return b""
        done: dict[str, Callable[[Rooms], None]] = {
            "poststart": lambda rooms: rooms.lifecycle.poststart(body, uid),
            "poststop": lambda rooms: rooms.lifecycle.poststop(body, uid),
        }
        if verb in done:
            await self._submit(done[verb])
            return b""
        asked: dict[str, Callable[[Rooms], bytes]] = {
            "ps": lambda rooms: json.dumps(rooms.questions.ps(uid)).encode("ascii"),
            "log": lambda rooms: rooms.questions.log(body, uid),
        }
        if verb not in asked:
            raise CimaError(f"no such request of a user's: {verb}")
        await self._submit(lambda rooms: rooms.commit(bind=False))
        return await self._submit(asked[verb])


def _number_of(group: str) -> int:
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError as error:
        raise SettingsError(f"users.group = {group!r} is not allowed: no such group") from error


def _listen(path: Path, group: int) -> socket.socket:
    channel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        channel.bind(str(path))
    finally:
        os.umask(before)
    os.chown(path, 0, group)
    path.chmod(0o660)
    return channel

"""The agent's socket for users other than root, who have their own containers measured.

Off unless a group is named that may use it. Who asks is known from the kernel, and reaches what is
that uid's own: its containers' ids begin with ``UID/``. docs/adr/0060-users-containers.md says why.
"""

import asyncio
import grp
import json
import logging
import socket
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from cima_runc.agent.current import CurrentSettings
from cima_runc.agent.door import share_of_descriptors
from cima_runc.agent.private_socket import bind_private
from cima_runc.agent.questions import stored_log
from cima_runc.agent.request import Body, Caller, peer_uid, read_request, refusal, send_answer
from cima_runc.agent.rooms import Rooms, Submit
from cima_runc.agent.rootless import Looks
from cima_runc.base import limits
from cima_runc.base.errors import CimaError
from cima_runc.base.rate import RateLimit
from cima_runc.ml.listing import NoSuchContainerError
from cima_runc.ml.store import Store
from cima_runc.runtime.agent_socket import HEADER, USERS_SUFFIX
from cima_runc.runtime.hook_state import parse_hook_state
from cima_runc.runtime.shim_settings import SettingsError

_log = logging.getLogger("cima-agent")

_LOGGED_PER_MINUTE = 60
"""Refusals of one user that are logged: as many at once, and in each minute after that."""


class UserServer:
    """Answers users."""

    def __init__(self, settings: CurrentSettings, submit: Submit, store: Store) -> None:
        """``submit`` has work done by the agent's one writer."""
        self._store = store
        self._looking_through = asyncio.Lock()
        self._searches: dict[int, asyncio.Lock] = {}
        self._ends: dict[int, asyncio.Lock] = {}
        self._logged = RateLimit(_LOGGED_PER_MINUTE)
        self._told = RateLimit(1)
        """How often it is said of a user that more is not logged."""
        self._path = Path(settings.value.shim.socket + USERS_SUFFIX)
        self._submit = submit
        self._looks = Looks(settings)
        self._connected: Counter[int] = Counter()
        self._answers: dict[int, asyncio.Semaphore] = {}
        self._server: asyncio.Server | None = None
        self._group: str | None = None
        self._path.unlink(missing_ok=True)

    async def serve(self, group: str | None) -> None:
        """Listen for this group from now on, instead of another one; None: for nobody.

        Raises:
            SettingsError: there is no such group; all is as before.
            OSError: the socket cannot be made; all is as before.
        """
        if group == self._group:
            return
        if group is None:
            self.stop()
            return
        number = _number_of(group)
        channel = bind_private(self._path, socket.SOCK_STREAM, mode=0o660, group=number)
        if self._server is not None:
            self._server.close()
        self._server = await asyncio.start_server(
            self._serve, sock=channel, limit=HEADER, backlog=limits.WAITING_REQUESTS
        )
        self._group = group
        _log.info("ready for the group %s on %s", group, self._path)

    def stop(self) -> None:
        """Listen no more."""
        if self._server is not None:
            self._server.close()
            self._server = None
            self._group = None
            self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        uid = peer_uid(writer.get_extra_info("socket"))
        self._connected[uid] += 1
        try:
            await self._answer(reader, writer, uid)
        except (OSError, asyncio.IncompleteReadError) as error:
            _log.debug("user %d went away: %s", uid, error)
        finally:
            self._connected[uid] -= 1
            if not self._connected[uid]:
                del self._connected[uid]
                self._answers.pop(uid, None)
                self._searches.pop(uid, None)
                self._ends.pop(uid, None)
            writer.close()

    async def _answer(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, uid: int
    ) -> None:
        what = f"request of user {uid}"
        try:
            if self._connected[uid] > limits.USER_REQUESTS:
                raise CimaError(f"user {uid} has {limits.USER_REQUESTS} requests under way")
            in_all = share_of_descriptors(limits.USERS_REQUESTS)
            if self._connected.total() > in_all:
                raise CimaError(f"users have {in_all} requests under way")
            verb, body = await read_request(reader, limit=limits.USER_REQUEST)
            what = f"{verb} of user {uid}"
            if uid == 0:
                # Who is root in a container has the host's root's uid, where it has no other users.
                raise CimaError("root may not ask here", hint="ask on the agent's own socket")
            if verb not in _QUESTIONS:
                with Caller(writer.get_extra_info("socket")) as caller:
                    await self._do(verb, body, uid, caller)
                await send_answer(writer, "ok", b"")
                return
            turn = self._answers.setdefault(uid, asyncio.Semaphore(limits.USER_ANSWERS))
            async with turn:
                await self._submit(lambda rooms: rooms.commit(bind=False))
                await send_answer(writer, "ok", await self._question(verb, body, uid))
        except asyncio.IncompleteReadError:
            raise
        except Exception as error:
            await send_answer(writer, *refusal(what, error, is_logged=self._is_logged(uid)))

    def _is_logged(self, uid: int) -> bool:
        """Whether one more refusal of a user's is logged: of too many lines a minute systemd's
        journal drops what comes, whosever it is."""
        user, now = str(uid), time.monotonic()
        is_logged = self._logged.allows(user, now)
        if is_logged and not self._logged.has_room(user, now) and self._told.allows(user, now):
            _log.warning("more refusals of user %d are not logged for a while", uid)
        return is_logged

    async def _question(self, verb: str, body: bytes, uid: int) -> Body:
        try:
            return await self._submit(lambda rooms: _QUESTIONS[verb](rooms, body, uid))
        except NoSuchContainerError:
            # All that is stored is looked through: beside the writer, and once at a time. Of each
            # user one waits for that, so that nobody stands behind all that one asks.
            own = self._searches.setdefault(uid, asyncio.Lock())
            async with own, self._looking_through:
                loop = asyncio.get_running_loop()
                return await loop.run_in_executor(None, stored_log, self._store, body, uid)

    async def _do(self, verb: str, body: bytes, uid: int, caller: Caller) -> None:
        match verb:
            case "prestart":
                found = await self._looks.look_at(body, uid)
                candidate = replace(found, waits=caller.waits)
                await self._submit(lambda rooms: rooms.registration.register(candidate))
            case "settled":
                again = await self._looks.look_at(body, uid)
                again.close()
                state, rootfs = parse_hook_state(body), again.rootfs
                await self._submit(
                    lambda rooms: rooms.registration.measured_again(state, rootfs, uid)
                )
            case "poststart":
                await self._submit(lambda rooms: rooms.lifecycle.poststart(body, uid))
            case "poststop":
                # The writer looks through all processes for one that left some behind, as often as
                # its user says that it has ended: one of each user's waits for it, and others' work
                # comes in between.
                async with self._ends.setdefault(uid, asyncio.Lock()):
                    await self._submit(lambda rooms: rooms.lifecycle.poststop(body, uid))
            case _:
                raise CimaError(f"no such request of a user's: {verb}")


def _ps(rooms: Rooms, _: bytes, uid: int) -> Body:
    return json.dumps(rooms.questions.ps(uid)).encode("ascii")


def _log_of(rooms: Rooms, body: bytes, uid: int) -> Body:
    return rooms.questions.log_of_this_boot(body, uid)


_QUESTIONS: dict[str, Callable[[Rooms, bytes, int], Body]] = {"ps": _ps, "log": _log_of}


def _number_of(group: str) -> int:
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError as error:
        raise SettingsError(f"users.group = {group!r} is not allowed: no such group") from error

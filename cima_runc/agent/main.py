"""``cima-agent``: the process. Sockets, timers and signals around the rooms."""

import argparse
import asyncio
import json
import logging
import os
import resource
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from cima_runc.agent import enrolment, held, journald
from cima_runc.agent.attester import NoEvidenceError, NotForYouError
from cima_runc.agent.bundles import BundleServer
from cima_runc.agent.candidate import Candidate
from cima_runc.agent.current import CurrentSettings, Reload, compare
from cima_runc.agent.enrolment_window import EnrolmentWindow, WindowError
from cima_runc.agent.journald import about
from cima_runc.agent.listener import Listener
from cima_runc.agent.metrics import ADDRESS as METRICS_ADDRESS
from cima_runc.agent.metrics import Metrics, MetricsError
from cima_runc.agent.process import Living
from cima_runc.agent.request import (
    REQUEST_SECONDS,
    Body,
    Caller,
    peer_uid,
    read_request,
    refusal,
    send_answer,
)
from cima_runc.agent.rooms import Rooms, Turn, WriterThread, open_rooms
from cima_runc.agent.sources import Sources, SourcesMissingError, open_sources
from cima_runc.agent.users import UserServer
from cima_runc.agent.waiting import TooManyError, until_beat
from cima_runc.base import limits
from cima_runc.base.errors import CimaError
from cima_runc.base.jsonio import load_object
from cima_runc.base.text import printable
from cima_runc.config import Settings, load_settings
from cima_runc.evidence.enrolment import Challenge, parse
from cima_runc.evidence.request import Request, parse_request
from cima_runc.ml.listing import boot_id
from cima_runc.ml.store import Store
from cima_runc.runtime import installation
from cima_runc.runtime.agent_socket import HEADER
from cima_runc.runtime.shim_settings import SETTINGS_FILE

if TYPE_CHECKING:
    from cima_runc.agent.fleet.reporter import Reporter
    from cima_runc.agent.https import HttpsEndpoint

_log = logging.getLogger("cima-agent")

_NOTICES = frozenset({"poststart", "poststop"})
"""Requests that tell of what has happened: they are answered before their records are durable.
Should the agent end before, the next one finds the process running, or gone."""
_LOOKERS = 64
"""How many containers may be waiting to be looked at and registered: few have a turn at once, and
those of one image wait for the same work (:mod:`cima_runc.measure.single_flight`)."""
_ASSEMBLING = 2
"""How many evidences are put together at a time: one of all records that are shown takes several
times their bytes, and the interpreter's lock lets hardly more than one go on."""
_BIND_SHARE = 0.1
"""Part of a core's and of the TPM's time that binds of many records take at most."""
_PROBE_SECONDS = 10.0
"""How often is looked whether somebody else changed the PCR, and whether records can be written."""
_REFRESH_SECONDS = 60.0
"""How often is looked for services that were restarted or have mapped more."""
_TIDY_SECONDS = 600.0
"""How often is looked for records that need not be kept any longer."""
_HASHED_SECONDS = 10.0
"""How long an answer waits for files of services that are being hashed."""
_DELETE_SECONDS = 0.2
"""How long after its first process a container's end is recorded, if it is not deleted before:
writing it down must not hold up the runtime that is deleting it."""
_TICK_SECONDS = 1.0
"""How often is looked for lost events, ended containers and work that failed before."""


class Agent:
    """The running agent: one loop for sockets and the sensor, one thread that writes."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        sources: Sources,
        hooks_dir: str,
        settings_file: str = SETTINGS_FILE,
    ) -> None:
        self._settings = CurrentSettings(settings)
        self._settings_file = settings_file
        self._reloading = asyncio.Lock()
        self._tidy_due = asyncio.Event()
        self._sources = sources
        self._hooks_dir = hooks_dir
        self._loop = asyncio.get_running_loop()
        self._lookers = ThreadPoolExecutor(max_workers=_LOOKERS, thread_name_prefix="looker")
        self._commit_due = False
        self._reading = False
        self._dying: set[int] = set()
        self._gathering = False
        self._window = EnrolmentWindow()
        self._bind_after = 0.0
        self._assembling = asyncio.Semaphore(_ASSEMBLING)
        self._registering: deque[tuple[Candidate, Future[None]]] = deque()
        self._answering: set[asyncio.Task[None]] = set()
        self._store = store
        self._reporter: Reporter | None = None
        store.prepare()
        rooms, self._lobby = open_rooms(
            current=self._settings,
            boot_id=boot_id(),
            hooks_dir=hooks_dir,
            store=store,
            sources=sources,
            held_dir=Path(settings.shim.socket + held.SUFFIX),
            on_process=self._watch_process,
            on_progress=lambda: _notify("WATCHDOG=1"),
        )
        self._writer = WriterThread(rooms)

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT."""
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, stop.set)
        self._loop.add_signal_handler(signal.SIGHUP, self._hang_up)
        await self._writer.submit(Rooms.take_over)
        self._read_sensor()
        listener = Listener(self._settings.value.shim.socket)
        # Not start_unix_server: from 3.13 on that removes the socket's file, whose ever it is.
        server = await asyncio.start_server(
            self._serve, sock=listener.channel, limit=HEADER, backlog=limits.WAITING_REQUESTS
        )
        https = self._open_https()
        self._reporter = reporter = self._open_reporter()
        metrics = await self._open_metrics()
        bundles = BundleServer(self._settings.value.shim.socket, self._hooks_dir)
        bundles.start()
        self._users = users = UserServer(self._settings, self._writer.submit, self._store)
        await users.serve(self._settings.value.users.group)
        _notify("READY=1")
        _log.info("ready on %s", self._settings.value.shim.socket, extra=about("ready"))
        working = [self._loop.create_task(w) for w in self._works()]
        stopping = self._loop.create_task(stop.wait())
        await asyncio.wait([stopping, *working], return_when=asyncio.FIRST_COMPLETED)
        for task in working:
            if task.done():
                # A mistake of ours: better started anew by systemd than running on half.
                task.result()
        _notify("STOPPING=1")
        for task in working:
            task.cancel()
        if reporter is not None:
            await self._loop.run_in_executor(None, reporter.stop)
        if https is not None:
            await self._loop.run_in_executor(None, https.close)
        if metrics is not None:
            metrics.close()
        server.close()
        bundles.stop()
        users.stop()
        listener.remove()
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(
                asyncio.gather(*self._answering, return_exceptions=True), REQUEST_SECONDS
            )
        await self._writer.submit(lambda rooms: rooms.commit(bind=True))
        self._writer.shutdown()

    async def attest(self, request: Request, *, source: str | None) -> bytes:
        """Return evidence; requests that come before the same beat share a bind.

        ``source``: who asks, where that is not root of this host, and is not told why there is no
        evidence.

        Raises:
            CimaError, OSError: there is none.
        """
        try:
            return await self._attest(request, source)
        except (NotForYouError, TooManyError):
            raise
        except (CimaError, OSError) as error:
            if source is None:
                raise
            _log.error("no evidence for %s: %s", printable(source), printable(str(error)))
            raise NoEvidenceError from error

    async def _attest(self, request: Request, source: str | None) -> bytes:
        waiting = self._lobby.attester.ask(request, source=source)
        await self._services_hashed()
        if not self._gathering:
            self._gathering = True
            delay = until_beat(self._loop.time(), self._lobby.slots())
            self._loop.call_later(delay, self._serve_gathered)
        answer = await asyncio.wrap_future(waiting)
        assembly = self._lobby.assembly
        async with self._assembling:
            evidence = await self._loop.run_in_executor(None, assembly.evidence, answer)
        number, records = answer.container.note.registration, answer.container.count
        with suppress(OSError):
            await self._writer.submit(lambda rooms: rooms.lifecycle.attested(number, records))
        return evidence

    def _serve_gathered(self) -> None:
        self._gathering = False
        self._start(self._writer.submit(lambda rooms: rooms.attester.serve(), Turn.LAST))

    def _open_https(self) -> "HttpsEndpoint | None":
        settings = self._settings.value.attestation.https
        if not settings.enabled:
            return None
        try:
            from cima_runc.agent.https import HttpsEndpoint
        except ImportError as error:
            raise CimaError(
                f"the HTTPS endpoint needs {error.name}", hint="pip install cima-runc[https]"
            ) from error
        endpoint = HttpsEndpoint(settings, self._ask_for_anybody)
        _log.info("HTTPS on %s, port %d", settings.address, endpoint.port)
        return endpoint

    def _open_reporter(self) -> "Reporter | None":
        settings = self._settings.value
        if settings.fleet.url is None:
            return None
        from cima_runc.agent.fleet.reporter import Reporter

        reporter = Reporter(
            settings=settings,
            boot_id=boot_id(),
            store=self._store,
            assembly=self._lobby.assembly,
            submit=self._writer.submit,
            attest=self.attest,
            loop=self._loop,
        )
        self._lobby.confirmations.service = reporter
        reporter.start()
        _log.info("reporting to %s", printable(settings.fleet.url))
        return reporter

    async def _open_metrics(self) -> Metrics | None:
        port = self._settings.value.metrics.port
        if port is None:
            return None
        metrics = Metrics(lambda: self._writer.submit(lambda rooms: rooms.questions.status()))
        try:
            _log.info("metrics on %s, port %d", METRICS_ADDRESS, await metrics.open(port))
        except MetricsError as error:
            # Containers are measured all the same.
            _log.error("no metrics: %s", error)
            return None
        return metrics

    async def _ask_for_anybody(self, verb: str, body: bytes, source: str) -> bytes:
        if verb == "attest":
            return await self.attest(parse_request(body), source=source)
        if verb not in {"enrolment", "activate"}:
            raise CimaError(f"no such request: {verb}")
        self._window.admit()
        answer = await self._writer.submit(lambda rooms: self._handle(rooms, verb, body))
        assert isinstance(answer, bytes)
        return answer

    def _open_window(self, body: bytes) -> bytes:
        minutes = load_object(body, what="the request", limit=limits.REQUEST).get("minutes")
        if not isinstance(minutes, int | float):
            raise WindowError("how many minutes?")
        if minutes:
            self._window.open(minutes)
            _log.info("open for enrolment over HTTPS for %g minutes", minutes)
        else:
            self._window.close()
            _log.info("closed for enrolment")
        return _json({"https": self._settings.value.attestation.https.enabled})

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        """Do ``work`` beside all else; a stop of the agent waits for it."""
        task = self._loop.create_task(work)
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)

    # -- settings -----------------------------------------------------------------------------

    async def reload(self) -> Reload:
        """Read the settings file again, and take up what a running agent can.

        Raises:
            SettingsError, OSError: it holds what is not allowed; everything is as before.
        """
        async with self._reloading:
            read = await self._loop.run_in_executor(None, load_settings, self._settings_file)
            found = compare(self._settings.value, read)
            await self._users.serve(found.settings.users.group)
            self._settings.replace(found.settings)
        self._tidy_due.set()
        _log.info("settings are read again; in force: %s", ", ".join(found.taken_up) or "as before")
        if found.waiting:
            _log.warning("settings that take a restart of the agent: %s", ", ".join(found.waiting))
        return found

    def _hang_up(self) -> None:
        """SIGHUP: as ``cima reload``, with the log for an answer."""

        async def reload() -> None:
            try:
                await self.reload()
            except (CimaError, OSError) as error:
                _log.error("settings are as before: %s", printable(str(error)))

        self._start(reload())

    # -- the sensor and the clock -------------------------------------------------------------

    def _read_sensor(self) -> None:
        if self._sources.sensor is not None and not self._reading:
            self._loop.add_reader(self._sources.sensor.fileno(), self._sensor_readable)
            self._reading = True

    def _sensor_readable(self) -> None:
        # It stays readable until its events are durable: the commit looks again.
        assert self._sources.sensor is not None
        self._loop.remove_reader(self._sources.sensor.fileno())
        self._reading = False
        self._commit_soon()

    def _commit_soon(self) -> None:
        if not self._commit_due:
            self._commit_due = True
            binding = self._settings.value.binding
            delay = binding.group_ms / 1000 if binding.mode == "group" else 0
            self._loop.call_later(max(delay, self._until_bind()), self._start_commit)

    def _start_commit(self) -> None:
        self._commit_due = False
        self._start(self._commit())

    def _until_bind(self) -> float:
        """Return how long a bind of many records waits yet, so that these take a small part of a
        core's and of the TPM's time, whatever one costs."""
        group = self._settings.value.binding.mode == "group"
        return max(self._bind_after - self._loop.time(), 0) if group else 0

    async def _commit(self) -> None:
        bind = self._settings.value.binding.mode != "quote" and self._until_bind() == 0
        try:
            seconds = await self._writer.submit(lambda rooms: rooms.commit(bind=bind))
            if bind:
                self._bind_after = self._loop.time() + seconds * (1 / _BIND_SHARE - 1)
        except (CimaError, OSError) as error:
            # Events wait in the sensor's buffer until the next tick looks again.
            waiting = "records wait, the next second tries again: %s"
            _log.error(waiting, error, extra=about("records-wait"))
        else:
            self._read_sensor()
        if self._reporter is not None:
            self._reporter.look(self._lobby.registers())

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            await self._commit()
            await self._writer.submit(Rooms.forget_ended)
            await self._writer.submit(lambda rooms: rooms.events.keep_up())
            # The writer has worked since the last time; one that hangs is not told of.
            _notify("WATCHDOG=1")
            await self._look_for_ends()

    async def _look_for_ends(self) -> None:
        """Record the ends of containers that outlived their first processes, once they come.

        Who leaves many behind has all processes looked through once, not for each.
        """
        if not self._dying:
            return
        dying = list(self._dying)
        try:
            living = await self._loop.run_in_executor(self._lookers, self._lobby.look_around)
        except OSError as error:
            _log.error("ends of containers wait, the next second tries again: %s", error)
            return
        for registration in dying:
            await self._process_ended(registration, living)
            _notify("WATCHDOG=1")

    def _works(self) -> tuple[Coroutine[Any, Any, None], ...]:
        return self._tick(), self._probe(), self._refresh(), self._tidy()

    async def _probe(self) -> None:
        """Find out, at even times, whether the disk and the TPM do what they should."""
        while True:
            await asyncio.sleep(_PROBE_SECONDS)
            await self._writer.submit(lambda rooms: rooms.writer.probe())

    async def _refresh(self) -> None:
        while True:
            await asyncio.sleep(_REFRESH_SECONDS)
            pids = await self._writer.submit(lambda rooms: rooms.lifecycle.dependents())
            look_again = self._lobby.services.look_again
            looks = await self._loop.run_in_executor(self._lookers, look_again, pids)
            try:
                await self._writer.submit(
                    lambda rooms: rooms.services.take_again(looks)  # noqa: B023 - awaited here
                )
            except (CimaError, OSError) as error:
                _log.error("host services are not refreshed: %s", error)

    async def _tidy(self) -> None:
        """Remove what is kept no longer."""
        while True:
            try:
                await self._loop.run_in_executor(self._lookers, self._lobby.looker.tidy)
                plan = await self._loop.run_in_executor(self._lookers, self._lobby.plan)
                while await self._writer.submit(
                    lambda rooms: rooms.retention.carry_out(plan)  # noqa: B023 - awaited here
                ):
                    pass
            except (CimaError, OSError) as error:
                _log.error("old records are not removed: %s", printable(str(error)))
            self._tidy_due.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(_TIDY_SECONDS):
                    await self._tidy_due.wait()

    async def _services_hashed(self) -> None:
        wait = self._lobby.services.wait_until_hashed
        if not await self._loop.run_in_executor(None, wait, _HASHED_SECONDS):
            _log.warning("files of services are being hashed still")

    def _watch_process(self, registration: int, pidfd: int) -> None:
        # The service closes its own when the container ends, at any time: watch a copy.
        copy = os.dup(pidfd)

        def ended() -> None:
            self._loop.remove_reader(copy)
            os.close(copy)
            self._start(self._process_died(registration))
            self._loop.call_later(_DELETE_SECONDS, self._end_soon, registration)

        self._loop.call_soon_threadsafe(self._loop.add_reader, copy, ended)

    def _end_soon(self, registration: int) -> None:
        self._dying.add(registration)
        self._start(self._process_ended(registration))

    async def _process_died(self, registration: int) -> None:
        try:
            await self._writer.submit(lambda rooms: rooms.lifecycle.process_died(registration))
        except CimaError as error:
            _log.error("a container is let go of later: %s", error)

    async def _process_ended(self, registration: int, living: Living | None = None) -> None:
        def end(rooms: Rooms) -> bool:
            return rooms.lifecycle.process_ended(registration, living)

        try:
            if await self._writer.submit(end):
                self._dying.discard(registration)
        except (CimaError, OSError) as error:
            _log.error("the end of a container waits, the next second tries again: %s", error)

    # -- the socket ---------------------------------------------------------------------------

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._answering.add(task)
        try:
            word, body = await self._answer(reader, writer)
            await send_answer(writer, word, body)
        except (OSError, asyncio.IncompleteReadError) as error:
            _log.debug("a client went away: %s", error)
        finally:
            self._answering.discard(task)
            writer.close()

    async def _answer(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> tuple[str, Body]:
        verb = "?"
        try:
            uid = peer_uid(writer.get_extra_info("socket"))
            if uid != 0:
                raise CimaError(f"user {uid} may not ask the agent", hint="ask as root")
            verb, body = await read_request(reader)
            if verb == "attest":
                return "ok", await self.attest(parse_request(body), source=None)
            if verb in _NOTICES:
                if verb == "poststop" and self._lobby.held.names(body):
                    await self._writer.submit(lambda rooms: rooms.lifecycle.release_deleted(body))
                self._lobby.notices.add(verb, body)
                self._commit_soon()
                return "ok", b""
            if verb == "reload":
                return "ok", _json((await self.reload()).shown())
            if verb == "prestart":
                with Caller(writer.get_extra_info("socket")) as caller:
                    await self._register(body, caller)
                return "ok", b""
            if verb == "window":
                return "ok", self._open_window(body)
            if verb == "settled":
                looker, lookers = self._lobby.looker, self._lookers
                found = await self._loop.run_in_executor(lookers, looker.look_again, body)
                await self._writer.submit(lambda rooms: rooms.registration.measured_again(*found))
                return "ok", b""
            if verb == "log":
                await self._services_hashed()
            answer = await self._writer.submit(lambda rooms: self._handle(rooms, verb, body))
        except asyncio.IncompleteReadError:
            raise
        except Exception as error:
            return refusal(verb, error)
        return "ok", answer

    async def _register(self, body: bytes, caller: Caller) -> None:
        candidate = await self._loop.run_in_executor(
            self._lookers, self._lobby.looker.look_at, body
        )
        candidate = replace(candidate, waits=caller.waits)
        registered: Future[None] = Future()
        self._registering.append((candidate, registered))
        self._start(self._writer.submit(self._register_all, Turn.FIRST))
        await asyncio.wrap_future(registered)

    def _register_all(self, rooms: Rooms) -> None:
        """Register all that wait, which share a bind; nothing where an earlier turn has."""
        waiting = []
        while self._registering:
            candidate, registered = self._registering.popleft()
            # Who does not wait any more must not keep the others from their answers.
            if registered.set_running_or_notify_cancel():
                waiting.append((candidate, registered))
            else:
                candidate.close()
        outcomes = rooms.registration.register_all([candidate for candidate, _ in waiting])
        for (_, registered), error in zip(waiting, outcomes, strict=True):
            if error is None:
                registered.set_result(None)
            else:
                registered.set_exception(error)

    def _handle(self, rooms: Rooms, verb: str, body: bytes) -> Body:
        asked = rooms.questions
        questions: dict[str, Callable[[bytes], Body]] = {
            "ps": lambda _: _json(asked.ps()),
            "status": lambda _: _json(asked.status()),
            "log": asked.log,
            "enrolment": lambda _: _model(enrolment.request(rooms.attester)),
            "activate": lambda body: _model(
                enrolment.answer(rooms.attester, parse(Challenge, body, "the challenge"))
            ),
        }
        if verb not in questions:
            raise CimaError(f"no such request: {verb}")
        # What has happened before the question belongs into the answer; where that cannot be
        # written down, the answer says so.
        try:
            rooms.commit(bind=self._settings.value.binding.mode != "quote")
        except (CimaError, OSError) as error:
            _log.error("before an answer to %s: %s", verb, error)
        return questions[verb](body)


def _model(value: BaseModel) -> bytes:
    return value.model_dump_json(exclude_none=True).encode("ascii")


def _json(value: Any) -> bytes:
    return json.dumps(value).encode("ascii")


def _notify(line: str) -> None:
    """Tell systemd (sd_notify(3)); no systemd, nobody told."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if path:
        address = "\0" + path[1:] if path.startswith("@") else path
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel, suppress(OSError):
            channel.sendto(line.encode("ascii"), address)


async def _serve(
    settings: Settings, store: Store, sources: Sources, hooks_dir: str, settings_file: str
) -> None:
    await Agent(settings, store, sources, hooks_dir, settings_file).run()


def main() -> int:
    """Run the agent; 0 after a stop, 2 for settings or state, 3 for a source that is missing."""
    parser = argparse.ArgumentParser(prog="cima-agent", description="Measures containers.")
    parser.add_argument("--config", default=SETTINGS_FILE, help="settings file (%(default)s)")
    parser.add_argument("--log-level", default="info", choices=["debug", "info", "warning"])
    arguments = parser.parse_args()
    journald.set_up(arguments.log_level.upper())
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        settings = load_settings(arguments.config)
        store = Store(Path(settings.shim.state_dir))
        store.lock()
        hooks_dir = str(installation.hooks_dir())
        asyncio.run(_serve(settings, store, open_sources(settings), hooks_dir, arguments.config))
    except SourcesMissingError as error:
        for line in (str(error), *error.lines):
            _log.error("%s", printable(line))
        return error.exit_code
    except CimaError as error:
        _log.error("%s", error)
        return error.exit_code
    except OSError as error:
        _log.error("%s", printable(str(error)))
        return CimaError.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())

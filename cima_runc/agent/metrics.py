"""The agent's ``/metrics`` for Prometheus, on the loopback interface; off unless the settings give
a port.

Counts and states of this host, as ``cima status`` shows them: never a name, an id or a digest of a
container, since any program of the host's network can read this. Source: the text format 0.0.4,
https://prometheus.io/docs/instrumenting/exposition_formats/.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any

from cima_runc import __version__
from cima_runc.base.errors import CimaError

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
ADDRESS = "127.0.0.1"
_REQUEST = 8 * 1024
"""Bytes of a request's line and headers at most."""
_SECONDS = 10.0
"""How long one may take to come."""
_CONNECTIONS = 8
"""How many are answered at a time."""
_HEARD = 64
"""How many are heard at a time, to be told that there are too many."""
_FRESH_SECONDS = 5.0
"""How long an answer is given again: the TPM is not asked as often as somebody likes."""

Sample = tuple[str, float]
"""Labels as they stand behind a name, and the value."""


def text(status: Mapping[str, Any]) -> bytes:
    """Return what ``cima status`` has (an object), as Prometheus reads it."""
    lines = []
    for name, kind, about, samples in _metrics(status):
        lines += [f"# HELP {name} {about}", f"# TYPE {name} {kind}"]
        lines += [f"{name}{labels} {float(value)!r}" for labels, value in samples]
    return ("\n".join(lines) + "\n").encode("ascii")


def _metrics(status: Mapping[str, Any]) -> Iterator[tuple[str, str, str, list[Sample]]]:
    def gauge(name: str, about: str, value: float) -> tuple[str, str, str, list[Sample]]:
        return f"cima_agent_{name}", "gauge", about, [("", value)]

    def counter(name: str, about: str, value: float) -> tuple[str, str, str, list[Sample]]:
        return f"cima_agent_{name}_total", "counter", about, [("", value)]

    version = f'{{version="{__version__}"}}'
    yield "cima_agent_info", "gauge", "The version", [(version, 1)]
    yield gauge("containers", "Measured containers of this boot", status["containers"])
    yield gauge("missing_sources", "Sources that the agent does without", len(status["missing"]))
    yield gauge("trouble", "1: records cannot be written or bound", status["trouble"] is not None)
    yield gauge("unwritten_records", "Records that wait to be written", status["unwritten_records"])
    yield counter("lost_events", "Events of containers that were lost", status["lost"])
    yield counter("gaps", "Gaps in the binding, such as a power cut", status["gaps"])
    yield counter(
        "foreign_extends", "Extends of the binding PCR by others", status["foreign_extends"]
    )
    value, expected = status["pcr_value"], status["expected_value"]
    yield gauge("tpm_answers", "1: the TPM gives the binding PCR", value is not None)
    if value is not None and expected is not None:
        yield gauge("binding_matches", "1: the binding PCR is as bound", value == expected)
    sensor = status["sensor"]
    is_there = isinstance(sensor, Mapping)
    yield gauge("sensor_runs", "1: the sensor is in the kernel", is_there)
    if is_there:
        yield counter("sensor_dropped", "Events that the sensor had no room for", sensor["dropped"])
        yield counter("sensor_missed", "Events that the sensor could not read", sensor["missed"])
        yield counter("orphans", "Events of no known container", sensor["orphans"])
    log = status["kernel_log"]
    if isinstance(log, Mapping):
        yield gauge("kernel_log_lines", "Lines of the kernel's log", log["lines"])
        matches = [
            (f'{{pcr="{name.removeprefix("pcr")}"}}', float(of_pcr["matches_tpm"]))
            for name, of_pcr in sorted(log.items())
            if isinstance(of_pcr, Mapping) and of_pcr["matches_tpm"] is not None
        ]
        if matches:
            about = "1: the kernel's log adds up to the PCR"
            yield "cima_agent_kernel_log_matches", "gauge", about, matches
    storage = status["storage"]
    yield gauge("stored_bytes", "Size of the records", storage["mib"] * 1024 * 1024)
    yield gauge("quota_bytes", "What they may have", storage["quota_mib"] * 1024 * 1024)
    yield counter(
        "removed_unattested",
        "Containers that were removed with records that nobody had",
        storage["removed_unattested"],
    )
    fleet = status["fleet"]
    if fleet is not None:
        yield gauge("fleet_enrolled", "1: the fleet's service knows this host", fleet["enrolled"])
        yield gauge("fleet_trouble", "1: reports do not go through", fleet["trouble"] is not None)
        if fleet["last_report_seconds"] is not None:
            yield gauge(
                "fleet_last_report_seconds",
                "Age of the last report that was accepted",
                fleet["last_report_seconds"],
            )


class MetricsError(CimaError):
    """The port cannot be listened on."""


class Metrics:
    """Serves ``GET /metrics`` and nothing else."""

    def __init__(self, ask: Callable[[], Awaitable[Mapping[str, Any]]]) -> None:
        """``ask`` gives what ``cima status`` shows."""
        self._ask = ask
        self._kept: tuple[float, bytes] | None = None
        self._asking = asyncio.Lock()
        self._connections = 0
        self._server: asyncio.Server | None = None

    async def open(self, port: int) -> int:
        """Listen on this port of the loopback interface, 0: any; return which.

        Raises:
            MetricsError: it is somebody else's.
        """
        try:
            self._server = await asyncio.start_server(self._serve, ADDRESS, port, limit=_REQUEST)
        except OSError as error:
            raise MetricsError(
                f"{ADDRESS} port {port} cannot be listened on: {error.strerror}",
                hint="port in the section metrics of the settings",
            ) from error
        found: int = self._server.sockets[0].getsockname()[1]
        return found

    def close(self) -> None:
        """Listen no more."""
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._connections >= _HEARD:
            # Any program of the host may open as many as it likes and say nothing, and the agent
            # needs its descriptors for containers.
            writer.transport.abort()
            return
        self._connections += 1
        try:
            async with asyncio.timeout(_SECONDS):
                status, body = await self._answer(reader)
                head = f"HTTP/1.1 {status}\r\nContent-Type: {CONTENT_TYPE}\r\n"
                head += f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
                writer.write(head.encode("ascii") + body)
                await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # it went away, or says nothing that is a request
        finally:
            self._connections -= 1
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader) -> tuple[str, bytes]:
        request = await reader.readuntil(b"\r\n\r\n")
        if self._connections > _CONNECTIONS:
            return "503 Service Unavailable", b""
        method, _, rest = request.partition(b" ")
        path = rest.partition(b" ")[0].partition(b"?")[0]
        if method != b"GET":
            return "405 Method Not Allowed", b""
        if path != b"/metrics":
            return "404 Not Found", b""
        try:
            return "200 OK", await self._text()
        except CimaError:
            return "503 Service Unavailable", b""

    async def _text(self) -> bytes:
        async with self._asking:
            now = time.monotonic()
            if self._kept is None or now - self._kept[0] > _FRESH_SECONDS:
                self._kept = now, text(await self._ask())
            return self._kept[1]

"""What Prometheus is told of a host, and what others on it can make of the port."""

import asyncio
import copy
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cima_runc.agent.metrics import ADDRESS, Metrics, MetricsError, text
from cima_runc.base.errors import CimaError

# As `cima status --json` shows it on Debian 13 with Docker 26 and swtpm.
STATUS: dict[str, Any] = {
    "pcr": 12,
    "pcr_value": "aa" * 32,
    "expected_value": "aa" * 32,
    "initial_value": "00" * 32,
    "bind": None,
    "foreign_extends": 2,
    "tpm": "swtpm <script>",
    "sensor": {
        "programs": ["bprm"],
        "watched": 1,
        "nested": 0,
        "ring_bytes": 0,
        "dropped": 3,
        "missed": 0,
        "orphans": 4,
    },
    "kernel_log": {
        "lines": 1200,
        "error": None,
        "pcr10": {"lines": 1000, "matches_tpm": True},
        "pcr11": {"lines": 200, "matches_tpm": False},
    },
    "lost": 5,
    "missing": [],
    "boot_id": "b0075c0d-e000-4000-8000-000000000000",
    "containers": 7,
    "unwritten_records": 0,
    "trouble": None,
    "gaps": 1,
    "storage": {"mib": 3, "quota_mib": 4096, "removed_unattested": 6},
    "fleet": {
        "url": "https://fleet.example",
        "enrolled": True,
        "last_report_seconds": 12.5,
        "trouble": "it is away",
    },
}


def read(raw: bytes) -> dict[str, float]:
    """Samples by name and labels, as Prometheus's own parser understands them."""
    return {
        one.name + "".join(f"{{{key}={value}}}" for key, value in one.labels.items()): one.value
        for family in text_string_to_metric_families(raw.decode())
        for one in family.samples
    }


def test_prometheus_understands_it() -> None:
    found = read(text(STATUS))
    assert found["cima_agent_containers"] == 7
    assert found["cima_agent_lost_events_total"] == 5
    assert found["cima_agent_binding_matches"] == 1
    assert found["cima_agent_kernel_log_matches{pcr=10}"] == 1
    assert found["cima_agent_kernel_log_matches{pcr=11}"] == 0
    assert found["cima_agent_stored_bytes"] == 3 * 1024 * 1024
    assert found["cima_agent_fleet_trouble"] == 1
    assert found["cima_agent_fleet_last_report_seconds"] == 12.5


@pytest.mark.parametrize(
    "change",
    [
        {"sensor": "missing", "kernel_log": "missing", "fleet": None},
        {"pcr_value": None, "expected_value": None, "trouble": {"what": "disk"}},
        {"fleet": {**STATUS["fleet"], "last_report_seconds": None}},
        {"kernel_log": {"lines": 0, "error": "x", "pcr10": {"lines": 0, "matches_tpm": None}}},
    ],
)
def test_what_is_not_there_is_left_out(change: dict[str, Any]) -> None:
    found = read(text(STATUS | change))
    assert ("cima_agent_sensor_dropped_total" in found) == (change.get("sensor", "") != "missing")
    assert found["cima_agent_trouble"] == (change.get("trouble") is not None)


def test_no_text_of_the_status_is_in_it() -> None:
    """Whatever is in it that a container could have named."""
    strange = "e0\n# \x1b[31m<script>" + "}"

    def planted(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: planted(item) for key, item in value.items()}
        return strange if isinstance(value, str) and value != "missing" else value

    made = text(planted(copy.deepcopy(STATUS)))
    assert b"script" not in made and b"\x1b" not in made
    assert read(made)["cima_agent_containers"] == 7


# -- the port -----------------------------------------------------------------------------------


def served(
    talk: Callable[[int], Awaitable[None]],
    ask: Callable[[], Awaitable[Mapping[str, Any]]] | None = None,
) -> None:
    async def status() -> Mapping[str, Any]:
        return STATUS

    async def go() -> None:
        metrics = Metrics(ask or status)
        port = await metrics.open(0)
        try:
            await talk(port)
        finally:
            metrics.close()

    asyncio.run(go())


async def say(port: int, raw: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(ADDRESS, port)
    writer.write(raw)
    found = await asyncio.wait_for(reader.read(), 30)
    writer.close()
    return found


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", b"200"),
        (b"GET /metrics?x=1 HTTP/1.0\r\n\r\n", b"200"),
        (b"GET / HTTP/1.1\r\n\r\n", b"404"),
        (b"POST /metrics HTTP/1.1\r\nContent-Length: 0\r\n\r\n", b"405"),
        (b"\x16\x03\x01\x02\x00\r\n\r\n", b"405"),
    ],
)
def test_requests(request_: bytes, status: bytes) -> None:
    async def talk(port: int) -> None:
        answer = await say(port, request_)
        assert answer.split(b" ")[1] == status
        if status == b"200":
            head, _, body = answer.partition(b"\r\n\r\n")
            assert b"text/plain; version=0.0.4" in head
            assert body == text(STATUS)

    served(talk)


def test_a_request_without_end_is_given_up() -> None:
    async def talk(port: int) -> None:
        assert await say(port, b"GET /" + b"x" * 100_000) == b""
        assert (await say(port, b"GET /metrics HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 200")

    served(talk)


def test_the_tpm_is_asked_no_oftener_however_many_ask() -> None:
    asked = 0

    async def status() -> Mapping[str, Any]:
        nonlocal asked
        asked += 1
        await asyncio.sleep(0.05)
        return STATUS

    async def talk(port: int) -> None:
        request = b"GET /metrics HTTP/1.1\r\n\r\n"
        answers = await asyncio.gather(*(say(port, request) for _ in range(30)))
        assert {answer.split(b" ")[1] for answer in answers} <= {b"200", b"503"}
        assert asked == 1

    served(talk, status)


def test_who_says_nothing_takes_few_descriptors() -> None:
    """Kind: a limit that is looked at when a request is whole, and not when a connection comes."""

    async def talk(port: int) -> None:
        silent = [await asyncio.open_connection(ADDRESS, port) for _ in range(100)]
        ends = [asyncio.create_task(reader.read()) for reader, _ in silent]
        _, waiting = await asyncio.wait(ends, timeout=3)
        assert len(waiting) == 64
        for _, writer in silent:
            writer.close()
        await asyncio.gather(*ends, return_exceptions=True)
        assert (await say(port, b"GET /metrics HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 200")

    served(talk)


def test_an_agent_that_cannot_say_is_no_fault() -> None:
    async def status() -> Mapping[str, Any]:
        raise CimaError("the TPM does not answer")

    async def talk(port: int) -> None:
        assert b" 503 " in await say(port, b"GET /metrics HTTP/1.1\r\n\r\n")

    served(talk, status)


def test_a_port_of_somebody_else_is_named() -> None:
    async def talk(port: int) -> None:
        with pytest.raises(MetricsError, match=str(port)):
            await Metrics(lambda: asyncio.sleep(0, {})).open(port)

    served(talk)

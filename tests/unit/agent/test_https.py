import asyncio
import json
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cima_runc.agent.attester import AttestError, NoEvidenceError, NotForYouError
from cima_runc.agent.https import RateLimit, application
from cima_runc.agent.waiting import TooManyError
from cima_runc.base import limits

BODY = {
    "boot_log": False,
    "container": "c",
    "host": "none",
    "nonce": "ab" * 16,
    "since": {"run": 1, "count": 8, "inner": "ab" * 32},
}


def ask(
    method: str, path: str, *, per_minute: int = 100, error: Exception | None = None, **more: Any
) -> tuple[httpx.Response, list[tuple[str, bytes]]]:
    asked: list[tuple[str, bytes]] = []

    async def agent(verb: str, body: bytes, source: str) -> bytes:
        asked.append((verb, body))
        if error is not None:
            raise error
        return b'{"some":"evidence"}'

    async def go() -> httpx.Response:
        transport = httpx.ASGITransport(app=application(agent, per_minute))
        async with httpx.AsyncClient(transport=transport, base_url="https://agent") as client:
            return await client.request(method, path, **more)

    return asyncio.run(go()), asked


def test_evidence() -> None:
    answer, asked = ask("POST", "/v1/evidence", json=BODY)
    assert (answer.status_code, answer.json()) == (200, {"some": "evidence"})
    assert asked[0][0] == "attest"
    assert json.loads(asked[0][1]) == BODY


@pytest.mark.parametrize(
    "body",
    [
        {},
        {**BODY, "more": 1},
        {**BODY, "nonce": "ab"},
        {key: value for key, value in BODY.items() if key != "since"},
        {**BODY, "since": 0},
        {**BODY, "since": {"run": 1, "count": 8}},
        {**BODY, "boot_log": 0},
        {**BODY, "host": "all"},
    ],
)
def test_malformed(body: dict[str, Any]) -> None:
    answer, asked = ask("POST", "/v1/evidence", json=body)
    assert answer.status_code == 422
    assert not asked


@pytest.mark.parametrize("odd", [b'"\\ud800"', b"NaN", b"1e999", b"-Infinity", b'{"\\ud800":0}'])
@pytest.mark.parametrize(
    ("path", "field"), [("evidence", b"nonce"), ("evidence", b"\\ud800"), ("activate", b"secret")]
)
def test_malformed_in_a_way_that_no_answer_can_repeat(path: str, field: bytes, odd: bytes) -> None:
    body = b'{"' + field + b'":' + odd + b"}"
    json_type = {"content-type": "application/json"}
    # The transport raises what a server would log as a fault of ours.
    answer, asked = ask("POST", f"/v1/{path}", content=body, headers=json_type)
    assert answer.status_code == 422
    assert set(answer.json()) == {"error", "hint"}
    assert not asked


def test_too_large() -> None:
    answer, asked = ask("POST", "/v1/evidence", content=b" " * (limits.HTTP_REQUEST + 1))
    assert answer.status_code == 413
    assert not asked


def test_too_many() -> None:
    async def agent(verb: str, body: bytes, source: str) -> bytes:
        return b"{}"

    async def go() -> list[int]:
        transport = httpx.ASGITransport(app=application(agent, 3))
        async with httpx.AsyncClient(transport=transport, base_url="https://agent") as client:
            return [(await client.get("/v1/enrolment")).status_code for _ in range(5)]

    assert asyncio.run(go()) == [200, 200, 200, 429, 429]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (NotForYouError(), 403),
        (TooManyError(), 429),
        (NoEvidenceError(), 503),
        (AttestError("no"), 400),
        (OSError(5, "x"), 503),
    ],
)
def test_refusals_have_a_status(error: Exception, status: int) -> None:
    answer, _ = ask("POST", "/v1/evidence", json=BODY, error=error)
    assert answer.status_code == status
    assert answer.json()["error"]


def test_nothing_else_is_there() -> None:
    for path in ("/", "/v1/ps", "/v1/log", "/docs", "/redoc"):
        answer, asked = ask("GET", path)
        assert answer.status_code == 404
        assert not asked


def test_openapi_describes_what_is_sent() -> None:
    answer, _ = ask("GET", "/v1/openapi.json")
    described = answer.json()
    assert set(described["paths"]) == {"/v1/evidence", "/v1/enrolment", "/v1/activate"}
    nonce = described["components"]["schemas"]["Request"]["properties"]["nonce"]
    assert nonce["type"] == "string"
    assert nonce["pattern"] == "^([0-9a-f]{2})*$"


@given(st.lists(st.floats(0, 1000), max_size=200), st.integers(1, 30))
def test_never_more_than_allowed(waits: list[float], per_minute: int) -> None:
    limit, now, allowed = RateLimit(per_minute), 0.0, 0
    for wait in waits:
        now += wait
        allowed += limit.allows("192.0.2.1", now)
    assert allowed <= per_minute + now * per_minute / 60 + 1e-6


def test_addresses_count_for_themselves_and_networks_as_one() -> None:
    limit = RateLimit(1)
    assert limit.allows("192.0.2.1", 0)
    assert limit.allows("192.0.2.2", 0)
    assert not limit.allows("192.0.2.1", 0)
    assert limit.allows("2001:db8::1", 0)
    assert not limit.allows("2001:db8::2", 0)
    assert limit.allows("2001:db8:0:1::1", 0)
    assert limit.allows("unknown", 0)


def test_answers_that_are_not_read_take_a_bounded_part_of_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever has many addresses asks for much and reads nothing; small answers are given still."""
    monkeypatch.setattr(limits, "HTTPS_ANSWERS", 1_000_000)
    monkeypatch.setattr(limits, "HTTPS_SMALL_ANSWER", 1000)
    sizes = {"large": 400_000, "small": 1000}

    async def agent(verb: str, body: bytes, source: str) -> bytes:
        return b"x" * sizes[json.loads(body)["container"]]

    app = application(agent, 1000)

    async def post(which: str, number: int, read: asyncio.Event) -> tuple[int, int]:
        body = json.dumps(BODY | {"container": which}).encode()
        waiting = [{"type": "http.request", "body": body, "more_body": False}]
        status, received = 0, 0

        async def receive() -> Any:
            return waiting.pop() if waiting else await asyncio.Event().wait()

        async def send(message: Any) -> None:
            nonlocal status, received
            status = message.get("status", status)
            received += len(message.get("body", b""))
            if status == 200:
                await read.wait()

        headers = [(b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": "/v1/evidence", "query_string": b""}
        client = (f"10.0.{number}.1", 1)
        await app({**scope, "headers": headers, "client": client}, receive, send)
        return status, received

    async def go() -> None:
        read = asyncio.Event()
        slow = [asyncio.create_task(post("large", number, read)) for number in range(20)]
        small = [asyncio.create_task(post("small", 100 + number, read)) for number in range(20)]
        while sum(task.done() for task in slow) < 18:
            await asyncio.sleep(0.01)
        read.set()
        found = await asyncio.gather(*slow)
        assert sorted(status for status, _ in found) == [200] * 2 + [503] * 18
        assert all(size == 400_000 for status, size in found if status == 200)
        assert await asyncio.gather(*small) == [(200, 1000)] * 20
        assert await post("large", 99, read) == (200, 400_000)

    asyncio.run(asyncio.wait_for(go(), 20))

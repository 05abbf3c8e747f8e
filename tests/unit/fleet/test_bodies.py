"""What is sent is held in memory up to a limit, for one and for all."""

import asyncio
from contextlib import AsyncExitStack

import pytest
from starlette.requests import Request

from cima_runc.fleet.access import LimitedError
from cima_runc.fleet.bodies import Bodies


def request(*parts: bytes) -> Request:
    messages = [
        {"type": "http.request", "body": part, "more_body": at < len(parts)}
        for at, part in enumerate(parts, 1)
    ]

    async def receive() -> dict[str, object]:
        return messages.pop(0)

    return Request({"type": "http", "method": "POST", "headers": []}, receive)


def test_each_has_a_share_and_all_have_an_end() -> None:
    """Kind: many small limits, and none on how many of them there are at a time."""
    bodies = Bodies(each=10, most=25)

    async def run() -> None:
        async with AsyncExitStack() as held:

            async def send(who: str, *parts: bytes) -> bytes:
                return await held.enter_async_context(bodies.of(request(*parts), who))

            assert await send("one", b"1234", b"5678") == b"12345678"
            with pytest.raises(LimitedError):
                await send("one", b"12", b"3")
            assert await send("one", b"12") == b"12"
            assert await send("two", b"1234567890") == b"1234567890"
            with pytest.raises(LimitedError):
                await send("three", b"123456")
            assert await send("three", b"12345") == b"12345"
        # What is done with is held no more.
        for who in ("one", "two", "three"):
            async with bodies.of(request(b"1234567890"), who) as body:
                assert len(body) == 10

    asyncio.run(run())


def test_where_there_is_no_end_for_all_one_takes_nothing_of_others() -> None:
    bodies = Bodies(each=10, most=None)

    async def run() -> None:
        async with AsyncExitStack() as held:
            for at in range(100):
                await held.enter_async_context(bodies.of(request(b"1234567890"), str(at)))
            with pytest.raises(LimitedError):
                await held.enter_async_context(bodies.of(request(b"1"), "0"))

    asyncio.run(run())

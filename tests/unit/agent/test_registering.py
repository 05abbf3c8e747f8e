"""Containers that wait to be registered share one turn of the writer's."""

from collections import deque
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

from cima_runc.agent.main import Agent


def test_who_went_away_keeps_no_other_from_his_answer() -> None:
    """Kind: an answer that nobody waits for any more cannot be given."""
    closed: list[int] = []
    waiting: list[tuple[Any, Future[None]]] = [
        (SimpleNamespace(close=lambda number=number: closed.append(number)), Future())
        for number in range(3)
    ]
    error = OSError()
    agent = object.__new__(Agent)
    agent._registering = deque(waiting)
    waiting[0][1].cancel()
    rooms: Any = SimpleNamespace(registration=SimpleNamespace(register_all=lambda _: [None, error]))
    agent._register_all(rooms)
    assert waiting[1][1].result(0) is None
    assert waiting[2][1].exception(0) is error
    assert closed == [0]

"""Containers that wait to be registered share one turn of the writer's."""

from collections import deque
from concurrent.futures import Future
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from cima_runc.agent.main import Agent
from cima_runc.measure.overlay import Mount
from cima_runc.sensor.loader import Rights
from tests.support.simulated_agent import SimulatedSensor
from tests.unit.agent.test_runs import Host


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


def test_its_turn_reads_no_mounts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user makes 100,000 of them, whose reading takes seconds in which nothing else starts.

    Kind: what one container decides the length of is done in the writer's thread.
    """

    def parse(_: bytes) -> list[Mount]:
        raise AssertionError("mounts are read")

    monkeypatch.setattr("cima_runc.agent.rights.parse_mountinfo", parse)
    watched: list[Rights] = []

    def watch(*given: Any) -> None:
        watched.append(given[-1])

    monkeypatch.setattr(SimulatedSensor, "watch", watch)
    host = Host()
    host.begin()
    try:
        host.rooms.registration.register(replace(host.candidate("box"), root_device=55))
        assert [rights.root_device for rights in watched] == [55]
    finally:
        host.teardown()

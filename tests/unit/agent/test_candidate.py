"""Who is looked at holds its mount namespace: nothing that goes wrong may keep that."""

import json
from types import SimpleNamespace
from typing import Any, Never

import pytest

from cima_runc.agent import candidate
from cima_runc.config import parse_settings
from tests.support.simulated_agent import NO_ROOTFS


def test_a_mistake_after_the_measurement_keeps_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[bool] = []
    process = SimpleNamespace(pid=1, close=lambda: closed.append(True))
    monkeypatch.setattr(candidate, "read_config", lambda _: b'{"root": {"path": "r"}}')
    monkeypatch.setattr(candidate, "_foreign", lambda *_: ())
    monkeypatch.setattr(candidate, "examine", lambda *_, **__: process)
    monkeypatch.setattr(candidate, "_measure_rootfs", lambda *_, **__: NO_ROOTFS)

    def fails(*_: object) -> Never:
        raise RecursionError

    class Turn:
        def __enter__(self) -> None: ...

        def __exit__(self, *_: object) -> None: ...

    store: Any = SimpleNamespace(work=SimpleNamespace(turn=Turn))
    engines: Any = SimpleNamespace(find=fails)
    state = json.dumps({"id": "box", "bundle": "/b", "pid": 2**31 - 1}).encode()
    with pytest.raises(RecursionError):
        candidate.look_at(
            *(state, parse_settings({})),
            store=store,
            services=SimpleNamespace(),  # type: ignore[arg-type]
            engines=engines,
            seconds=5,
        )
    assert closed == [True]

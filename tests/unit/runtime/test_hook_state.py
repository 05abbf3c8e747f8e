import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cima_runc.base.errors import CimaError
from cima_runc.runtime.hook_state import parse_hook_state

# As runc 1.1.5 and crun 1.8.1 of Debian 12 write it.
RUNC = {
    "ociVersion": "1.0.2-dev",
    "id": "c1",
    "status": "creating",
    "pid": 1234,
    "bundle": "/root/bundle",
}
CRUN = {**RUNC, "root": "/root/bundle/rootfs", "annotations": {"a": "b"}}


@pytest.mark.parametrize("state", [RUNC, CRUN])
def test_what_runtimes_write_is_read(state: dict[str, object]) -> None:
    found = parse_hook_state(json.dumps(state).encode())
    assert (found.id, found.pid, found.bundle) == ("c1", 1234, "/root/bundle")


@pytest.mark.parametrize(
    "change",
    [
        {"id": "a/b"},
        {"id": ".."},
        {"id": ""},
        {"id": "a" * 1025},
        {"id": "a\n"},
        {"id": "\x1b[2J"},
        {"id": "caf\u00e9"},
        {"id": 5},
        {"pid": -1},
        {"pid": 2**31},
        {"pid": "5"},
        {"pid": True},
        {"pid": 1.0},
        {"bundle": "relative"},
        {"bundle": "/a\0b"},
        {"bundle": "/" + "a" * 5000},
        {"bundle": None},
    ],
)
def test_these_are_refused_in_one_printable_line(change: dict[str, object]) -> None:
    with pytest.raises(CimaError) as refused:
        parse_hook_state(json.dumps({**RUNC, **change}).encode())
    assert str(refused.value).isprintable()


@given(st.binary(max_size=200))
def test_any_bytes_are_a_state_or_an_error(raw: bytes) -> None:
    with pytest.raises(CimaError):
        parse_hook_state(raw)

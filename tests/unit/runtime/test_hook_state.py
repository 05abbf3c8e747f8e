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


def test_what_the_launcher_told_the_hook_counts() -> None:
    """crun says ``/`` of a bundle in some user namespaces, and may have read another file."""
    state = json.dumps(RUNC | {"bundle": "/", "config": "/no", "config_sha256": "no"}).encode()
    assert parse_hook_state(state).config == "//config.json"
    told = b"/srv/b\0/srv/\xc3\xbc\n.json\0" + b"a" * 64 + b"\0"
    found = parse_hook_state(told + state)
    assert (found.bundle, found.config_sha256) == ("/srv/b", "a" * 64)
    assert found.config == "/srv/\u00fc\n.json"


@pytest.mark.parametrize(
    "told",
    [
        *(
            b"/b\0/\xff\0" + b"a" * 64 + b"\0",
            b"\0",
            b"/b\0",
            b"/b\0/c\0",
            b"b\0/c\0" + b"a" * 64 + b"\0",
        ),
        *(b"/b\0c\0" + b"a" * 64 + b"\0", b"/b\0/c\0" + b"g" * 64 + b"\0", b"/b\0/c\0\0"),
        *(b"/b\0/c\0" + b"a" * 65 + b"\0", b"/" + b"b" * 9000 + b"\0/c\0" + b"a" * 64 + b"\0"),
    ],
)
def test_a_hook_that_is_told_half_is_refused(told: bytes) -> None:
    with pytest.raises(CimaError):
        parse_hook_state(told + json.dumps(RUNC).encode())

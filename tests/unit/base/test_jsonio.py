import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cima_runc.base.jsonio import JsonError, load_object

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=30,
)


def load(raw: bytes, limit: int = 10_000) -> object:
    return load_object(raw, what="it", limit=limit)


@given(st.dictionaries(st.text(max_size=6), values))
def test_objects_come_back(value: dict[str, object]) -> None:
    assert load(json.dumps(value).encode(), limit=10**7) == value


@given(st.binary(max_size=200))
def test_any_bytes_are_an_object_or_an_error(raw: bytes) -> None:
    with contextlib.suppress(JsonError):
        assert isinstance(load(raw), dict)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b"1",
        b'{"a":1,"a":2}',
        b'{"a":{"b":1,"b":2}}',
        b'{"a":NaN}',
        b'{"a":Infinity}',
        b'{"a":1e999}',
        b'{"a":"\xff"}',
        b'{"a":' * 100 + b"1" + b"}" * 100,
        b'{"a":' + b"[" * 100_000,
        b'{"a":' + b"1" * 5000 + b"}",
        b'{"a":"' + b"x" * 20_000 + b'"}',
    ],
)
def test_these_are_refused(raw: bytes) -> None:
    with pytest.raises(JsonError):
        load(raw, limit=200_000 if b"[[" in raw else 10_000)


def test_integers_stay_exact() -> None:
    assert load(b'{"a":18446744073709551615}') == {"a": 2**64 - 1}

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cima_runc.evidence.padding import SMALLEST, padded, padme


@given(st.integers(2, 1 << 40))
def test_padme_is_the_papers(size: int) -> None:
    exponent = int(math.log2(size)) if size < 1 << 30 else size.bit_length() - 1
    bits = int(math.log2(exponent)) + 1 if exponent else 1
    granule = 2 ** max(exponent - bits, 0)
    found = padme(size)
    assert found % granule == 0
    assert size <= found < size + granule
    assert padme(found) == found
    assert found <= size * 1.12 or size < 32
    assert padme(size + 1) >= found


@pytest.mark.parametrize(
    ("size", "wanted"),
    [(9, 10), (16_384, 16_384), (16_385, 17_408), (100_000, 100_352), (1 << 20, 1 << 20)],
)
def test_known_sizes(size: int, wanted: int) -> None:
    assert padme(size) == wanted


@pytest.mark.parametrize("size", [-1, 0, 1])
def test_too_small(size: int) -> None:
    with pytest.raises(ValueError, match="from 2"):
        padme(size)


def test_spaces_come_after_the_text() -> None:
    assert padded(b"{}") == b"{}" + b" " * (SMALLEST - 2)
    text = b'{"a":"' + b"x" * 20_000 + b'"}'
    assert padded(text).startswith(text)
    assert padded(text)[len(text) :].strip() == b""
    assert len(padded(text)) == padme(len(text))

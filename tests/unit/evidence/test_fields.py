import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cima_runc.evidence.fields import decode_base64, decode_hex


@given(st.binary(max_size=80))
def test_each_value_has_one_spelling(value: bytes) -> None:
    assert decode_hex(value.hex()) == value
    assert decode_base64(base64.b64encode(value).decode()) == value


@given(st.text(st.sampled_from("AB/+=aé \n"), max_size=12))
def test_what_is_read_is_written_the_same(text: str) -> None:
    try:
        value = decode_base64(text)
    except ValueError:
        return
    assert base64.b64encode(value).decode() == text


@pytest.mark.parametrize(
    "text", ["AA==AA==", "AAA", "AAB=", "AB==", "AA==\n", "AA==A", "A A=", "é"]
)
def test_base64_in_other_forms(text: str) -> None:
    with pytest.raises(ValueError, match="base64"):
        decode_base64(text)


@pytest.mark.parametrize("text", ["AB", "a", "0x", "ab ", " ab", "a b", "\u0661\u0661"])
def test_hexadecimal_in_other_forms(text: str) -> None:
    with pytest.raises(ValueError, match="hex"):
        decode_hex(text)

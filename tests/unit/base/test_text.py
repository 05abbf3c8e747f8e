from hypothesis import given
from hypothesis import strategies as st

from cima_runc.base.text import printable


@given(st.binary())
def test_bytes_become_one_printable_line(raw: bytes) -> None:
    text = printable(raw)
    assert text.isprintable()


@given(st.binary(), st.binary())
def test_different_bytes_stay_different(one: bytes, other: bytes) -> None:
    assert (printable(one) == printable(other)) == (one == other)


@given(st.text())
def test_text_becomes_printable(text: str) -> None:
    assert printable(text).isprintable()


def test_what_people_know_stays() -> None:
    assert printable(b"/usr/bin/env") == "/usr/bin/env"
    assert printable("/caf\u00e9") == "/caf\u00e9"
    assert printable(b"a\nb\x1b[31m\xff\\") == "a\\x0ab\\x1b[31m\\xff\\\\"
    assert printable("\u202e") == "\\xe2\\x80\\xae"

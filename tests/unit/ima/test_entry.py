from hypothesis import given
from hypothesis import strategies as st

from cima_runc.ima.entry import EntryError, parse_ascii, parse_binary
from tests.unit.ima.recorded import RECORDED


@given(st.binary(max_size=300))
def test_any_line_is_an_entry_or_none(line: bytes) -> None:
    entry = parse_ascii(line)
    assert entry is None or entry.checked


@given(st.binary(max_size=300), st.integers(0, 10))
def test_any_binary_is_an_entry_or_an_error(data: bytes, offset: int) -> None:
    try:
        found = parse_binary(data, offset)
    except EntryError:
        return
    assert found is None or found[0].checked


@given(st.data())
def test_a_changed_line_is_never_taken_for_what_was_hashed(data: st.DataObject) -> None:
    lines = [line for line in RECORDED[0].ascii.split(b"\n") if parse_ascii(line)]
    line = data.draw(st.sampled_from([line for line in lines if b" 0000000" not in line]))
    at = data.draw(st.integers(0, len(line) - 1))
    changed = line[:at] + bytes([line[at] ^ data.draw(st.integers(1, 255))]) + line[at + 1 :]
    before, after = parse_ascii(line), parse_ascii(changed)
    # Either refused, or the same measurement written otherwise, or extending another PCR.
    assert before is not None
    assert after is None or after.violation or after.data == before.data

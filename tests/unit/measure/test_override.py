import pytest

from cima_runc.measure.override import Override, OverrideError, parse_override


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"0:0:0755", Override(0, 0, 0o755)),
        (b"1000:5:04755:file", Override(1000, 5, 0o4755, "file")),
        (b"0:0:40755:dir", Override(0, 0, 0o755, "dir")),
        (b"0:0:0644:pipe", Override(0, 0, 0o644, "fifo")),
        (b"0:0:0644:symlink", Override(0, 0, 0o644, "link")),
        (b"0:6:0660:block-8-1", Override(0, 6, 0o660, "block", (8, 1))),
        (b"0:5:0620:char-136-0", Override(0, 5, 0o620, "char", (136, 0))),
    ],
)
def test_forms(value: bytes, expected: Override) -> None:
    assert parse_override(value) == expected


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"0:0",
        b"0:0:0888",
        b"-1:0:0644",
        b"0:0:0644:door",
        b"0:0:0644:char-1",
        b"4294967295:0:0",
        b"0:0:0:char-4096-0",
        b"0:0:0:char-0-1048576",
        b"0:0:0644\n",
        b"99999999999:0:0",
    ],
)
def test_damaged(value: bytes) -> None:
    with pytest.raises(OverrideError):
        parse_override(value)

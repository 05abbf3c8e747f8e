import pytest
from software_key import software_public

from cima_runc.tpm.structures import parse_public
from cima_runc.verifier.enrolled import EnrolledAkError, enrolled_ak_file, parse_enrolled_ak

AREA = software_public(0x00050472)
PUBLIC = parse_public(AREA)
FILE = enrolled_ak_file(PUBLIC)


def test_name_and_key() -> None:
    enrolled = parse_enrolled_ak(FILE)
    assert enrolled.name == PUBLIC.name
    assert enrolled.is_key_of(PUBLIC)
    assert not enrolled.is_key_of(parse_public(software_public(0x00050472)))


def test_name_covers_attributes_and_the_key_alone_does_not() -> None:
    other = parse_public(AREA[:4] + (0x00040472).to_bytes(4, "big") + AREA[8:])
    assert not parse_enrolled_ak(FILE).is_key_of(other)
    assert parse_enrolled_ak(FILE.partition(b"\n")[2]).is_key_of(other)


NAME, PEM = FILE.partition(b"\n")[0], FILE.partition(b"\n")[2]


def test_what_the_host_is_called() -> None:
    assert parse_enrolled_ak(FILE).label == ""
    labelled = enrolled_ak_file(PUBLIC, "rack 7, node 3")
    assert parse_enrolled_ak(labelled).label == "rack 7, node 3"
    assert parse_enrolled_ak(labelled.replace(b"\n", b"\r\n")).name == PUBLIC.name
    for odd in ("a\nb", " a", "a ", "\x1b[2J", "ä", "x" * 129):
        with pytest.raises(EnrolledAkError):
            enrolled_ak_file(PUBLIC, odd)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"x",
        FILE[:100],
        FILE.partition(b"-----")[0],
        NAME.replace(b"name", b"nam") + b"\n" + PEM,
        NAME.replace(b": ", b":") + b"\n" + PEM,
        NAME.upper() + b"\n" + PEM,
        NAME[:-1] + b"\n" + PEM,
        b" " + FILE,
        NAME.replace(b": 000b", b": 000c") + b"\n" + PEM,
        NAME + b"\n" + FILE,
        PEM + NAME + b"\n",
        PEM + PEM,
        b"cima-label: \x1b[2J\n" + FILE,
        b"cima-label: a\ncima-label: b\n" + FILE,
        b"# a note\n" + FILE,
    ],
    ids=lambda raw: "",
)
def test_not_a_key(raw: bytes) -> None:
    """Finding 9. Kind: a line that cannot be read weakens what is checked, without a word."""
    with pytest.raises(EnrolledAkError):
        parse_enrolled_ak(raw)

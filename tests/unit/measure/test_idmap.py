import pytest

from cima_runc.measure.idmap import IDENTITY, IdMapError, parse_id_maps

ROOTLESS = b"         0       1000          1\n         1     100000      65536\n"


def test_ids_of_a_rootless_container() -> None:
    ids = parse_id_maps(ROOTLESS, ROOTLESS)
    assert [ids.uid(each) for each in (1000, 100000, 165535)] == [0, 1, 65536]
    assert [ids.gid(each) for each in (0, 1001, 165536)] == [65534] * 3
    assert ids.has_uid(1000)
    assert not ids.has_uid(0)
    assert not ids.is_identity


def test_no_user_namespace() -> None:
    assert IDENTITY.uid(1234) == IDENTITY.gid(1234) == 1234
    assert parse_id_maps(b"0 0 4294967295\n", b"0 0 4294967295\n").is_identity
    assert parse_id_maps(b"", b"").is_identity


@pytest.mark.parametrize(
    "line", [b"0 0", b"0 0 0", b"a 0 1", b"0 0 -1", b"0 4294967295 2", b"0 0 1 1"]
)
def test_damaged(line: bytes) -> None:
    with pytest.raises(IdMapError):
        parse_id_maps(line, b"")

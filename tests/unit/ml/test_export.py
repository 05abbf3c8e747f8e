import hashlib
import json
import struct

import rfc8785

from cima_runc.ima.template import Func
from cima_runc.ml.export import cel_json, cel_tlv, ima_ascii
from cima_runc.ml.partition import Partition
from cima_runc.ml.records import Record, template_data


def records() -> list[Record]:
    partition = Partition("some-id")
    return [
        partition.add({"type": "register", "id": "some-id"}, {"time": "now"}),
        partition.add({"type": "config", "config": {"a": 1}}, {}),
        partition.add_file(b"d" * 32, b"/bin/\x1b[31m\n", 4026531840, Func.BPRM_CHECK, {}),
    ]


def fields(data: bytes) -> list[tuple[int, bytes]]:
    found = []
    while data:
        kind, length = struct.unpack_from(">BI", data)
        found.append((kind, data[5 : 5 + length]))
        assert len(data) >= 5 + length
        data = data[5 + length :]
    return found


def test_ima_ascii_is_one_safe_line() -> None:
    lines = [ima_ascii(record) for record in records()]
    assert all(line.isprintable() for line in lines)
    assert lines[2].endswith("/bin/\\x1b[31m\\x0a mnt:[4026531840] BPRM_CHECK")
    assert lines[1].endswith("cima config")


def test_cel_json() -> None:
    made = records()
    shown = json.loads("".join(cel_json(made)))
    assert [record["recnum"] for record in shown] == [0, 1, 2]
    assert shown[0].keys() == {"recnum", "cpcr", "digests", "content_type", "content"}
    assert shown[2]["digests"][0]["digest"] == made[2].digest.hex()
    assert json.loads("".join(cel_json([]))) == []


def test_cel_tlv() -> None:
    first, _, last = records()
    top = fields(cel_tlv(last))
    assert [kind for kind, _ in top] == [0, 0xC0, 3, 7]
    assert top[0][1] == bytes(7) + b"\2"
    assert top[1][1] == b"some-id"
    assert fields(top[2][1]) == [(0x0B, last.digest)]
    assert fields(top[3][1]) == [(0, b"cima-ng"), (1, template_data(last.content))]
    assert hashlib.sha256(fields(top[3][1])[1][1]).digest() == last.digest
    kind, content = fields(cel_tlv(first))[3]
    assert kind == 0xC1
    assert content == rfc8785.dumps(dict(first.content))
    assert hashlib.sha256(content).digest() == first.digest

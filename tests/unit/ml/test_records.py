import base64
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from cima_runc.ima.template import Func, pack_cima_ng
from cima_runc.ml.partition import Partition
from cima_runc.ml.records import Record, RecordError, digest_of, parse_line, replay

scalars = st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(max_size=9)
contents = st.dictionaries(st.text(max_size=9), scalars | st.lists(scalars, max_size=3), max_size=5)


def a_partition() -> list[Record]:
    partition = Partition("box")
    meta = {"time": "now", "pid": 1}
    return [
        partition.add({"type": "register", "id": "box"}, meta),
        partition.add_file(b"\1" * 32, b"/bin/a\nb\xff", 7, Func.BPRM_CHECK, meta),
        partition.add({"type": "exit", "reason": "it ended"}, meta),
    ]


@given(contents)
def test_a_record_comes_back_from_its_line(content: dict[str, Any]) -> None:
    record = Partition("box").add(content, {"time": "now"})
    line = record.to_line()
    assert b"\n" not in line
    assert parse_line(line) == record
    assert record.digest == hashlib.sha256(rfc8785.dumps(content)).digest()


def test_a_file_record_is_the_designs() -> None:
    record = json.loads(a_partition()[1].to_line())
    data = pack_cima_ng(b"\1" * 32, b"/bin/a\nb\xff", 7, Func.BPRM_CHECK)
    assert record["content_type"] == "ima_template"
    assert record["content"] == {
        "template_name": "cima-ng",
        "template_data": base64.b64encode(data).decode(),
    }
    digest = hashlib.sha256(data).hexdigest()
    assert record["digests"] == [{"hashAlg": "sha256", "digest": digest}]
    assert (record["recnum"], record["cpcr"]) == (1, "box")


def test_the_register_is_the_designs() -> None:
    value = bytes(32)
    for record in a_partition():
        value = hashlib.sha256(value + record.digest).digest()
    assert replay(a_partition()) == (value, 3)


@pytest.mark.parametrize("order", [[0, 2], [1, 0, 2], [0, 0, 1, 2], [1, 2], [0, 1, 1, 2]])
def test_missing_doubled_or_moved_records_are_refused(order: list[int]) -> None:
    records = a_partition()
    with pytest.raises(RecordError):
        replay([records[number] for number in order])


def test_a_record_of_another_container_is_refused() -> None:
    records = a_partition()
    other = Partition("other")
    strange = [other.add({"type": "exit"}, {}) for _ in range(2)][1]
    with pytest.raises(RecordError, match="other"):
        replay([records[0], strange])


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_flipped_byte_is_refused_or_not_measured(at: int, flip: int) -> None:
    for record in a_partition():
        line = record.to_line()
        position = at % len(line)
        changed = line[:position] + bytes([line[position] ^ flip]) + line[position + 1 :]
        try:
            found = parse_line(changed)
        except RecordError:
            continue
        # What is measured is as it was: the change is in the number, the name or the meta.
        assert found.digest == record.digest
        assert digest_of(found.content_type, found.content) == record.digest


@given(st.binary(max_size=300))
def test_any_bytes_are_a_record_or_an_error(raw: bytes) -> None:
    with pytest.raises(RecordError):
        parse_line(raw)


def test_content_without_a_canonical_form_is_refused_and_changes_nothing() -> None:
    partition = Partition("box")
    for content in ({"n": 2**53}, {"s": "\ud800"}, {"x": object()}):
        with pytest.raises(RecordError):
            partition.add(content, {})
    assert (partition.count, partition.cpcr) == (0, bytes(32))


def test_one_file_is_measured_once_by_whatever_hook() -> None:
    partition = Partition("box")
    partition.add_file(b"\1" * 32, b"/bin/sh", 7, Func.BPRM_CHECK, {})
    for func in Func:
        assert partition.has_file(b"\1" * 32, b"/bin/sh", func)
        assert not partition.has_file(b"\2" * 32, b"/bin/sh", func)
        assert not partition.has_file(b"\1" * 32, b"/bin/ls", func)


def test_a_file_that_was_read_may_be_executed_yet() -> None:
    partition = Partition("box")
    read = partition.add_file(b"\1" * 32, b"/run.sh", 7, Func.FILE_CHECK, {})
    for one in (partition, Partition.restore("box", [read])):
        assert one.has_file(b"\1" * 32, b"/run.sh", Func.FILE_CHECK)
        assert not one.has_file(b"\1" * 32, b"/run.sh", Func.BPRM_CHECK)


def test_a_partition_is_restored_from_its_records(tmp_path: Path) -> None:
    records = [parse_line(record.to_line()) for record in a_partition()]
    restored = Partition.restore("box", records)
    assert (restored.cpcr, restored.count) == replay(records)
    assert restored.has_file(b"\1" * 32, b"/bin/a\nb\xff", Func.BPRM_CHECK)
    with pytest.raises(RecordError):
        Partition.restore("box", records[1:])
    with pytest.raises(RecordError):
        Partition.restore("another", records)
    assert os.listdir(tmp_path) == []

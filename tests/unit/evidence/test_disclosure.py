import json

from hypothesis import given
from hypothesis import strategies as st

from cima_runc.evidence.disclosure import disclosed_line
from cima_runc.ml.partition import Partition
from cima_runc.ml.records import parse_line

META = {"time": "2026-01-01T00:00:00.000Z", "pid": 4711, "uid": 7, "ima_line": 815}


@given(
    st.dictionaries(st.text(max_size=20), st.text(max_size=20) | st.just({"meta": {}}), max_size=5)
)
def test_measured_part_stays(extra: dict[str, object]) -> None:
    record = Partition("some-id").add({"type": "config", "config": extra, "meta": {"a": 1}}, META)
    shown = parse_line(disclosed_line(record.to_line()))
    assert (shown.digest, dict(shown.content)) == (record.digest, dict(record.content))
    assert dict(shown.meta) == {"time": META["time"], "uid": 7, "in_kernel_log": True}


def test_what_the_kernel_did_not_log_is_shown() -> None:
    record = Partition("c").add({"type": "x"}, {**META, "ima_line": None, "missing": ["tpm"]})
    meta = json.loads(disclosed_line(record.to_line()))["meta"]
    assert meta["in_kernel_log"] is False
    assert meta["missing"] == ["tpm"]


def test_shared_partition_does_not_tell_when_others_were_started() -> None:
    record = Partition("dependencies:1").add({"type": "x"}, META)
    meta = json.loads(disclosed_line(record.to_line(), shared=True))["meta"]
    assert meta == {"uid": 7, "in_kernel_log": True}
